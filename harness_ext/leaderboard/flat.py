"""A leaderboard as one flat table: a line for each row, task and metric, and all that made it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness_ext.leaderboard.board import BASELINE, Board, Info, Row, TaskInfo
from harness_ext.leaderboard.results import Cell, Family, Interval, Results
from interventions.errors import HookPointError
from interventions.hook_points import parse_hook_point

RECOMPUTE = "sae-steered leaderboard score FOLDER --from-store"
"""The command that makes every number again from the responses."""

_INTERVALS = ("base", "value", "effect", "effect_all", "effect_dev")
_PLAIN = tuple(
    name for name in Cell.model_fields if name not in (*_INTERVALS, "row", "task", "metric")
)
# A row's own `value` is that of its edit; a cell's is the metric's.
_RENAMED = {"id": "row", "value": "edit_value"}
_JSON_ROW = ("spec",)


def flat_rows(board: Board, results: Results) -> list[dict[str, Any]]:
    """Return a line for every cell, and one for the baseline on every task by every metric.

    Each holds the cell, its row, the task and what ran it, so that a line that is copied
    elsewhere still says what it is. Lists are joined by `, `; what is nested is JSON.
    """
    tasks = {task.name: task for task in board.info.tasks}
    rows = {row.id: _row(row) for row in board.rows}
    run = _info(board.info)
    asked = {name: _task(task) for name, task in tasks.items()}
    empty = dict.fromkeys(_task(TaskInfo(name="", n_questions=0)))
    return [
        {**rows[cell.row], **_cell(cell), **asked.get(cell.task, empty), **run}
        for cell in [*baseline_cells(board, results), *results.cells]
    ]


def columns(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all columns, in the order in which they come first."""
    return list(dict.fromkeys(key for line in lines for key in line))


def baseline_cells(board: Board, results: Results) -> Iterator[Cell]:
    """Yield the baseline on every task by every metric: the value that rows are compared with.

    Rows may lack questions; the baseline's value is the one with the most questions.
    """
    found = next((row.id for row in board.rows if row.kind == "baseline"), BASELINE)
    best: dict[tuple[str, str], Cell] = {}
    for cell in results.cells:
        old = best.get((cell.task, cell.metric))
        if old is None or cell.n_test > old.n_test:
            best[cell.task, cell.metric] = cell
    for (task, metric), cell in best.items():
        yield Cell(
            row=found,
            task=task,
            metric=metric,
            n_test=cell.n_test,
            n_dev=cell.n_dev,
            base=cell.base,
            value=cell.base,
            truncation_base=cell.truncation_base,
            truncation=cell.truncation_base,
            no_answer_base=cell.no_answer_base,
            no_answer=cell.no_answer_base,
            tokens_base=cell.tokens_base,
            tokens=cell.tokens_base,
            flags=() if cell.base.value is not None else ("undefined",),
        )


def layer_of(row: Row) -> int | None:
    """Return the layer that a row edits, None for rows without a single hook point."""
    if row.hook_point is None:
        return None
    try:
        return parse_hook_point(row.hook_point).layer
    except HookPointError:
        return None


def families(results: Results) -> list[dict[str, Any]]:
    """Return what was tested together, a line each."""
    return [_family(family) for family in results.families]


def _family(family: Family) -> dict[str, Any]:
    return {**family.model_dump(), "discoveries": ", ".join(family.discoveries)}


def _row(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.model_dump(mode="json").items():
        if key in _JSON_ROW:
            value = None if value is None else _json(value)
        elif isinstance(value, list):
            value = ", ".join(value)
        found[_RENAMED.get(key, key)] = value
        if key == "hook_point":
            found["layer"] = layer_of(row)
    return found


def _cell(cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = {"task": cell.task, "metric": cell.metric}
    for name in _INTERVALS:
        interval: Interval = getattr(cell, name)
        found |= {name: interval.value, f"{name}_lo": interval.lo, f"{name}_hi": interval.hi}
    for name in _PLAIN:
        value = getattr(cell, name)
        found[name] = ", ".join(value) if isinstance(value, tuple) else value
    return found


def _task(task: TaskInfo) -> dict[str, Any]:
    return {
        "n_questions": task.n_questions,
        "repeats": task.repeats,
        "gen_kwargs": _json(task.gen_kwargs),
        "task_metadata": _json(task.metadata),
        "task_stage": task.stage,
    }


def _info(info: Info) -> dict[str, Any]:
    return {
        "leaderboard": info.name,
        "model": info.model,
        "model_identity": info.model_identity,
        "backend": info.backend,
        "dtype": info.dtype,
        "engine": _json(info.engine),
        "versions": _json(info.versions),
        "seed": info.seed,
        "split_seed": info.split_seed,
        "dev_share": info.dev_share,
        "created": info.created,
    }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
