"""Intervals of single rates and means, many rows at once."""

import numpy as np
from scipy.stats import t
from statsmodels.stats.proportion import proportion_confint

from harness_ext.leaderboard.resample import ratio_of


def rate_intervals(top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of the Wilson interval of each rate, `(rows,)` each, NaN where undefined.

    With one sample a question it is Wilson's own. With several, or with weights, the number of
    trials is the one that has the same variance between questions, p(1 - p)/se^2; for a rate of
    0 or 1, whose variance says nothing, the number of questions that take part.

    Args:
        top: `(questions, rows)` numerators.
        bottom: `(questions, rows)` denominators.
    """
    total = bottom.sum(axis=0)
    rate = ratio_of(top.sum(axis=0), total)
    p = np.clip(np.nan_to_num(rate), 0.0, 1.0)
    spread = ((top - p * bottom) ** 2).sum(axis=0)
    certain = (p <= 0) | (p >= 1) | (spread <= 0)
    trials = np.where(
        certain, (bottom > 0).sum(axis=0), p * (1 - p) * total**2 / np.where(certain, 1.0, spread)
    )
    trials = np.maximum(trials, 1e-9)
    ends = np.asarray(proportion_confint(p * trials, trials, alpha=0.05, method="wilson"))
    lo, hi = np.where(np.isnan(rate), np.nan, ends)
    return lo, hi


def mean_intervals(top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of Student's interval of each ratio, `(rows,)` each, NaN where undefined.

    Args:
        top: `(questions, rows)` numerators.
        bottom: `(questions, rows)` denominators.
    """
    total = bottom.sum(axis=0)
    mean = ratio_of(top.sum(axis=0), total)
    n = (bottom > 0).sum(axis=0)
    spread = ((top - np.nan_to_num(mean) * bottom) ** 2).sum(axis=0)
    usable = n > 1
    factor = np.where(usable, n / np.maximum(n - 1, 1), np.nan)
    error = ratio_of(np.sqrt(spread * factor), total)
    half = t.ppf(0.975, np.maximum(n - 1, 1)) * error
    return mean - half, mean + half
