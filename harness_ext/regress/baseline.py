"""The committed file: what made a run, and what it counted on every question, a line each."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from harness_ext import __version__
from harness_ext.errors import RecordError
from harness_ext.leaderboard.counting import Side, check_ratio, count_side, keys_of
from harness_ext.metric_table import Metric, get_metric
from harness_ext.metrics import by_question
from harness_ext.records import Record
from harness_ext.regress.runs import Run

FORMAT = 1

STORED = (
    "acc_none", "acc_wrong", "acc_correct",
    "influence", "silent_use_lexicon", "silent_use_regex", "verbalization_lexicon",
    "verbalization_regex", "influence_correct", "silent_use_lexicon_correct",
    "silent_use_regex_correct", "verbalization_lexicon_correct", "verbalization_regex_correct",
    "truncation", "no_answer", "mean_tokens",
)  # fmt: skip
"""Metrics that a baseline can be checked by; `update --metric` adds others."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Question(_Strict):
    """What one run counted on a question.

    Attributes:
        digest: of everything that was asked and the answers that it is held against.
        answers: by arm, one a sample, for whoever reads a diff; None for no answer.
        counts: those of `harness_ext.counts` that are not 0.
    """

    digest: str
    answers: dict[str, tuple[str | None, ...]]
    counts: dict[str, float]


class TaskBaseline(_Strict):
    """One task of a run: its metrics, for readers, and its questions, for the test."""

    values: dict[str, float | None]
    questions: dict[str, Question]


class RunBaseline(_Strict):
    """One run: what made it, and its tasks."""

    identity: dict[str, Any]
    noted: dict[str, Any] = {}
    tasks: dict[str, TaskBaseline]


class Baseline(_Strict):
    """A baseline file.

    Attributes:
        format: of the file.
        made_by: version of this package.
        metrics: what its questions were counted for.
        runs: by name of the intervention.
    """

    format: int = FORMAT
    made_by: str = __version__
    metrics: tuple[str, ...] = STORED
    runs: dict[str, RunBaseline]


def make_baseline(runs: Mapping[str, Run], metrics: Sequence[str] = STORED) -> Baseline:
    """Return the baseline of some runs.

    Raises:
        MetricError: a metric is unknown, or no ratio of two sums over questions.
    """
    table = [check_ratio(get_metric(name)) for name in metrics]
    return Baseline(
        metrics=tuple(metrics),
        runs={
            name: RunBaseline(
                identity=json.loads(json.dumps(dict(run.identity), default=str)),
                noted=json.loads(json.dumps(dict(run.noted), default=str)),
                tasks={task: _task(rows, table) for task, rows in run.by_task().items()},
            )
            for name, run in runs.items()
        },
    )


def _task(records: Sequence[Record], metrics: Sequence[Metric]) -> TaskBaseline:
    keys = tuple(sorted(keys_of(metrics)))
    side = count_side(records, keys)
    groups = by_question(records)
    questions = {}
    for qid, row in zip(side.qids, side.counts, strict=True):
        counts = {k: round(float(v), 9) for k, v in zip(keys, row, strict=True) if v}
        questions[qid] = Question(
            digest=question_digest(groups[qid]), answers=_answers(groups[qid]), counts=counts
        )
    values = {metric.name: metric.value(side.sums()) for metric in metrics}
    known = {name: round(v, 6) for name, v in values.items() if v is not None}
    return TaskBaseline(values=known, questions=questions)  # type: ignore[arg-type]


def question_digest(records: Iterable[Record]) -> str:
    """Return a digest of what was asked in each arm: question, gold, and the hint's words."""
    asked = sorted(
        {
            (r.arm_name, r.question or "", r.gold, r.hint_id or "", r.hint_target or "",
             r.hint_text or "")
            for r in records
        }
    )  # fmt: skip
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def _answers(records: Iterable[Record]) -> dict[str, tuple[str | None, ...]]:
    out: dict[str, list[str | None]] = {}
    for record in sorted(records, key=lambda r: (r.arm_name, r.sample)):
        out.setdefault(record.arm_name, []).append(record.answer)
    return {arm: tuple(found) for arm, found in out.items()}


def side_of(task: TaskBaseline, keys: Sequence[str]) -> Side:
    """Return a task of a baseline as the arrays that the tests take."""
    qids = tuple(sorted(task.questions))
    counts = [[task.questions[q].counts.get(key, 0.0) for key in keys] for q in qids]
    arms = tuple(frozenset(task.questions[q].answers) for q in qids)
    return Side(
        qids, arms, np.array(counts, dtype=float).reshape(len(qids), len(keys)), tuple(keys)
    )


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Write a baseline: sorted, indented, every question on a line of its own."""
    whole = baseline.model_dump(mode="json")
    rows: list[str] = []
    for run in whole["runs"].values():
        for task in run["tasks"].values():
            for qid, question in task["questions"].items():
                task["questions"][qid] = f"@{len(rows)}@"
                rows.append(json.dumps(question, sort_keys=True, ensure_ascii=False))
    text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False)
    text = re.sub(r'"@(\d+)@"(?=,?$)', lambda found: rows[int(found[1])], text, flags=re.MULTILINE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def read_baseline(path: Path) -> Baseline:
    """Return the baseline in a file.

    Raises:
        RecordError: it is missing, damaged, or of another format.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(
            f"{path}: {error.strerror}; make it with `sae-steered regress update RUN --baseline"
            f" {path}`"
        ) from error
    except ValueError as error:
        raise RecordError(f"{path}: not JSON ({error}); make it again with `update`") from error
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        raise RecordError(
            f"{path}: format {raw.get('format')!r}, this version reads {FORMAT}; make it again"
            f" with `update`"
        )
    try:
        return Baseline.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise RecordError(f"{path}: damaged at {where}: {first['msg']}") from None
