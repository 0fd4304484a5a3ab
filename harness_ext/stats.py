"""Intervals, tests and standard errors; the question is always the unit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from harness_ext.errors import MetricError


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error; None where undefined, never 0 or NaN instead."""

    value: float | None
    se: float | None


def mcnemar(fixed: int, broken: int, *, mid_p: bool = False) -> float:
    """Return the exact two-sided McNemar p-value of two discordant counts.

    Args:
        fixed: questions wrong before and right after.
        broken: questions right before and wrong after.
        mid_p: count half the probability of the observed table.
    """
    n = fixed + broken
    if n == 0:
        return 1.0
    p = float(binomtest(min(fixed, broken), n, 0.5).pvalue)
    if mid_p:
        p -= float(math.comb(n, fixed) / 2**n)
    return min(p, 1.0)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float] | None:
    """Return the Wilson interval of a rate, or None for n = 0."""
    if n == 0:
        return None
    interval = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    lo, hi = np.asarray(interval, dtype=float).tolist()
    return lo, hi


def bh_q_values(p_values: Sequence[float]) -> list[float]:
    """Return the Benjamini-Hochberg q-value of each p-value, in the order given."""
    if not p_values:
        return []
    _, q_values, *_ = multipletests(list(p_values), method="fdr_bh")
    return np.asarray(q_values, dtype=float).tolist()


def clustered_se(clusters: Sequence[Sequence[float]], *, finite: bool = False) -> float | None:
    """Return the standard error of the mean over all values, clustered; None for one cluster.

    Args:
        clusters: values by cluster (the samples of a question).
        finite: apply the finite-cluster factor G/(G-1).

    Source: Miller 2024, "Adding error bars to evals", equation 4.
    """
    if len(clusters) < 2:
        return None
    values = [v for cluster in clusters for v in cluster]
    mean = sum(values) / len(values)
    total = sum(sum(v - mean for v in cluster) ** 2 for cluster in clusters)
    factor = len(clusters) / (len(clusters) - 1) if finite else 1.0
    return math.sqrt(total * factor) / len(values)


def pass_at_k(n: int, correct: int, k: int) -> float | None:
    """Return the unbiased pass@k of one question, or None where fewer than k samples exist.

    Source: Chen et al. 2021 (Codex), 1 - C(n-c, k) / C(n, k).
    """
    if n < k or k < 1:
        return None
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def ratio(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Return sum(numerators) / sum(denominators) and its delta-method standard error.

    One pair a question, (0, 0) for a question that does not take part. With one sample a
    question the value is the mean over the questions that take part, and the error the usual
    one of that mean (n - 1). Undefined for denominators of 0; the error also for one question.
    """
    total = sum(den for _, den in pairs)
    if total == 0:
        return Estimate(None, None)
    value = sum(num for num, _ in pairs) / total
    active = [(num, den) for num, den in pairs if den]
    g = len(active)
    if g < 2:
        return Estimate(value, None)
    spread = sum((num - value * den) ** 2 for num, den in active)
    return Estimate(value, math.sqrt(spread * g / (g - 1)) / total)


def bootstrap_weights(n: int, draws: int, seed: int) -> np.ndarray:
    """Return `(draws, n)` counts of how often each of n questions is in each resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1.0 / n), size=draws).astype(float)


def bootstrap_p(differences: np.ndarray) -> float:
    """Return the two-sided bootstrap p-value that a difference is zero.

    Args:
        differences: `(draws,)` defined bootstrap differences.

    Raises:
        MetricError: There are none.
    """
    if differences.size == 0:
        raise MetricError("no defined bootstrap draw; the metric is undefined on these records")
    below = (1 + int((differences <= 0).sum())) / (differences.size + 1)
    above = (1 + int((differences >= 0).sum())) / (differences.size + 1)
    return min(1.0, 2 * min(below, above))
