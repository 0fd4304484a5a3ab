"""Paired one-sided tests of a loss against a margin."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, nct, norm
from scipy.stats import t as student

from harness_ext.leaderboard.power import smallest_mean_difference
from harness_ext.leaderboard.resample import Pairs, effects, permutation_p, standard_errors


@dataclass(frozen=True)
class Loss:
    """How much worse a run is than the baseline, on the same questions.

    Attributes:
        n: questions.
        loss: how much worse, in the metric's unit; below 0 it is better.
        p_worse: one-sided p-value of "the loss is at most the margin"; small means regressed.
        p_safe: one-sided p-value of "the loss is at least the margin"; small means proven safe.
        sd: standard deviation by question of the paired difference.
        fixed, broken: discordant questions of an accuracy with one sample, else None.
        test: what made `p_worse`.
    """

    n: int
    loss: float
    p_worse: float
    p_safe: float
    sd: float
    fixed: int | None
    broken: int | None
    test: str


def measure_loss(pairs: Pairs, margin: float, *, higher_is_better: bool, draws: int) -> Loss | None:
    """Return the loss of a run and its tests, None where the metric is undefined.

    "Worse by more than the margin" needs two proofs, and `p_worse` is the weaker one: that there
    is a loss at all, by a test that is exact for any number of questions (McNemar, or swaps of
    the two sides of each question), and that it exceeds the margin, by Tango's score test for
    accuracies with one sample a question, by Student's t on the linearised paired difference
    for all else. So few questions cannot fail a run by an approximation.

    Args:
        pairs: the counts of one run; baseline first.
        margin: loss that is accepted.
        higher_is_better: of the metric.
        draws: swaps.
    """
    n = len(pairs.top_base)
    change = float(effects(pairs)[0]) if n else math.nan
    if math.isnan(change):
        return None
    loss = -change if higher_is_better else change
    error = float(standard_errors(pairs)[0])
    sd = error * math.sqrt(n)
    top = pairs.top[:, 0]
    binary = bool(
        np.isin(np.concatenate([top, pairs.top_base]), (0.0, 1.0)).all()
        and (pairs.bottom == 1.0).all()
        and (pairs.bottom_base == 1.0).all()
    )
    if binary:
        up, down = int((top > pairs.top_base).sum()), int((top < pairs.top_base).sum())
        fixed, broken = (up, down) if higher_is_better else (down, up)
        exact = mcnemar_worse(fixed, broken)
        worse = max(exact, tango(broken, fixed, n, margin))
        safe = 1 - tango(broken, fixed, n, margin)
        return Loss(n, loss, worse, safe, sd, fixed, broken, "exact McNemar and Tango")
    two_sided = float(permutation_p(pairs, draws=draws, most=10 * draws, seed=0)[0])
    exact = two_sided / 2 if loss > 0 else 1.0
    if not math.isfinite(error):  # one question says nothing of the spread
        return Loss(n, loss, 1.0, 1.0, math.nan, None, None, "permutation and t")
    beyond = _t_worse(loss - margin, error, n)
    return Loss(n, loss, max(exact, beyond), 1 - beyond, sd, None, None, "permutation and t")


def mcnemar_worse(fixed: int, broken: int) -> float:
    """Return the exact one-sided p-value that no more questions broke than were fixed."""
    if fixed + broken == 0:
        return 1.0
    return float(binomtest(broken, fixed + broken, 0.5, alternative="greater").pvalue)


def tango(broken: int, fixed: int, n: int, margin: float) -> float:
    """Return the one-sided p-value of "the share broken minus the share fixed is at most margin".

    The score test: the variance is that under the hypothesis, so it holds where no or few
    questions changed.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", Statistics in Medicine 17.
    """
    a = 2 * n
    b = -broken - fixed + (2 * n - broken + fixed) * margin
    c = -fixed * margin * (1 - margin)
    q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * q + margin * (1 - margin))
    excess = broken - fixed - n * margin
    if variance <= 0:
        return 1.0 if excess <= 0 else 0.0
    return float(norm.sf(excess / math.sqrt(variance)))


def _t_worse(excess: float, error: float, n: int) -> float:
    if error <= 1e-12:
        return 1.0 if excess <= 1e-12 else 0.0
    return float(student.sf(excess / error, n - 1))


def visible_loss(sd: float, n: int, margin: float, level: float) -> float | None:
    """Return the smallest loss that the gate sees with 80 % power, None if it cannot be said.

    The margin, and beyond it what a one-sided t-test of n questions at that level sees.

    Args:
        sd: by question, of the paired difference.
        n: questions.
        margin: loss that is accepted.
        level: one-sided.
    """
    more = smallest_mean_difference(sd, n, level=min(2 * level, 0.999))
    return None if more is None else margin + more


def power_against(loss: float, sd: float, n: int, margin: float, level: float) -> float:
    """Return the chance that the gate sees a loss; see `visible_loss`."""
    bar = float(student.isf(level, n - 1))
    return float(nct.sf(bar, n - 1, (loss - margin) / sd * math.sqrt(n)))
