"""What `sae-steered leaderboard` shows in a terminal: the plan before, the best rows after."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness_ext.leaderboard.board import Board, Row
from harness_ext.leaderboard.forecast import Forecast
from harness_ext.leaderboard.results import Cell, Family, Results
from harness_ext.leaderboard.summary import possible

TOP = 8


def plan_table(forecast: Forecast, name: str) -> RenderableType:
    """Return the plan of a leaderboard, before anything is generated."""
    table = _table("")
    for heading in ("task", "stage", "questions", "rows", "requests", "prompt tokens", "budget"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for one in forecast.tasks:
        numbers = (one.stage, one.questions, one.rows, one.requests * one.rows)
        table.add_row(
            one.task,
            *(f"{n:,}" for n in numbers),
            f"{one.prompt_tokens * one.rows:,}",
            f"{one.budget:,}",
        )
    mean = {
        "store": "the mean in the store",
        "budget": "the whole budget, the most there can be",
    }[forecast.tokens_from]
    lines = (
        f"{forecast.requests:,} requests, {forecast.kept:,} responses in the store.",
        f"About {forecast.new_tokens:,} new tokens: {forecast.tokens_a_response:g} a response"
        f" ({mean}).",
        f"About {_time(forecast.seconds)} at {forecast.rate:g} new tokens a second"
        f" ({forecast.rate_from}).",
    )
    return Group(Text(f"{name}: {_rows(forecast.rows)}"), table, Text("\n".join(lines) + "\n"))


def _rows(rows: dict[str, int]) -> str:
    names = {
        "feature": "candidates",
        "random_feature": "random features",
        "random_direction": "random directions",
        "prompt": "prompts",
    }
    parts = [
        f"{n} {names[kind].removesuffix('s' * (n == 1))}"
        for kind, n in rows.items()
        if n and kind != "baseline"
    ]
    return f"{sum(rows.values())} rows: the baseline, " + ", ".join(parts)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def top_tables(board: Board, results: Results, top: int = TOP) -> RenderableType:
    """Return the best rows of every task and metric, and what was discovered."""
    rows = {row.id: row for row in board.rows}
    parts: list[RenderableType] = []
    for family in results.families:
        cells = [
            cell
            for cell in results.cells
            if (cell.task, cell.metric) == (family.task, family.metric) and cell.rank is not None
        ]
        cells.sort(key=lambda cell: cell.rank or 0)
        parts += [_family(family, cells[:top], rows), Text(_verdict(family, rows) + "\n")]
    return Group(*parts)


def _family(family: Family, cells: Sequence[Cell], rows: dict[str, Row]) -> Table:
    table = _table(
        f"{family.task}, {family.metric}: {family.n_candidates} candidates,"
        f" {family.n_null} random rows"
    )
    for heading in ("rank", "row", "base", "value", "effect", "95 %", "q", "null p", ""):
        table.add_column(heading, justify="left" if heading in ("row", "") else "right")
    for cell in cells:
        effect = cell.effect
        table.add_row(
            str(cell.rank),
            rows[cell.row].label,
            _number(cell.metric, cell.base.value),
            _number(cell.metric, cell.value.value),
            _number(cell.metric, effect.value, sign=True),
            f"{_number(cell.metric, effect.lo, sign=True)} to"
            f" {_number(cell.metric, effect.hi, sign=True)}",
            _p(cell.q),
            _p(cell.p_null),
            "discovery" if cell.discovery else ", ".join(cell.flags),
        )
    return table


def _verdict(family: Family, rows: dict[str, Row]) -> str:
    note = f" ({family.note})" if family.note else ""
    if family.discoveries:
        names = ", ".join(rows[row_id].label for row_id in family.discoveries)
        found = len(family.discoveries)
        return f"{found} at q {family.level:g} and outside the null: {names}{note}."
    smallest = "none"
    if family.smallest_discovery is not None and possible(family):
        smallest = _number(family.metric, family.smallest_discovery)
    return f"No discovery; smallest detectable effect {smallest}{note}."


def _number(metric: str, value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    plus = "+" if sign else ""
    return format(value, f"{plus}.1f") if "tokens" in metric else format(100 * value, f"{plus}.1f")


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(title: str) -> Table:
    return Table(
        title=title or None,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
