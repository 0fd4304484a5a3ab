"""Whether an effect is more than what any push of that length does."""

from collections.abc import Sequence

import numpy as np

from harness_ext.leaderboard.board import Row

NULL_KINDS = ("random_feature", "random_direction")


def matched(candidate: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the ids of the random rows that a candidate is held against.

    Those scaled to the candidate itself, or to a row of the same hook point, operator and
    strength (or value, where no strength is given); all random rows where there is none such.
    """
    nulls = [row for row in rows if row.kind in NULL_KINDS]
    by_id = {row.id: row for row in rows}
    own = tuple(
        null.id
        for null in nulls
        if null.matches is not None
        and (null.matches == candidate.id or _size(by_id.get(null.matches)) == _size(candidate))
    )
    return own or tuple(null.id for null in nulls)


def _size(row: Row | None) -> tuple[object, ...] | None:
    if row is None or (row.strength is None and row.value is None):
        return None
    size = ("strength", row.strength) if row.strength is not None else ("value", row.value)
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


def outside(p_null: float | None, n_null: int, level: float) -> bool:
    """Return whether an effect stands apart from its random rows.

    With too few of them to reach the level, it must be further out than every one. Without any
    there is nothing to be held against.
    """
    if p_null is None:
        return True
    return p_null <= max(level, 1 / (n_null + 1)) + 1e-12
