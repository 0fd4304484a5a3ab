"""Whether an effect is more than what any push of that length does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from harness_ext.leaderboard.board import Row

NULL_KINDS = ("random_feature", "random_direction")


def matched(candidate: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the ids of the random rows that a candidate is held against.

    Those scaled to the candidate itself, or to a row of the same hook point, operator, positions
    and strength (or value and its unit, where no strength is given; `ablate` has neither); all
    random rows where there is none such, as for a spec of several edits.
    """
    nulls = [row for row in rows if row.kind in NULL_KINDS]
    by_id = {row.id: row for row in rows}
    own = tuple(
        null.id
        for null in nulls
        if null.matches is not None
        and (null.matches == candidate.id or _same(by_id.get(null.matches), candidate))
    )
    return own or tuple(null.id for null in nulls)


def _same(one: Row | None, other: Row) -> bool:
    """Return whether two rows are one edit, of one size, of different features."""
    return one is not None and one.op is not None and _size(one) == _size(other)


def _size(row: Row) -> tuple[object, ...]:
    # A strength stands for another value in every feature.
    size = (row.value, row.unit) if row.strength is None else ("strength", row.strength)
    return (row.hook_point, row.op, row.positions, *size)


def empirical_p(effect: float, nulls: np.ndarray) -> float | None:
    """Return (1 + #{null >= observed}) / (R + 1), two-sided; None without random rows.

    What is compared is the distance from the mean of all R + 1 effects, the observed one
    included: any push may do harm, and only what stands apart from it counts. If the row is one
    more random row, all orders are equally likely, so p is exact; it cannot be below 1/(R + 1).

    Args:
        effect: of the candidate.
        nulls: `(R,)` effects of the random rows, all defined.
    """
    if nulls.size == 0:
        return None
    distance = np.abs(nulls - np.append(nulls, effect).mean())
    own = abs(effect - np.append(nulls, effect).mean())
    return (1 + int((distance >= own - 1e-12).sum())) / (nulls.size + 1)


def prediction_p(effect: float, nulls: np.ndarray) -> float | None:
    """Return how surprising an effect is as one more of some random rows', two-sided.

    By Student's t on the distance from their mean, over their standard deviation times
    sqrt(1 + 1/R). Unlike the empirical p it can be small with few random rows, and so can be
    corrected for the number of candidates. None with fewer than two.

    Args:
        effect: of the candidate.
        nulls: `(R,)` effects of the random rows, all defined.
    """
    if nulls.size < 2:
        return None
    distance = abs(effect - float(nulls.mean()))
    error = float(nulls.std(ddof=1)) * np.sqrt(1 + 1 / nulls.size)
    if error < 1e-12:
        return float(distance < 1e-12)
    return float(2 * student.sf(distance / error, nulls.size - 1))


@dataclass(frozen=True)
class Against:
    """One candidate against its random rows: both p-values, and how many there are."""

    p_null: float | None
    p_prediction: float | None
    n_null: int


def against(
    matches: Mapping[str, Sequence[str]], effects: Mapping[str, float | None]
) -> dict[str, Against]:
    """Return every candidate whose effect is defined against its random rows.

    Args:
        matches: the random rows of each candidate, by `matched`.
        effects: of all rows; None where undefined.
    """
    found = {}
    for row_id, null_ids in matches.items():
        if (effect := effects.get(row_id)) is None:
            continue
        nulls = np.array([e for i in null_ids if (e := effects.get(i)) is not None])
        p_values = empirical_p(effect, nulls), prediction_p(effect, nulls)
        found[row_id] = Against(*p_values, len(nulls))
    return found


def outside(p_null: float | None, n_null: int, level: float) -> bool:
    """Return whether an effect stands apart from its random rows.

    With too few of them to reach the level, it must be further out than every one. Without any
    there is nothing to be held against.
    """
    if p_null is None:
        return True
    return p_null <= max(level, 1 / (n_null + 1)) + 1e-12
