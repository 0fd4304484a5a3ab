"""Random plans over every kind of edit, and the operator's tables that hold them."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.backends.vllm import compiled as form
from interventions.backends.vllm.tables import HookTables
from interventions.editor import Editor
from interventions.hook_points import HookPoint
from interventions.plan import LayerPlan, ModelFacts, Plan, make_plan
from interventions.positions import Selector
from interventions.receipt import TokenFacts
from interventions.spec import parse_spec
from tests import tiny_models

POINT = HookPoint(1)
TOKENS = TokenFacts(bos=0, think_start=5, think_end=6)
MEDIAN = tiny_models.D_MODEL**0.5
"""Of residuals whose elements have variance 1."""

KINDS = {
    "relu": {"architecture": "standard"},
    "jumprelu": {"architecture": "jumprelu"},
    "gated": {"architecture": "gated"},
    "layer_norm": {"architecture": "jumprelu", "normalize": "layer_norm"},
    "constant_norm": {"architecture": "gated", "normalize": "constant_norm_rescale"},
}


def save_saes(folder: Path) -> dict[str, str]:
    """Return the path of an SAE of each kind."""
    return {
        kind: str(tiny_models.save_sae(folder / kind, seed=seed, **options).path)
        for seed, (kind, options) in enumerate(KINDS.items())
    }


def random_spec(rng: random.Random, saes: dict[str, str], n_edits: int) -> dict[str, Any]:
    """Return a spec with edits of several SAEs, so that a layer has several groups."""
    features = rng.sample(range(tiny_models.D_SAE), n_edits)  # no two edits set the same one
    edits = []
    for feature in features:
        kind = rng.choice(list(saes))
        op = rng.choice(["add", "clamp", "ablate", "scale", "project"])
        edit: dict[str, Any] = {"op": op, "feature": feature, "sae": {"path": saes[kind]}}
        edit["positions"] = rng.choice(list(form.FLAGS))
        edit["skip_bos"] = rng.random() < 0.4
        edit["when"] = rng.choice(["always", "active"])
        if op != "ablate":
            edit["value"] = rng.uniform(-4, 4)
        if op in ("add", "clamp") and rng.random() < 0.5:
            edit["unit"] = "residual"
        if op == "project" and "norm" not in kind and rng.random() < 0.5:
            edit["origin"] = "b_dec"
        edits.append(edit)
    guard = rng.choice([None, 0.9, 1.0, 1.2])
    return {"edits": edits, "norm_guard": guard, "hook_point": str(POINT)}


def plan_of(spec: dict[str, Any], **options: Any) -> Plan:
    facts = ModelFacts("tiny", tiny_models.D_MODEL, tiny_models.N_LAYERS, "weights")
    plan = make_plan(parse_spec(spec), facts, **options)
    return plan.with_median_norms(dict.fromkeys(plan.missing_medians, MEDIAN))


def compile_one(plan: Plan, points: Sequence[HookPoint] = (POINT,), max_edits: int = 8):
    """Return the plan as a worker gets it."""
    return form.unpack(form.compile_plan(plan, points, max_edits, TOKENS).pack())


def mask_of(selector: Selector, flags: Tensor) -> Tensor:
    """Return which rows a selector names, by the flags' own definition."""
    named = (flags & form.FLAGS[selector.positions]) != 0
    return named & ~((flags & form.FLAG_BOS != 0) & selector.skip_bos)


@dataclass
class Case:
    """Tables with one plan a slot, slot 0 free, and rows of all of them in random order."""

    plans: list[Plan]
    slots: Tensor
    flags: Tensor
    hidden: Tensor
    residual: Tensor | None
    max_edits: int = 8
    tables: HookTables = field(init=False)

    def __post_init__(self) -> None:
        n_slots = len(self.plans) + 1
        self.tables = HookTables.empty(
            slots=n_slots,
            accounts=n_slots + 2,
            max_edits=self.max_edits,
            d_model=self.hidden.shape[1],
            rows=len(self.slots) + 5,
            device=torch.device("cpu"),
        )
        for slot, plan in enumerate(self.plans, 1):
            self.tables.write(slot, compile_one(plan, max_edits=self.max_edits).hooks[0])

    def layer(self, slot: int) -> LayerPlan:
        (layer,) = self.plans[slot - 1].layers
        return layer

    def arguments(self, rows: Tensor | None = None) -> list[Any]:
        """Return fresh arguments of the operator for some rows; the account is the slot + 1."""
        rows = torch.arange(len(self.slots)) if rows is None else rows
        slots, t = self.slots[rows], self.tables
        tokens = torch.zeros(len(self.slots) + 5, dtype=torch.int32)
        owners = torch.zeros_like(tokens)
        tokens[: len(rows)] = torch.where(slots > 0, slots | self.flags[rows] << 16, 0).int()
        owners[: len(rows)] = torch.where(slots > 0, slots + 1, 0).int()
        residual = None if self.residual is None else self.residual[rows].clone()
        return [
            self.hidden[rows].clone(), residual, tokens, owners, t.n_edits, t.limit, t.scalars,
            t.e, t.w, torch.zeros_like(t.counts), torch.zeros_like(t.norms),
        ]  # fmt: skip

    def expected(self, slot: int) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Return a slot's rows, what `hidden` becomes there, and the counts, all by the editor."""
        rows = (self.slots == slot).nonzero().squeeze(1)
        layer = self.layer(slot)
        editor = Editor(layer)
        x = self.hidden[rows].float()
        if self.residual is not None:
            x = x + self.residual[rows].float()
        masks = {s: mask_of(s, self.flags[rows]) for s in layer.selectors}
        delta = editor(x, masks) - x
        counts = [[c.selected, c.guarded, c.fired or 0] for c in editor.take_counts()]
        return rows, (self.hidden[rows].float() + delta).to(self.hidden.dtype), counts


def random_case(
    saes: dict[str, str],
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    pair: bool = True,
    plans: int = 7,
    rows: int = 90,
) -> Case:
    """Return rows of `plans` different plans and of nobody."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    made = [plan_of(random_spec(rng, saes, rng.randint(1, 8))) for _ in range(plans)]
    n_flags = 2 * form.FLAG_BOS

    def stream() -> Tensor:
        # The lengths of rows lie on both sides of the guards' bounds.
        size = 0.6 + 0.8 * torch.rand(rows, 1, generator=generator)
        part = torch.randn(rows, tiny_models.D_MODEL, generator=generator) * size
        return (part / 2**0.5 if pair else part).to(dtype)

    return Case(
        plans=made,
        slots=torch.randint(0, plans + 1, (rows,), generator=generator),
        flags=torch.randint(0, n_flags, (rows,), generator=generator) | form.FLAG_ALL,
        hidden=stream(),
        residual=stream() if pair else None,
    )


def cuts(length: int, rng: random.Random) -> list[tuple[int, int]]:
    """Return `[start, end)` pieces of a sequence, at random places."""
    inner = (rng.randrange(1, length) for _ in range(rng.randrange(5))) if length > 1 else ()
    return list(itertools.pairwise(sorted({0, length, *inner})))
