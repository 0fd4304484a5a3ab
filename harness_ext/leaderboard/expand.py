"""The rows of a leaderboard that its configuration names: baseline, candidates, prompts."""

import itertools
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness_ext.leaderboard.board import BASELINE, Row
from harness_ext.leaderboard.config import Config, EditConfig, LeaderboardError, SomeFeatures
from interventions.default_model import default_sae_path
from interventions.plan import ModelFacts, Plan, make_plan
from interventions.sae.core import SAE
from interventions.sae.formats.files import read_safetensors
from interventions.sae.io import STATS, load_sae
from interventions.spec import InterventionSpec, SAERef, parse_spec
from interventions.spec_io import load_spec


@dataclass(frozen=True)
class Setting:
    """One size of one edit, tried on every feature.

    Attributes:
        edit: the edit.
        size: keys of a spec's edit that say how much: `strength` or `value`, or neither.
    """

    edit: EditConfig
    size: dict[str, float]

    @property
    def label(self) -> str:
        """Return the setting for a reader."""
        edit = self.edit
        parts = [edit.op]
        for key, size in self.size.items():
            parts.append(f"{size:g} max" if key == "strength" else f"{size:g}")
            parts += ["resid"] if key == "value" and edit.unit == "residual" else []
        parts += [] if edit.positions == "all" else [edit.positions]
        parts += [] if edit.hook_point is None else [edit.hook_point]
        return " ".join(parts)


@dataclass(frozen=True)
class Planned:
    """A row and what a backend needs for it.

    Attributes:
        row: as a reader sees it.
        plan: None where nothing is edited.
        setting: the size of which edit it is; None for specs, prompts and the baseline.
    """

    row: Row
    plan: Plan | None = None
    setting: Setting | None = None


def settings(config: Config) -> list[Setting]:
    """Return every size of every edit."""
    found = []
    for edit in config.edits:
        sizes = [{"strength": s} for s in edit.strength] + [{"value": v} for v in edit.value]
        found += [Setting(edit, size) for size in sizes or [{}]]
    return found


class Features:
    """The SAE that rows take features from; the same SAE is read once."""

    def __init__(self, ref: SAERef) -> None:
        """Read the SAE.

        Raises:
            SAENotFoundError: it is not there.
            SAEError: it cannot be read.
        """
        self.ref = ref
        self._known: dict[SAERef, SAE] = {}
        self.sae = self.load(ref)

    def load(self, ref: SAERef) -> SAE:
        """Return an SAE, for `make_plan`."""
        if ref not in self._known:
            self._known[ref] = load_sae(ref)
        return self._known[ref]

    def random(self, n: int, *, seed: str, without: Sequence[int] = ()) -> list[int]:
        """Return `n` live features, from all densities alike.

        They are sorted by how often they fire, cut into `n` strata, and one is drawn from each;
        by their largest activation where the statistics have no density.

        Args:
            n: how many.
            seed: of the draw.
            without: features that are not to be drawn.

        Raises:
            LeaderboardError: the SAE stores no statistics, or has too few live features.
        """
        if self.sae.max_act is None:
            raise LeaderboardError(
                f"{self.sae.source} stores no statistics, so its live features are unknown; name"
                f" features, and set nulls.random_features to 0"
            )
        live = self.sae.max_act > 0
        order = self._density().argsort(stable=True).tolist()
        left = set(without)
        usable = [f for f in order if live[f] and f not in left]
        if len(usable) < n:
            raise LeaderboardError(
                f"{n} random features are asked for and {self.sae.source} has {len(usable)} live"
                f" ones that are not taken; ask for fewer"
            )
        generator = random.Random(seed)
        edges = [round(i * len(usable) / n) for i in range(n + 1)]
        return [usable[generator.randrange(a, b)] for a, b in itertools.pairwise(edges)]

    def _density(self) -> torch.Tensor:
        assert self.sae.max_act is not None
        folder = default_sae_path() if self.ref.default else Path(self.ref.path or "").expanduser()
        if not self.ref.default and self.ref.id:
            folder = folder / self.ref.id
        file = folder / STATS
        stats = read_safetensors(file) if file.is_file() else {}
        return stats.get("density", self.sae.max_act).float()


def chosen_features(config: Config, features: Features) -> list[int]:
    """Return the features that are candidates, each once.

    Raises:
        LeaderboardError: a file holds no features, or the SAE too few live ones.
        SAEError: a feature is outside the SAE.
    """
    named: list[int] = []
    for one in config.features:
        named += [one] if isinstance(one, int) else _from_file(one) if one.file else []
    named = list(dict.fromkeys(named))
    features.sae.check_features(named)
    for one in config.features:
        if isinstance(one, SomeFeatures) and one.random:
            seed = f"features:{config.seed}"
            named += features.random(one.random, seed=seed, without=named)
    return named


def _from_file(some: SomeFeatures) -> list[int]:
    assert some.file is not None
    try:
        data = json.loads(some.file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeaderboardError(f"feature file '{some.file}' cannot be read: {error}") from None
    rows = next((v for v in data.values() if _lists_features(v)), None) if isinstance(
        data, dict
    ) else data  # fmt: skip
    if not _lists_features(rows):
        raise LeaderboardError(
            f"{some.file} holds no list of objects with `feature`; give the JSON of"
            f" `sae-steered score` or `sae-steered find`"
        )
    assert isinstance(rows, list)
    return [int(row["feature"]) for row in rows][: some.top]


def _lists_features(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and all(
        isinstance(row, dict) and isinstance(row.get("feature"), int) for row in data
    )  # fmt: skip


def candidates(config: Config, features: Features, model: ModelFacts) -> list[Planned]:
    """Return the candidates: every feature under every setting, and every further spec.

    Raises:
        LeaderboardError: two rows are the same, or features cannot be drawn.
        SteeringError: a spec does not fit the model.
    """
    found = []
    for setting in settings(config):
        for feature in chosen_features(config, features):
            spec = feature_spec(config.sae, setting.edit, feature, setting.size)
            planned = feature_row("feature", spec, features, model)
            found.append(replace(planned, setting=setting))
    for path in config.specs:
        spec = load_spec(path)
        name = spec.name if spec.name != "steered" else path.stem
        plan = make_plan(spec.model_copy(update={"name": name}), model, load=features.load)
        found.append(Planned(_row("feature", f"spec-{_slug(name)}", name, plan), plan))
    ids = [planned.row.id for planned in found]
    for row_id in ids:
        if ids.count(row_id) > 1:
            raise LeaderboardError(
                f"{ids.count(row_id)} rows are called '{row_id}'; rename a spec, or name an edit"
                f" once"
            )
    return found


def check_rows(config: Config, features: Features, model: ModelFacts) -> None:
    """Return nothing if every row can be made, as far as that is known without the weights.

    Raises:
        LeaderboardError: two rows are the same, or features cannot be drawn.
        SteeringError: a spec does not fit the model.
    """
    candidates(config, features, model)
    if config.edits:
        null_features(config, features)


def null_features(config: Config, features: Features) -> list[int]:
    """Return the random features of each size: live ones that are no candidates.

    Raises:
        LeaderboardError: there are too few.
    """
    n, seed = config.nulls.random_features, f"null:{config.seed}"
    taken = chosen_features(config, features)
    return features.random(n, seed=seed, without=taken) if n else []


def fixed_rows(config: Config) -> list[Planned]:
    """Return the rows that edit nothing: the baseline first, then the prompts."""
    rows = [Row(id=BASELINE, kind="baseline", label="baseline")]
    rows += [
        Row(id=f"prompt-{prompt.id}", kind="prompt", label=prompt.id, prompt=prompt.text)
        for prompt in config.prompts
    ]
    return [Planned(row) for row in rows]


def feature_spec(
    sae: SAERef, edit: EditConfig, feature: int, size: dict[str, float], **more: Any
) -> InterventionSpec:
    """Return the spec of one feature under one edit.

    Args:
        sae: of the feature.
        edit: operator, unit, positions, hook point.
        feature: its index.
        size: `strength` or `value`, or neither.
        more: further keys of the spec.
    """
    one: dict[str, Any] = {"op": edit.op, "feature": feature, **size}
    if "value" in size and edit.op != "scale":
        one["unit"] = edit.unit
    spec: dict[str, Any] = {
        "name": f"f{feature} {Setting(edit, size).label}",
        "sae": sae.model_dump(exclude_none=True),
        "edits": [one],
        "positions": edit.positions,
        **({"hook_point": edit.hook_point} if edit.hook_point else {}),
    }
    return parse_spec({**spec, **more}, source="leaderboard")


def feature_row(
    kind: Any, spec: InterventionSpec, features: Features, model: ModelFacts
) -> Planned:
    """Return the row of a spec with one edit of one feature."""
    plan = make_plan(spec, model, load=features.load)
    return Planned(_row(kind, _slug(spec.name), spec.name, plan), plan)


def _row(kind: Any, row_id: str, label: str, plan: Plan) -> Row:
    spec, edits = plan.spec, plan.description["edits"]
    one: dict[str, Any] = {}
    if len(edits) == 1:
        edit = spec.edits[0]
        one = {
            "sae": spec.sae_of(edit).label,
            "feature": edits[0]["feature"],
            "op": edits[0]["op"],
            "value": None if edit.op == "ablate" else edits[0]["value"],
            "unit": None if edit.op in ("ablate", "scale") else edits[0]["unit"],
            "strength": edit.strength,
            "hook_point": edits[0]["hook_point"],
            "positions": edits[0]["positions"],
        }
    data = spec.model_dump(mode="json", exclude_unset=True)
    return Row(id=row_id, kind=kind, label=label, spec=data, fingerprint=plan.fingerprint, **one)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.") or "row"
