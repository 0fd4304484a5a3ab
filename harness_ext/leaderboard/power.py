"""The smallest difference that a number of questions shows."""

import math
from functools import lru_cache
from typing import cast

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, nct
from scipy.stats import t as student

POWER = 0.8


def smallest_mean_difference(
    sd: float, n: int, *, level: float = 0.05, power: float = POWER
) -> float | None:
    """Return the smallest mean paired difference that a t-test of n questions shows.

    `sd` times the effect size at which the noncentral t distribution has that power: the exact
    form of (z(1 - level/2) + z(power)) sd / sqrt(n). statsmodels' `TTestPower` finds the same
    values, and fails to converge for some.

    Args:
        sd: standard deviation, over questions, of the (linearised) paired difference.
        n: questions.
        level: of the two-sided test.
        power: chance of seeing the difference.

    Returns None for fewer than two questions or an sd that is undefined or 0.
    """
    if n < 2 or not math.isfinite(sd) or sd <= 0:
        return None
    return sd * _effect_size(n, level, power)


def power_of_mean(n: int, sd: float, difference: float, *, level: float = 0.05) -> float:
    """Return the chance that a t-test of n paired differences sees their mean.

    The other tail, a significant difference of the wrong sign, is no success.
    """
    bar = float(student.isf(level / 2, n - 1))
    return float(nct.sf(bar, n - 1, difference / sd * math.sqrt(n)))


@lru_cache(maxsize=4096)
def _effect_size(n: int, level: float, power: float) -> float:
    def lacking(size: float) -> float:
        return power_of_mean(n, 1.0, size, level=level) - power

    top = 1.0
    while lacking(top) < 0:
        top *= 2
    return float(cast(float, brentq(lacking, 0.0, top, xtol=1e-6)))


@lru_cache(maxsize=8192)
def smallest_accuracy_difference(
    n: int, discordant: float, *, level: float = 0.05, power: float = POWER
) -> float | None:
    """Return the smallest difference of accuracies that the exact McNemar test of n shows.

    The number of discordant questions is binomial with share `discordant + difference**2` (at
    most 1, at least the difference), of which (1 + difference/share)/2 change in the direction
    of the difference; the power is summed over both binomials, not approximated.

    Args:
        n: questions with one sample each.
        discordant: share of the questions whose outcome changes without any effect; between
            two runs of a model with accuracy a and half of the outcomes' variance in common it
            is a(1 - a).
        level: of the two-sided test.
        power: chance of seeing the difference.

    Returns None if even a difference of 1 stays below the power.
    """
    if power_of_accuracy(n, 1.0, 1.0, level=level) < power:
        return None

    def lacking(difference: float) -> float:
        share = min(1.0, max(discordant + difference**2, difference))
        return power_of_accuracy(n, share, difference, level=level) - power

    if lacking(1e-6) >= 0:
        return 0.0
    return float(cast(float, brentq(lacking, 1e-6, 1.0, xtol=1e-5)))


def power_of_accuracy(n: int, share: float, difference: float, *, level: float = 0.05) -> float:
    """Return the chance that the exact McNemar test of n questions sees a difference.

    Args:
        n: questions.
        share: of them that are discordant.
        difference: of the accuracies, at most `share`.
        level: of the two-sided test.
    """
    k = np.arange(n + 1)
    up = min(1.0, (1 + difference / share) / 2)
    reach = _largest_rejected(n, level)
    rejected = np.where(reach >= 0, binom.cdf(reach, k, up) + binom.sf(k - reach - 1, k, up), 0.0)
    return float(binom.pmf(k, n, share) @ np.minimum(rejected, 1.0))


@lru_cache(maxsize=256)
def _largest_rejected(n: int, level: float) -> np.ndarray:
    """Return, for k = 0..n discordant questions, the largest minority count that is rejected."""
    k = np.arange(n + 1)
    reach = binom.ppf(level / 2, k, 0.5)
    reach = np.where(binom.cdf(reach, k, 0.5) > level / 2, reach - 1, reach)
    return np.where(k == 0, -1, reach)
