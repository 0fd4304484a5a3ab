"""Score: responses from the store, filled into lm-eval's requests, become records and metrics."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from harness_ext.errors import RecordError
from harness_ext.generation import Generation
from harness_ext.leaderboard.questions import Task
from harness_ext.records import DIAG_KEY, Record, records_of_sample
from harness_ext.verifier import Status

# What lm-eval's tasks call the verdict on a single question; the first one that is there counts.
VERDICTS = ("exact_match", "acc", "acc_norm", "prompt_level_strict_acc", "em")
NO_ANSWER = "[invalid]"
"""What lm-eval's filters make of a response in which they find no answer."""


@dataclass(frozen=True)
class Scored:
    """One row on one task.

    Attributes:
        records: one a response.
        metrics: lm-eval's own, as `metric,filter`.
    """

    records: tuple[Record, ...]
    metrics: dict[str, float | None]


def score(task: Task, requests: Sequence[Instance], intervention: str) -> Scored:
    """Return what a row did on a task, as lm-eval's own evaluation would find it.

    Tasks that keep no records of ours get one a question, where they have a verdict that is 0 or
    1 (`exact_match`, `acc`, ...): right or wrong, and no hint; one that used up its budget is
    truncated, and may be right. Others have metrics alone.

    Args:
        task: with its requests.
        requests: of `Task.of_row`, answered.
        intervention: fingerprint of the row.
    """
    lm_task = task.task
    lm_task._instances = list(requests)
    lm_task.apply_filters()
    by_doc: dict[Any, list[Instance]] = defaultdict(list)
    for request in requests:
        by_doc[request.doc_id].append(request)
    for some in by_doc.values():
        some.sort(key=lambda request: request.idx)
    records: list[Record] = []
    metrics: dict[str, float | None] = {}
    for number, name in enumerate(requests[0].filtered_resps):
        values: dict[str, list[Any]] = defaultdict(list)
        for doc_id in sorted(by_doc):
            some = by_doc[doc_id]
            doc = dict(some[0].doc) if isinstance(some[0].doc, dict) else some[0].doc
            found = lm_task.process_results(doc, [one.filtered_resps[name] for one in some])
            for metric, value in found.items():
                values[metric].append(value)
            if number == 0:
                records += _records(task, doc, some, found, intervention)
        means = lm_task.aggregation()
        for metric, column in values.items():
            if not metric.endswith("_stderr"):
                metrics[f"{metric},{name}"] = _aggregate(means.get(metric), column)
    return Scored(tuple(records), metrics)


def _aggregate(aggregation: Callable[[list[Any]], Any] | None, column: list[Any]) -> float | None:
    if aggregation is None:
        return None
    value = aggregation(column)
    return float(value) if isinstance(value, int | float) else None


def _records(
    task: Task, doc: Any, some: Sequence[Instance], found: dict[str, Any], intervention: str
) -> list[Record]:
    if isinstance(doc, dict) and DIAG_KEY in doc:
        try:
            return records_of_sample({"doc": doc, "resps": [one.resps for one in some]})
        except RecordError as error:
            raise RecordError(f"{task.name}: {error}") from None
    verdict = next((found[name] for name in VERDICTS if name in found), None)
    if not isinstance(verdict, bool | int | float) or verdict not in (0, 1):
        return []
    first = some[0].resps[0]
    meta: dict[str, Any] = {}
    if isinstance(first, Generation):
        meta = {
            "n_tokens": first.n_tokens,
            "n_reasoning_tokens": first.n_reasoning_tokens,
            "finish_reason": first.finish_reason,
            "seed": first.seed,
            "reasoning": first.reasoning,
            "final": first.final,
        }
    else:
        meta = {"reasoning": "", "final": "; ".join(str(one.resps[0]) for one in some)}
    answer = str(some[0].filtered_resps[next(iter(some[0].filtered_resps))])
    status: Status = "no_answer" if answer == NO_ANSWER else "answered"
    if meta.get("finish_reason") == "length":
        status = "truncated"
    return [
        Record(
            task=task.name,
            qid=f"{task.name}/{some[0].doc_id}",
            arm="none",
            gold=str(task.task.doc_to_target(doc)),
            answer=None if status == "no_answer" else answer,
            status=status,
            correct=bool(verdict),
            intervention=intervention,
            **meta,
        )
    ]
