"""All rows of a leaderboard, measured once and kept, so that every process runs the same ones."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness_ext.leaderboard.board import Row
from harness_ext.leaderboard.calibrate import Calibration, calibrate
from harness_ext.leaderboard.config import Config, LeaderboardError
from harness_ext.leaderboard.expand import (
    Features,
    Planned,
    candidates,
    fixed_rows,
    null_features,
)
from harness_ext.leaderboard.nulls import Nulls, with_changes
from interventions.errors import ModelNotFoundError, SAENotFoundError
from interventions.plan import ModelFacts, make_plan
from interventions.spec import parse_spec

logger = logging.getLogger(__name__)

PLAN = "plan.json"


def all_rows(
    config: Config, features: Features, model: ModelFacts, folder: Path
) -> tuple[list[Planned], str]:
    """Return every row, the baseline first, and when they were planned (UTC, ISO 8601).

    The first process that plans a leaderboard in a folder writes its rows there; another one, or
    a later one, takes them: a value that was found by measuring differs in its last bits from one
    machine to the next, and would not find its responses again. They are planned anew where the
    configuration changed, or a file that it names: an SAE, a spec, a list of features.

    Raises:
        LeaderboardError: the rows cannot be made, or the folder cannot be written.
        SteeringError: a spec does not fit the model.
    """
    path = folder / PLAN
    tried = candidates(config, features, model)
    digest = _digest(config, features, tried)
    if (known := _read(path, digest, features, model)) is not None:
        return known
    made = _plan(config, features, model, folder, tried)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    data = {
        "digest": digest,
        "created": created,
        "rows": [planned.row.model_dump(mode="json", exclude_defaults=True) for planned in made],
    }
    temporary = path.with_name(f".{PLAN}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        if path.exists():
            os.replace(temporary, path)  # it was of another configuration, or cannot be used
        else:
            try:
                os.link(temporary, path)  # unlike a rename it fails if another was faster
            except FileExistsError:
                logger.info("another process has planned the same rows")
            temporary.unlink()
    except OSError as error:
        raise LeaderboardError(
            f"'{folder}' cannot be written: {error.strerror or error}; give another --output"
        ) from None
    return _read(path, digest, features, model) or (made, created)


def _digest(config: Config, features: Features, tried: Sequence[Planned]) -> str:
    """Return what names the rows: the configuration, and what its files hold now.

    The fingerprints of the candidates know the bytes of every SAE and spec.
    """
    drawn = null_features(config, features) if config.edits else []
    names = [planned.row.fingerprint for planned in tried]
    text = json.dumps([config.digest(), names, drawn])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(
    path: Path, digest: str, features: Features, model: ModelFacts
) -> tuple[list[Planned], str] | None:
    """Return the rows that were planned for this configuration, None if there are none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["digest"] != digest:
            logger.warning(
                "%s holds another leaderboard: its rows are planned anew, its responses stay in"
                " the store",
                path.parent,
            )
            return None
        rows = [Row.model_validate(row) for row in data["rows"]]
        return [_planned(row, features, model) for row in rows], str(data["created"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ValidationError, SAENotFoundError) as error:
        first = str(error).splitlines()[0]
        logger.warning("%s cannot be used (%s): its rows are planned anew", path, first)
        return None


def _planned(row: Row, features: Features, model: ModelFacts) -> Planned:
    if row.spec is None:
        return Planned(row)
    plan = make_plan(parse_spec(row.spec, source=row.id), model, load=features.load)
    return Planned(row, plan)


def _plan(
    config: Config, features: Features, model: ModelFacts, folder: Path, tried: list[Planned]
) -> list[Planned]:
    calibration = _calibration(config, tried) if tried else None
    if calibration is not None:
        tried = with_changes(tried, calibration)
    nulls = Nulls(config, features, model, calibration, folder).rows(tried)
    if calibration is not None:
        nulls = with_changes(nulls, calibration)
    fixed = fixed_rows(config)
    return [*fixed[:1], *tried, *nulls, *fixed[1:]]


def _calibration(config: Config, tried: Sequence[Planned]) -> Calibration | None:
    """Return what is read of the weights; None where they are not here and need not be."""
    args: Mapping[str, Any] = config.model
    if config.backend == "server" and not args.get("pretrained"):
        error: str | Exception = "`model` names no `pretrained`"
    else:
        points = [layer.hook_point for one in tried if one.plan for layer in one.plan.layers]
        try:
            return calibrate(args, points)
        except ModelNotFoundError as missing:
            error = missing
    wanted = config.nulls
    if (wanted.random_features or wanted.random_directions) and wanted.mean_change is None:
        raise LeaderboardError(
            f"random rows are scaled with the model's weights, which are not here ({error}); name"
            f" them, or give nulls.mean_change"
        )
    logger.warning("mean changes and promoted tokens are not measured: %s", error)
    return None
