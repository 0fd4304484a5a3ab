"""What every output of a leaderboard says first: discoveries, or how large one would have to be."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness_ext.leaderboard.board import Board, Row
from harness_ext.leaderboard.names import is_share
from harness_ext.leaderboard.results import Cell, Family, Results

PRIMARY = ("silent_use_lexicon", "silent_use_judge", "silent_use_regex", "acc_none")
"""Metrics that are shown first, in this order, where nothing was found by any."""


@dataclass(frozen=True)
class Discovery:
    """A row that differs from the baseline, and where."""

    row: Row
    cell: Cell


def discoveries(board: Board, results: Results) -> list[Discovery]:
    """Return every discovery: families in their order, the best row of each first."""
    rows = {row.id: row for row in board.rows}
    cells = {(c.row, c.task, c.metric): c for c in results.cells}
    return [
        Discovery(rows[row_id], cells[row_id, family.task, family.metric])
        for family in results.families
        for row_id in family.discoveries
    ]


def first_family(results: Results) -> Family | None:
    """Return the family that is shown first: with discoveries, else of the primary metric."""
    found = [family for family in results.families if family.discoveries]
    if found:
        return found[0]
    for metric in PRIMARY:
        for family in results.families:
            if family.metric == metric and family.n_candidates:
                return family
    return results.families[0] if results.families else None


def detectable(results: Results) -> list[Family]:
    """Return the families whose smallest detectable effect stands in the headline.

    Those of the primary metrics that are there and of accuracy; the rest is in the table.
    """
    known = [f for f in results.families if f.smallest_discovery is not None and possible(f)]
    primary = next((m for m in PRIMARY if any(f.metric == m for f in known)), None)
    chosen = [f for f in known if f.metric in (primary, "acc_none")]
    return (chosen or known)[:6]


def families_of(board: Board, results: Results) -> list[tuple[Family, float | None]]:
    """Return each family with the baseline's value on the most test questions."""
    best: dict[tuple[str, str], Cell] = {}
    for cell in results.cells:
        old = best.get((cell.task, cell.metric))
        if old is None or cell.n_test > old.n_test:
            best[cell.task, cell.metric] = cell
    found = ((f, best.get((f.task, f.metric))) for f in results.families)
    return [(family, cell.base.value if cell else None) for family, cell in found]


def count(rows: Iterable[Row], kinds: Sequence[str]) -> int:
    """Return how many rows are of those kinds."""
    return sum(row.kind in kinds for row in rows)


def as_level(metric: str, value: float | None) -> str:
    """Return a value as text: a share in percent, else a number; an en dash where undefined."""
    if value is None:
        return "\u2013"
    return f"{100 * value:.1f}\u2009%" if is_share(metric) else f"{value:.4g}"


def as_effect(metric: str, value: float | None, *, unit: bool = True) -> str:
    """Return a difference as text with its sign: points for shares, else a number."""
    if value is None:
        return "\u2013"
    if is_share(metric):
        text = f"{100 * value:+.1f}" + (" points" if unit else "")
    else:
        text = f"{value:+.4g}" + (" tokens" if unit and "tokens" in metric else "")
    return text.replace("-", "\u2212")


def as_size(metric: str, value: float | None) -> str:
    """Return the size of a difference as text, without a sign."""
    return as_effect(metric, value).lstrip("+\u2212")


def as_p(value: float | None) -> str:
    """Return a probability as text to three digits."""
    if value is None:
        return "\u2013"
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def possible(family: Family) -> bool:
    """Return whether an effect of any size could be found: shares differ by 100 points at most."""
    size = family.smallest_discovery or family.smallest_effect
    return size is None or not is_share(family.metric) or size <= 1


def as_detectable(metric: str, value: float | None) -> str:
    """Return a smallest detectable effect as text; `none` where it is more than a share can do."""
    return (
        "none" if value is not None and is_share(metric) and value > 1 else as_size(metric, value)
    )


def needed(family: Family) -> str:
    """Return how large a single effect must be to be found with 80 % power, as text.

    After the correction for all candidates: no smaller one is a discovery.
    """
    return as_size(family.metric, family.smallest_discovery)
