"""Random rows: what any push of that length does to this model.

For each size of each edit there are random live features, with the same operator, and random
directions, added. All are scaled so that the mean change of the residual equals that of the
candidate in the middle of that size, whose id stands in `Row.matches`.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from harness_ext.leaderboard.board import Row
from harness_ext.leaderboard.calibrate import Calibration, lexical
from harness_ext.leaderboard.config import Config, LeaderboardError
from harness_ext.leaderboard.expand import (
    Features,
    Planned,
    Setting,
    feature_row,
    feature_spec,
    null_features,
    settings,
)
from interventions.plan import ModelFacts, Plan
from interventions.spec import SAERef, parse_spec

logger = logging.getLogger(__name__)

VECTORS = "directions"
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Nulls:
    """Makes random rows.

    Attributes:
        config: says how many.
        features: of the SAE.
        model: what the rows must fit.
        calibration: None where the weights are not here; then `nulls.mean_change` holds.
        folder: of the leaderboard; directions are written below it.
    """

    config: Config
    features: Features
    model: ModelFacts
    calibration: Calibration | None
    folder: Path

    def rows(self, candidates: Sequence[Planned]) -> list[Planned]:
        """Return the random rows of every size of every edit.

        Args:
            candidates: with their mean changes.

        Raises:
            LeaderboardError: there are too few live features, or nothing to scale by.
        """
        wanted = self.config.nulls
        if not (wanted.random_features or wanted.random_directions):
            return []
        found: list[Planned] = []
        drawn = null_features(self.config, self.features) if self.config.edits else []
        for setting in settings(self.config):
            middle = _middle(setting, candidates)
            target = wanted.mean_change or middle.row.mean_change
            if target is None:
                raise LeaderboardError(
                    "random rows are scaled to the mean change of the candidates, which was not"
                    " measured; give nulls.mean_change, or 0 random_features and random_directions"
                )
            found += [self._feature(setting, feature, middle, target) for feature in drawn]
            numbers = range(wanted.random_directions)
            found += [self._direction(setting, number, middle, target) for number in numbers]
        return found

    def _feature(self, setting: Setting, feature: int, middle: Planned, target: float) -> Planned:
        edit = setting.edit
        name = f"random f{feature} {setting.label}"

        def made(value: float | None) -> tuple[Planned, Plan]:
            size = {} if value is None else {"value": value}
            spec = feature_spec(self.config.sae, edit, feature, size, name=name)
            planned = feature_row("random_feature", spec, self.features, self.model)
            assert planned.plan is not None
            return planned, planned.plan

        def change(value: float) -> float:
            assert self.calibration is not None
            return self.calibration.mean_change(made(value)[1]) or 0.0

        if edit.op == "ablate":  # it has no size: what it takes away is what it is
            value = None
        elif self.calibration is None:
            if edit.op not in ("add", "clamp"):
                raise LeaderboardError(
                    f"random features under `{edit.op}` are scaled with the model's weights, which"
                    f" are not here; use add or clamp, or nulls.random_features: 0"
                )
            length = float(made(1.0)[1].layers[0].groups[0].directions.w[0].norm())
            value = target / length if edit.unit == "sae" else target
        else:
            start = 1.0 if edit.op == "scale" else 0.0
            sign = -1.0 if (middle.row.value or 0.0) < start else 1.0
            if edit.op == "project":
                start = self.calibration.component(made(0.0)[1])
            value = start + sign * _solve(lambda x: change(start + sign * x), target, name)
        found, plan = made(value)
        measured = self.calibration.mean_change(plan) if self.calibration else target
        more = {"mean_change": measured, "matches": middle.row.id}
        return replace(found, row=found.row.model_copy(update=more))

    def _direction(self, setting: Setting, number: int, middle: Planned, target: float) -> Planned:
        assert middle.plan is not None
        (layer,) = middle.plan.layers
        point = str(layer.hook_point)
        path = _write_direction(
            self.folder / VECTORS, self.config.seed, number, self.model.d_model, point
        )
        value = float(f"{target:.6g}")
        spec = parse_spec(
            {
                "name": f"random direction {number} {setting.label}",
                "sae": SAERef(path=str(path)).model_dump(exclude_none=True),
                "hook_point": point,
                "positions": setting.edit.positions,
                "check_model": False,
                "norm_guard": middle.plan.spec.norm_guard,
                **({"median_norm": layer.median_norm} if layer.median_norm else {}),
                "edits": [{"op": "add", "feature": 0, "value": value, "unit": "residual"}],
            },
            source="leaderboard",
        )
        found = feature_row("random_direction", spec, self.features, self.model)
        more = {"feature": None, "sae": None, "mean_change": value, "matches": middle.row.id}
        return replace(found, row=found.row.model_copy(update=more))


def _middle(setting: Setting, candidates: Sequence[Planned]) -> Planned:
    """Return the candidate with the median mean change of a size; the lower one of two."""
    mine = [c for c in candidates if c.setting == setting]
    return sorted(mine, key=lambda c: (c.row.mean_change or 0.0, c.row.id))[(len(mine) - 1) // 2]


def _solve(change: Callable[[float], float], target: float, name: str) -> float:
    """Return the size at which `change`, which grows with it, meets `target`."""
    low, high = 0.0, max(target, 1e-6)
    if change(low) >= target:
        logger.warning("%s moves the residual by more than %.4g at any size", name, target)
        return low
    for _ in range(40):
        if change(high) >= target:
            break
        low, high = high, 2 * high
    else:
        raise LeaderboardError(
            f"{name} cannot move the residual by {target:.4g}: it hardly fires; draw other random"
            f" features (another seed), or use add or clamp"
        )
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if change(middle) < target else (low, middle)
    return float(f"{high:.6g}")


def _write_direction(folder: Path, seed: int, number: int, d_model: int, point: str) -> Path:
    """Return the file of a seeded direction of length 1; the same bytes in every process."""
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / f"seed{seed}_{number}_{point}.safetensors").absolute()
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    vector = torch.randn(d_model, generator=generator, dtype=torch.float64)
    unit = (vector / vector.norm()).float()
    if not path.is_file():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({"direction": unit}, temporary, metadata={"hook_point": point})
        os.replace(temporary, path)  # another process may write the same bytes now
    return path


def with_changes(rows: Sequence[Planned], calibration: Calibration) -> list[Planned]:
    """Return rows with mean change, promoted tokens and lexical flag."""
    found = []
    for planned in rows:
        if planned.plan is None:
            found.append(planned)
            continue
        promoted = calibration.promoted(planned.plan)
        more: dict[str, Any] = {"promoted": promoted, "lexical": lexical(promoted)}
        if planned.row.mean_change is None:
            more["mean_change"] = calibration.mean_change(planned.plan)
        found.append(replace(planned, row=Row(**{**planned.row.model_dump(), **more})))
    return found
