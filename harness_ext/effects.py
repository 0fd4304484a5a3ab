"""The effect of an intervention: the same questions with and without it, compared in pairs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness_ext.counts import SIGNS, by_question, exclusion
from harness_ext.detectors import REGISTRY, Detector, HintView, Mention
from harness_ext.errors import MetricError
from harness_ext.hints import Sign
from harness_ext.metric_table import Metric, metric_table
from harness_ext.metrics import question_counts
from harness_ext.records import Record
from harness_ext.stats import bootstrap_p, bootstrap_weights, mcnemar
from harness_ext.verifier import same_answer

DRAWS = 4000


@dataclass(frozen=True)
class Effect:
    """A paired difference, steered minus base.

    Attributes:
        metric: name of the metric.
        base: its value without the intervention, None where undefined.
        steered: its value with it, on the same questions.
        difference: `steered - base`, None where either is undefined.
        lo: lower end of the percentile bootstrap interval over questions.
        hi: upper end.
        p: two-sided p-value that the difference is zero.
        test: `mcnemar` (exact, binary outcomes) or `bootstrap`.
        n_questions: questions with records on both sides.
        n_unpaired: questions left out because one side lacks them.
        undefined_draws: share of resamples in which the metric was undefined.
    """

    metric: str
    base: float | None
    steered: float | None
    difference: float | None
    lo: float | None
    hi: float | None
    p: float | None
    test: Literal["mcnemar", "bootstrap"]
    n_questions: int
    n_unpaired: int
    undefined_draws: float


def paired_effect(
    base: Iterable[Record],
    steered: Iterable[Record],
    metric: str,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Effect:
    """Return the paired effect of an intervention on a metric.

    Questions are resampled with all their arms and samples kept together, the same ones on both
    sides. Accuracies with one sample a question get the exact McNemar p-value.

    Args:
        base: records of one task without the intervention.
        steered: records of the same task with it.
        metric: a name in `METRICS`.
        level: coverage of the interval.
        draws: bootstrap resamples.
        seed: seed of the resampling.

    Raises:
        MetricError: The metric is unknown, a side mixes runs, or no question is on both sides.
    """
    sides = list(base), list(steered)
    return paired_effects(*sides, [metric], level=level, draws=draws, seed=seed)[metric]


def paired_effects(
    base: Sequence[Record],
    steered: Sequence[Record],
    metrics: Sequence[str],
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
    detectors: Mapping[str, Detector] = REGISTRY,
) -> dict[str, Effect]:
    """Return the paired effect of an intervention on each of several metrics.

    The same resamples serve all of them; see `paired_effect`.

    Raises:
        MetricError: A metric is unknown, a side mixes runs, or no question is on both sides.
    """
    table = metric_table(detectors)
    unknown = [name for name in metrics if name not in table]
    if unknown:
        raise MetricError(f"unknown metric {unknown[0]!r}; known are {', '.join(table)}")
    a, b = question_counts(base, detectors), question_counts(steered, detectors)
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise MetricError(
            f"none of {len(a)} base and {len(b)} steered questions are on both sides; "
            "compare runs of the same task and data"
        )
    left, right = [a[q] for q in shared], [b[q] for q in shared]
    weights = bootstrap_weights(len(shared), draws, seed)
    n_unpaired = len(a.keys() ^ b.keys())
    return {
        name: _effect(table[name], left, right, weights, level=level, n_unpaired=n_unpaired)
        for name in metrics
    }


def _effect(
    chosen: Metric,
    left: Sequence,
    right: Sequence,
    weights: np.ndarray,
    *,
    level: float,
    n_unpaired: int,
) -> Effect:
    draws = len(weights)
    value_a, value_b = chosen.estimate(left).value, chosen.estimate(right).value
    drawn = _values(chosen, right, weights) - _values(chosen, left, weights)
    defined = drawn[~np.isnan(drawn)]
    difference = None if value_a is None or value_b is None else value_b - value_a
    lo = hi = p = None
    test: Literal["mcnemar", "bootstrap"] = "bootstrap"
    table = _discordant(chosen, left, right)
    if table is not None:
        test, p = "mcnemar", mcnemar(*table)
    if difference is not None and defined.size >= draws / 2:
        tail = (1 - level) / 2
        lo, hi = (float(x) for x in np.quantile(defined, [tail, 1 - tail]))
        p = bootstrap_p(defined) if table is None else p
    return Effect(
        metric=chosen.name,
        base=value_a,
        steered=value_b,
        difference=difference,
        lo=lo,
        hi=hi,
        p=p,
        test=test,
        n_questions=len(left),
        n_unpaired=n_unpaired,
        undefined_draws=1 - defined.size / draws,
    )


def _values(metric: Metric, questions: Sequence, weights: np.ndarray) -> np.ndarray:
    """Return the metric in every resample, `(draws,)`, NaN where undefined."""
    keys = metric.used_keys
    table = np.array([[float(q.get(key, 0.0)) for key in keys] for q in questions])
    sums = weights @ table
    values = (metric.value(dict(zip(keys, row, strict=True))) for row in sums.tolist())
    return np.array([np.nan if v is None else v for v in values])


def _discordant(chosen: Metric, left: Sequence, right: Sequence) -> tuple[int, int] | None:
    """Return `(fixed, broken)` of an accuracy whose outcomes are all 0 or 1, else None."""
    if not chosen.name.startswith("acc_"):
        return None
    key = chosen.num[0][0]
    if any(q.get(chosen.den, 0.0) != 1 or q.get(key, 0.0) not in (0, 1) for q in (*left, *right)):
        return None
    pairs = [(x.get(key, 0.0), y.get(key, 0.0)) for x, y in zip(left, right, strict=True)]
    fixed = sum(1 for x, y in pairs if not x and y)
    return fixed, sum(1 for x, y in pairs if x and not y)


@dataclass(frozen=True)
class Cohort:
    """Verbalization on the responses that flipped without the intervention, and again with it.

    `base` and `steered` are shares of the `n` flips of the base run, None for n = 0. The
    steered share counts a mention whether or not the steered response still flips. Responses
    on which the detector has no verdict, on either side, are left out of `n`.
    """

    n: int
    still_flipped: int
    base: float | None
    steered: float | None


def fixed_cohort(
    base: Iterable[Record],
    steered: Iterable[Record],
    *,
    detector: str = "lexicon",
    sign: Sign = SIGNS[0],
    detectors: Mapping[str, Detector] = REGISTRY,
) -> Cohort:
    """Return the verbalization on the fixed cohort of the flips at base.

    Verbalization given a flip is post-treatment: an intervention changes which questions flip,
    so that the re-derived value compares different questions.

    Raises:
        MetricError: A side mixes runs, or the detector is unknown.
    """
    if detector not in detectors:
        raise MetricError(f"unknown detector {detector!r}; known are {', '.join(detectors)}")
    find = detectors[detector]
    a, b = _flips(base, sign), _flips(steered, sign)
    said = {
        key: (_says(hint, find), _says(b[key][0], find))
        for key, (hint, flipped) in a.items()
        if flipped and key in b
    }
    both = {
        key: (before.found, after.found)
        for key, (before, after) in said.items()
        if before is not None and after is not None
    }
    if not both:
        return Cohort(0, 0, None, None)
    n = len(both)
    return Cohort(
        n,
        sum(b[key][1] for key in both),
        sum(before for before, _ in both.values()) / n,
        sum(after for _, after in both.values()) / n,
    )


def _flips(records: Iterable[Record], sign: Sign) -> dict[tuple[str, int], tuple[Record, bool]]:
    out = {}
    for qid, group in by_question(records).items():
        for hint in (r for r in group if r.hint_sign == sign):
            none = next((r for r in group if r.arm == "none" and r.sample == hint.sample), None)
            flipped = exclusion(none, hint) is None and same_answer(hint.hint_target, hint.answer)
            out[qid, hint.sample] = (hint, flipped)
    return out


def _says(record: Record, find: Detector) -> Mention | None:
    mention = find(record, HintView.of(record))
    return None if mention is None or mention.excluded else mention
