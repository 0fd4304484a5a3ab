"""What every row counts on every question of a task, as arrays that all statistics share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness_ext.counts import EXCLUSIONS, SIGNS, by_question, count_question
from harness_ext.detectors import DETECTORS, REGISTRY, Detector, HintView, Mention
from harness_ext.errors import MetricError
from harness_ext.metric_table import Metric
from harness_ext.records import Record
from harness_ext.verifier import same_answer

MISSING = ("truncated", "limit", "parse_error", "no_answer")
"""Statuses of a response without a usable answer."""

# Counts that do not depend on the text of responses that did not follow their hint.
_TEXT_FREE = ("n.", "right.", "n_lenient.", "lenient.", "verified.", "truncat", "no_answer",
              "tokens", "n_tokens", "reasoning_tokens", "n_reasoning_tokens", "boxed", "missing.",
              "wrong.", "correct.")  # fmt: skip
_SEARCHING = {"regex", "lexicon", "seed"}
"""Parts of the names of metrics by detectors that look for words."""
_NO = Mention(False, False)
_ALWAYS = ("truncated", "truncation_known", "no_answer", "n", "tokens", "n_tokens")


@dataclass(frozen=True)
class Side:
    """One row's counts on one task.

    Attributes:
        qids: question ids, sorted.
        arms: by question, the arms that were answered.
        counts: `(questions, keys)`, averaged over the samples of each question.
        keys: names of the columns.
    """

    qids: tuple[str, ...]
    arms: tuple[frozenset[str], ...]
    counts: np.ndarray
    keys: tuple[str, ...]

    def of(self, qids: Sequence[str]) -> "Side":
        """Return the same for some of the questions, in the order given."""
        where = {qid: i for i, qid in enumerate(self.qids)}
        rows = [where[qid] for qid in qids]
        return replace(
            self, qids=tuple(qids), arms=tuple(self.arms[i] for i in rows), counts=self.counts[rows]
        )

    def where(self, chosen: np.ndarray) -> "Side":
        """Return the same for the questions that a `(questions,)` mask chooses."""
        return self.of([qid for qid, take in zip(self.qids, chosen, strict=True) if take])

    def column(self, key: str) -> np.ndarray:
        """Return `(questions,)` counts, zeros for an unknown key."""
        if key not in self.keys:
            return np.zeros(len(self.qids))
        return self.counts[:, self.keys.index(key)]

    def sums(self) -> dict[str, float]:
        """Return the counts summed over questions."""
        return dict(zip(self.keys, self.counts.sum(axis=0).tolist(), strict=True))


def keys_of(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """Return the count keys that the metrics, and what stands beside them, read."""
    missing = [f"missing.{arm}" for arm in ("none", *SIGNS, "placebo")]
    hinted = [f"{s}.{name}" for s in SIGNS for name in ("hinted", "flip", "eligible")]
    excluded = [f"{s}.excluded.{reason}" for s in SIGNS for reason in EXCLUSIONS]
    used = (key for metric in metrics for key in metric.used_keys)
    return tuple(dict.fromkeys((*used, *_ALWAYS, *missing, *hinted, *excluded)))


def count_side(
    records: Iterable[Record],
    keys: Sequence[str],
    detectors: Mapping[str, Detector] = REGISTRY,
) -> Side:
    """Return a row's counts on one task.

    The texts of responses that cannot be flips are not searched where no key asks for them: a
    mention counts in a flip only, and searching is what costs time.

    Args:
        records: of one row and task, all arms and samples.
        keys: the counts that are needed.
        detectors: by name.

    Raises:
        MetricError: two records claim the same response.
    """
    lean = all(_text_free(key) for key in keys) and detectors is REGISTRY
    if lean:
        detectors = {n: _in_flips(d) if n in DETECTORS else d for n, d in detectors.items()}
    qids, arms, rows = [], [], []
    for qid, group in by_question(records).items():
        samples = len({record.sample for record in group})
        counts = count_question(group, detectors, flips_only=lean)
        for record in group:
            # lm-eval's own tasks may find the right answer in a response that was cut.
            if record.status in MISSING and not record.correct:
                counts[f"missing.{record.arm_name}"] += 1 / samples  # type: ignore[assignment]
        qids.append(qid)
        arms.append(frozenset(record.arm_name for record in group))
        rows.append([counts.get(key, 0.0) for key in keys])
    table = np.array(rows, dtype=float).reshape(len(rows), len(keys))
    return Side(tuple(qids), tuple(arms), table, tuple(keys))


def shared_questions(base: Side, other: Side) -> tuple[str, ...]:
    """Return the questions that both sides asked in the same arms, sorted."""
    arms = dict(zip(base.qids, base.arms, strict=True))
    found = zip(other.qids, other.arms, strict=True)
    return tuple(qid for qid, own in found if arms.get(qid) == own)


def check_ratio(metric: Metric) -> Metric:
    """Return the metric, if the statistics of a leaderboard can test it.

    Raises:
        MetricError: it is no ratio of two sums over questions.
    """
    if metric.special is not None or not metric.den:
        raise MetricError(
            f"metric '{metric.name}' is no ratio of two sums over questions, which a leaderboard"
            f" needs to test it; `sae-steered rescore` prints it"
        )
    return metric


def top_and_bottom(metric: Metric, side: Side) -> tuple[np.ndarray, np.ndarray]:
    """Return numerator and denominator of a metric by question, `(questions,)` each.

    All zeros where the metric is undefined on the whole side (its `needs` or `forbids`).
    """
    undefined = (metric.needs and not side.column(metric.needs).any()) or (
        metric.forbids and side.column(metric.forbids).any()
    )
    if undefined:
        return np.zeros(len(side.qids)), np.zeros(len(side.qids))
    top = sum((factor * side.column(key) for key, factor in metric.num), np.zeros(len(side.qids)))
    return top, side.column(metric.den)


def is_lexical(metric: str) -> bool:
    """Return whether a metric counts words, so that a row that promotes such words is unfair."""
    return bool(_SEARCHING & set(metric.split("_")))


def _text_free(key: str) -> bool:
    if key in ("n", "tokens", "n_tokens") or key.endswith(".asked"):
        return True
    return key.startswith(_TEXT_FREE) and ".agree." not in key and not key.startswith("seed.")


def _in_flips(detector: Detector) -> Detector:
    """Return a detector of words that answers at once about responses that are no flips."""

    def find(record: Record, hint: HintView) -> Mention | None:
        if record.arm == "hint" and same_answer(record.hint_target, record.answer):
            return detector(record, hint)
        return _NO

    return find
