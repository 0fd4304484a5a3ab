"""A plan as plain bytes: what travels with a request from the frontend to every worker.

A worker then needs no SAE files. At `d_model` 4096 one edit is 32 KiB.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.backends.vllm.config import GRAPH
from interventions.errors import SAEError, SpecError
from interventions.hook_points import HookPoint
from interventions.plan import EditGroup, LayerPlan, Plan
from interventions.positions import Selector
from interventions.receipt import TokenFacts
from interventions.sae.norms import NormMode

SCALARS = (
    "a_const",
    "a_act",
    "r_const",
    "r_proj",
    "beta",
    "mul",
    "beta_mag",
    "theta",
    "only_active",
    "norm",
    "wanted",
    "skip_bos",
    "reads",
)
"""Columns of an edit's scalars, fp32; the last five hold small integers."""

NORMS: Mapping[NormMode, int] = {"none": 0, "layer_norm": 1, "constant_norm_rescale": 2}

FLAG_ALL = 1
FLAG_PROMPT = 2
FLAG_GENERATED = 4
FLAG_LAST_PROMPT = 8
FLAG_THINKING = 16
FLAG_BOS = 32
"""What a token is, as bits; an edit holds where one of its `wanted` bits is set."""

FLAGS: Mapping[str, int] = {
    "all": FLAG_ALL,
    "prompt": FLAG_PROMPT,
    "generated": FLAG_GENERATED,
    "last_prompt": FLAG_LAST_PROMPT,
    "thinking": FLAG_THINKING,
}


@dataclass(frozen=True)
class HookEdits:
    """The edits of a request at one hook point.

    Attributes:
        index: of the hook point among those that the engine declared.
        limit: the norm guard's bound, `inf` without one.
        scalars: `(n_edits, len(SCALARS))` fp32.
        e, w: `(n_edits, d_model)` fp32, see `interventions.sae.core.FeatureDirections`.
    """

    index: int
    limit: float
    scalars: Tensor
    e: Tensor
    w: Tensor


@dataclass(frozen=True)
class Compiled:
    """A request's intervention.

    Attributes:
        fingerprint: of the plan.
        hooks: edits by hook point, in the order of the plan.
        keyed: whether every KV block depends on the intervention; else only those that hold a
            token at or past `boundary`.
        boundary: None where nothing depends on the prompt's length; 0 for edits that start with
            the first generated token, -1 for the last prompt token.
        bos: the tokenizer's BOS, where an edit skips it.
        think: ids of the reasoning delimiters, where an edit needs them.
    """

    fingerprint: str
    hooks: tuple[HookEdits, ...]
    keyed: bool
    boundary: int | None
    bos: int | None
    think: tuple[int, int] | None

    def pack(self) -> dict[str, Any]:
        """Return plain data that msgpack carries."""
        return {
            "graph": GRAPH,
            "fp": self.fingerprint,
            "keyed": self.keyed,
            "boundary": self.boundary,
            "bos": self.bos,
            "think": None if self.think is None else list(self.think),
            "hooks": [
                [h.index, h.limit, len(h.scalars), _bytes(h.scalars, h.e, h.w)] for h in self.hooks
            ],
        }


def unpack(data: Mapping[str, Any]) -> Compiled:
    """Return what `Compiled.pack` packed.

    Raises:
        SpecError: another version of this package packed it.
    """
    _check_graph(data)
    return Compiled(
        fingerprint=data["fp"],
        hooks=tuple(_hook(*row) for row in data["hooks"]),
        keyed=data["keyed"],
        boundary=data["boundary"],
        bos=data["bos"],
        think=None if data["think"] is None else tuple(data["think"]),
    )


def check_compiled(entry: Any, request_id: str) -> None:
    """Return nothing if a request's entry is what a frontend's plugin makes of a spec.

    Raises:
        SpecError: it is not, or another version made it.
    """
    compiled = entry.get("compiled") if isinstance(entry, Mapping) else None
    if not isinstance(compiled, Mapping):
        raise SpecError(
            f"request {request_id} names an intervention that no frontend compiled; the plugin"
            f" sae_steered must be active in the frontend (see VLLM_PLUGINS)"
        )
    _check_graph(compiled)


def _check_graph(data: Mapping[str, Any]) -> None:
    if data.get("graph") != GRAPH:
        raise SpecError(
            f"a request was compiled by graph version {data.get('graph')}, this engine has {GRAPH};"
            f" install one version of sae-steered on every machine"
        )


def compile_plan(
    plan: Plan, points: Sequence[HookPoint], max_edits: int, tokens: TokenFacts
) -> Compiled:
    """Return a plan in the form that workers take.

    Args:
        plan: with the median norms that its guard needs.
        points: hook points that the engine declared.
        max_edits: most edits at one hook point.
        tokens: special token ids.

    Raises:
        SpecError: a hook point that was not declared, or too many edits.
        SAEError: the gate needs the pre-activations of every feature, or a median norm is missing.
    """
    hooks = [_compile_layer(layer, points, max_edits) for layer in plan.layers]
    if plan.missing_medians:
        raise SAEError(
            f"the norm guard needs the median residual norm at {plan.missing_medians[0]} and the"
            f" SAE stores none; give `median_norm` in the spec, or set `norm_guard: null`"
        )
    places = [hook.index for hook in hooks]
    for index in places:
        if places.count(index) > 1:
            raise SpecError(
                f"two hook points of the spec are one place, {points[index]}: what a layer receives"
                f" is what the layer before it returns; write all edits at one of them"
            )
    kinds = {s.positions for layer in plan.layers for s in layer.selectors}
    skips = any(s.skip_bos for layer in plan.layers for s in layer.selectors)
    boundary = -1 if "last_prompt" in kinds else 0 if kinds & {"prompt", "generated"} else None
    think = None
    if plan.needs_thinking:
        assert tokens.think_start is not None
        assert tokens.think_end is not None
        think = (tokens.think_start, tokens.think_end)
    return Compiled(
        fingerprint=plan.fingerprint,
        hooks=tuple(hooks),
        keyed=bool(kinds & {"all", "thinking", "prompt"}),
        boundary=boundary,
        bos=tokens.bos if skips else None,
        think=think,
    )


def compile_norms(
    wanted: Sequence[HookPoint], points: Sequence[HookPoint], d_model: int
) -> Compiled:
    """Return an intervention that adds nothing, so that the operator looks at every token.

    Each call returns another fingerprint: no cached block is read, every row runs.

    Args:
        wanted: hook points to look at.
        points: hook points that the engine declared.
        d_model: width of the residual stream.

    Raises:
        SpecError: a hook point that was not declared.
    """
    scalars = torch.zeros(1, len(SCALARS))
    scalars[0, SCALARS.index("wanted")] = FLAG_ALL
    nothing = torch.zeros(1, d_model)
    indices = sorted({declared_index(point, points) for point in wanted})
    return Compiled(
        fingerprint=f"norms-{uuid.uuid4().hex}",
        hooks=tuple(HookEdits(i, float("inf"), scalars, nothing, nothing) for i in indices),
        keyed=True,
        boundary=None,
        bos=None,
        think=None,
    )


def declared_index(point: HookPoint, points: Sequence[HookPoint]) -> int:
    """Return which of the declared hook points `point` is.

    Raises:
        SpecError: none of them.
    """
    here = place(point)
    if here not in points:
        raise SpecError(
            f"this engine is steered at {', '.join(map(str, points))} and not at {point}; declare"
            f" it when the engine starts"
        )
    return points.index(here)


def place(point: HookPoint) -> HookPoint:
    """Return the hook point of the same place that engines use: `resid_post` where there is one."""
    if point.site == "resid_pre" and point.layer > 0:
        return HookPoint(point.layer - 1, "resid_post")
    return point


def _compile_layer(layer: LayerPlan, points: Sequence[HookPoint], max_edits: int) -> HookEdits:
    index = declared_index(layer.hook_point, points)
    n_edits = len(layer.selectors)
    if n_edits > max_edits:
        raise SpecError(
            f"{n_edits} edits at {layer.hook_point} and the engine takes {max_edits}; start it with"
            f" `max_edits` of {n_edits} or more"
        )
    return HookEdits(
        index=index,
        limit=float("inf") if layer.norm_limit is None else layer.norm_limit,
        scalars=torch.cat([_scalars(group) for group in layer.groups]),
        e=torch.cat([group.directions.e for group in layer.groups]),
        w=torch.cat([group.directions.w for group in layer.groups]),
    )


def _scalars(group: EditGroup) -> Tensor:
    dirs = group.directions
    if group.needs_acts and dirs.full is not None:
        raise SAEError(
            f"{dirs.source} is a {dirs.full.architecture} SAE, whose gate needs the pre-activations"
            f" of all {dirs.full.d_sae} features; a topk SAE can be used with one threshold: give"
            f" `threshold` in `sae` (`sae-steered threshold` finds it), or use `add` or `project`"
        )
    n_edits = len(group.selectors)
    same = torch.ones(n_edits)
    columns = {
        **dict(zip(("a_const", "a_act", "r_const", "r_proj"), group.constants, strict=True)),
        "beta": dirs.beta,
        "mul": dirs.mul,
        "beta_mag": dirs.beta_mag,
        "theta": dirs.theta,
        "only_active": group.only_active.float(),
        "norm": same * NORMS[dirs.norm],
        "wanted": _column(group.selectors, lambda s: FLAGS[s.positions]),
        "skip_bos": _column(group.selectors, lambda s: int(s.skip_bos)),
        "reads": same * group.needs_acts,
    }
    return torch.stack([columns[name] for name in SCALARS], dim=1)


def _column(selectors: Sequence[Selector], value: Any) -> Tensor:
    return torch.tensor([float(value(selector)) for selector in selectors])


def _bytes(*tensors: Tensor) -> bytes:
    flat = torch.cat([tensor.detach().float().cpu().reshape(-1) for tensor in tensors])
    return flat.numpy().tobytes()


def _hook(index: int, limit: float, n_edits: int, blob: bytes) -> HookEdits:
    flat = torch.frombuffer(bytearray(blob), dtype=torch.float32)
    n_scalars = n_edits * len(SCALARS)
    e, w = flat[n_scalars:].reshape(2, n_edits, -1)
    return HookEdits(index, limit, flat[:n_scalars].reshape(n_edits, -1), e, w)
