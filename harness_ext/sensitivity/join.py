"""Sensitivities as columns of a leaderboard: does a winning feature mean what its label says?"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness_ext.errors import SensitivityError
from harness_ext.leaderboard.board import Board, Row
from interventions.errors import SteeringError
from interventions.sae.io import load_sae
from interventions.spec import SAERef


def read_summary(path: Path) -> dict[str, Any]:
    """Return the content of a `sensitivity.json`.

    Raises:
        SensitivityError: the file is missing or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["subject"]["sae_hash"]
        if found["kind"] != "sensitivity" or not isinstance(found["features"], list):
            raise KeyError("kind")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SensitivityError(
            f"{path} is no summary of `sae-steered sensitivity` ({error}); give its"
            f" sensitivity.json"
        ) from None
    return found


def joined(board: Board, paths: Sequence[Path]) -> Board:
    """Return the board with `sensitivity` and `sensitivity_control` of the rows that are known.

    A row is known by its feature and by its SAE: the same place, or the same content.

    Args:
        board: of `read_board`.
        paths: summaries; of two about one feature the later one counts.

    Raises:
        SensitivityError: a file is no summary, or no row of the board is in any of them.
    """
    rows = {row.id: row for row in board.rows}
    seen: dict[str, dict[str, Any]] = {}
    for path in paths:
        summary = read_summary(path)
        by_feature = {row["feature"]: row for row in summary["features"]}
        for row in rows.values():
            found = by_feature.get(row.feature)
            if found is not None and row.kind == "feature" and _same_sae(row, summary["subject"]):
                seen[row.id] = found
    if not seen:
        raise SensitivityError(
            f"no row of '{board.info.name}' has a feature and SAE of"
            f" {', '.join(map(str, paths))}; evaluate its features with --feature-indices"
        )
    return dataclasses.replace(
        board,
        rows=tuple(
            row.model_copy(
                update={
                    "sensitivity": seen[row.id]["generated"]["value"],
                    "sensitivity_control": seen[row.id]["control"]["value"],
                }
            )
            if row.id in seen
            else row
            for row in board.rows
        ),
    )


def _same_sae(row: Row, subject: Mapping[str, Any]) -> bool:
    spec = row.spec or {}
    edits = spec.get("edits") or [{}]
    ref = edits[0].get("sae") or spec.get("sae")
    if isinstance(ref, str):
        ref = {"default": True} if ref == "default" else {"path": ref}
    if not ref:
        return False
    plain = {key: value for key, value in ref.items() if value is not None}
    return plain == subject["sae"] or _hash(json.dumps(plain)) == subject["sae_hash"]


@cache
def _hash(ref: str) -> str | None:
    try:
        return load_sae(SAERef.model_validate(json.loads(ref))).content_hash
    except (SteeringError, ValueError):
        return None  # it is not here any more: another one, as far as anybody can tell
