"""Generate: the requests of all rows, through one engine together, into the store."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from harness_ext.leaderboard.expand import Planned
from harness_ext.leaderboard.questions import Task
from harness_ext.leaderboard.scoring import Scored, score
from harness_ext.steered_lm import SteeredLM, fingerprint
from interventions.plan import Plan

MOST = 100_000
"""Requests that are handed to the model at once; more would fill the memory, not the queue."""


def prompt_of(planned: Planned) -> str:
    """Return the id of the prompt that a row adds, '' for none."""
    return planned.row.id.removeprefix("prompt-") if planned.row.kind == "prompt" else ""


def answer_and_score(
    lm: SteeredLM,
    tasks: Sequence[Task],
    rows: Sequence[tuple[Planned, Plan | None]],
    spent: Callable[[float], None] = lambda seconds: None,
) -> dict[str, dict[str, Scored]]:
    """Return what every row did, by row and task.

    What the model's journal holds is read; the rest is generated, all rows together where the
    engine can, and kept as it is made.

    Args:
        lm: the model, with a journal.
        tasks: with their requests.
        rows: with the plans of `lm.prepare`.
        spent: told the seconds that the model took, each time it was asked.

    Raises:
        SteeringError, HarnessError: a request cannot be answered; what was made is kept.
    """
    found: dict[str, dict[str, Scored]] = {}
    for some in _chunks(tasks, rows):
        asked = {
            planned.row.id: {task.name: task.of_row(prompt_of(planned)) for task in tasks}
            for planned, _ in some
        }
        started = time.monotonic()
        for kind in dict.fromkeys(kind for task in tasks for kind in _kinds(task)):
            _answer(lm, kind, [(plan, asked[planned.row.id]) for planned, plan in some])
        spent(time.monotonic() - started)
        for planned, plan in some:
            name = fingerprint(plan) if plan else "none"
            found[planned.row.id] = {
                task.name: score(task, asked[planned.row.id][task.name], name) for task in tasks
            }
    return found


def _kinds(task: Task) -> list[str]:
    return list(dict.fromkeys(request.request_type for request in task.requests[""]))


def _answer(
    lm: SteeredLM, kind: str, rows: Sequence[tuple[Plan | None, Mapping[str, list[Instance]]]]
) -> None:
    """Answer the requests of one kind, each as often as its task repeats it."""
    wanted: list[tuple[Plan | None, list[Instance]]] = [
        (
            plan,
            [
                request
                for requests in by_task.values()
                for request in requests
                if request.request_type == kind
                for _ in range(request.repeats or 1)
            ],
        )
        for plan, by_task in rows
    ]
    answers: list[list[Any]] = lm.answer_rows(kind, wanted)
    for (_, requests), found in zip(wanted, answers, strict=True):
        for request, answer in zip(requests, found, strict=True):
            request.resps.append(answer)


def _chunks(
    tasks: Sequence[Task], rows: Sequence[tuple[Planned, Plan | None]]
) -> Iterator[list[tuple[Planned, Plan | None]]]:
    a_row = sum(request.repeats or 1 for task in tasks for request in task.requests[""])
    size = max(1, MOST // max(a_row, 1))
    for start in itertools.count(0, size):
        if start >= len(rows):
            return
        yield list(rows[start : start + size])
