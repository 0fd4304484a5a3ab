"""What an effect could have been, had missing answers been as bad or as good as they can be."""

from harness_ext.counts import SIGNS
from harness_ext.leaderboard.counting import Side
from harness_ext.metric_table import ARMS, Metric

UNEVEN = 0.03
"""Difference of the shares of missing answers from which an effect gets bounds."""

_LOST = ("truncated", "limit", "parse_error", "no_answer")


def effect_bounds(metric: Metric, base: Side, row: Side) -> tuple[float, float] | None:
    """Return the worst and the best effect for the row, or None where no bounds are needed.

    None where the shares of missing answers differ by no more than 3 points, and for metrics
    that answers do not enter (length, truncation). Worst is lowest, and highest for metrics of
    which less is better.

    Args:
        metric: a ratio.
        base: counts of the baseline.
        row: counts of the row on the same questions.
    """
    found = [_missing(metric, side.sums()) for side in (base, row)]
    if found[0] is None or found[1] is None:
        return None
    (lost0, asked0), (lost1, asked1) = found[0], found[1]
    if not asked0 or not asked1 or abs(lost1 / asked1 - lost0 / asked0) <= UNEVEN:
        return None
    low0, high0 = _range(metric, base.sums(), lost0)
    low1, high1 = _range(metric, row.sums(), lost1)
    low, high = low1 - high0, high1 - low0
    return (high, low) if metric.higher_is_better is False else (low, high)


def _missing(metric: Metric, sums: dict[str, float]) -> tuple[float, float] | None:
    """Return missing and asked responses, or pairs of them, that the metric is about."""
    for arm in ARMS:
        if metric.name in (f"acc_{arm}", f"acc_verified_{arm}"):
            return sums.get(f"missing.{arm}", 0.0), sums.get(f"n.{arm}", 0.0)
    sign = next((s for s in SIGNS if metric.den.startswith(f"{s}.")), None)
    if sign is None:
        return None
    lost = sum(sums.get(f"{sign}.excluded.{reason}", 0.0) for reason in _LOST)
    return lost, sums.get(f"{sign}.hinted", 0.0)


def _range(metric: Metric, sums: dict[str, float], lost: float) -> tuple[float, float]:
    top = sum(factor * sums.get(key, 0.0) for key, factor in metric.num)
    bottom = sums.get(metric.den, 0.0)
    if metric.den.startswith("n.") or metric.den.endswith(
        ".hinted"
    ):  # missing answers already count, as wrong
        return top / bottom, (top + lost) / bottom
    if not bottom + lost:
        return 0.0, 1.0
    return top / (bottom + lost), (top + lost) / (bottom + lost)
