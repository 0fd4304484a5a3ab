"""Effects pulled towards what is usual in their family, so that the luckiest row is not first."""

from typing import Any

import numpy as np
from statsmodels.stats.meta_analysis import combine_effects

LEAST = 3
"""Rows below which the spread between them cannot be told from noise."""


def shrink(effects: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return empirical-Bayes estimates of a family's effects, `(rows,)`, NaN where undefined.

    A row's effect is m + (1 - B)(effect - m), B = v / (v + tau2): m is the family's weighted
    mean, tau2 the variance between rows (Paule-Mandel), v the row's error variance, averaged
    half and half with the family's mean one because a variance from a few changed questions is
    mostly noise. With fewer than three defined effects they come back as they are.

    Args:
        effects: `(rows,)`, NaN where undefined.
        errors: `(rows,)` standard errors.

    Source: Paule & Mandel 1982, as statsmodels' `combine_effects` has it.
    """
    out = np.array(effects, dtype=float)
    known = np.flatnonzero(np.isfinite(effects) & np.isfinite(errors))
    if known.size < LEAST:
        return out
    own = errors[known] ** 2
    variances = (own + own.mean()) / 2
    if variances.max() <= 0:  # no question changed in any row
        return out
    found: Any = combine_effects(effects[known], variances, method_re="iterated")
    tau2 = max(float(found.tau2), 0.0)
    weights = 1 / (variances + tau2)
    mean = float((weights * effects[known]).sum() / weights.sum())
    out[known] = mean + tau2 * weights * (effects[known] - mean)
    return out
