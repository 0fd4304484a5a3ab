"""The table of the report: a line for every row on every task by every metric."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from harness_ext.leaderboard.board import Board, Row
from harness_ext.leaderboard.flat import baseline_cells, layer_of
from harness_ext.leaderboard.names import (
    KINDS,
    NULLS,
    edit_title,
    is_share,
    metric_title,
    row_link,
    row_title,
)
from harness_ext.leaderboard.results import Cell, Results
from harness_ext.pages import Column, table
from harness_ext.pages.tables import Value

TABLE = "rows"
"""Id of the table in the page; the script of the report steers it."""

_HIDDEN = (
    *("look", "href", "task_id", "metric_id", "unit", "level", "token_unit"),
    *("lo", "hi", "base", "truncation_base", "no_answer_base", "tokens_base", "all_lo", "all_hi"),
)


_SENSITIVITY = (
    Column("sensitivity", "Sensitivity", "percent", help="Texts written after the feature's own"
           " examples on which it fires"),
    Column("sensitivity_control", "Others' texts", "percent", help="The same of texts written for"
           " another feature; a feature that means something is far below its sensitivity here"),
)  # fmt: skip


def look_of(row: Row, cell: Cell) -> str:
    """Return the style of a line: what a reader must see before any number."""
    if row.kind in NULLS:
        return "null"
    if row.kind in ("baseline", "prompt"):
        return row.kind
    if cell.value.value is None or "undefined" in cell.flags:
        return "undefined"
    if "lexical" in cell.flags:
        return "lexical"
    if cell.discovery:
        return "found"
    return "few" if "few flips" in cell.flags else ""


def rows_table(
    board: Board, results: Results, *, task: str, metric: str, places: Mapping[str, int]
) -> Markup:
    """Return the table, showing one task and metric until a reader chooses another.

    Args:
        board: rows and tasks.
        results: their statistics.
        task: shown first.
        metric: shown first.
        places: number of each task, by which links name it.
    """
    rows = {row.id: row for row in board.rows}
    # Where no column decides: candidates, the baseline, prompts, nulls.
    order = ("feature", "baseline", "prompt", *NULLS)
    cells = sorted(
        [*baseline_cells(board, results), *results.cells],
        key=lambda cell: order.index(rows[cell.row].kind),
    )
    columns = list(_columns(results, task, metric_title(metric)))
    if any(row.sensitivity is not None for row in board.rows):
        # Near the effect, where a reader of a wide table sees them without scrolling.
        place = [column.key for column in columns].index("flags")
        columns[place:place] = _SENSITIVITY
    return table(
        columns,
        [_line(rows[cell.row], cell, places) for cell in cells],
        id=TABLE,
        caption="Every row on every task by every metric, against the baseline",
        sort="rank",
        row_class="look",
    )


def _columns(results: Results, task: str, metric: str) -> Sequence[Column]:
    level = results.families[0].level if results.families else 0.05
    return [
        Column("row", "Row", href="href", help="What was done; opens its transcripts"),
        Column("task", "Task", filter="select", choice=task),
        Column("metric", "Metric", filter="select", choice=metric),
        Column(
            "value",
            "Base \u2192 with",
            "pair",
            kind_key="level",
            extra=("base",),
            help="The metric without and with the intervention, on the same test questions",
        ),
        Column(
            "effect",
            "Effect [95 %]",
            "interval",
            kind_key="unit",
            extra=("lo", "hi"),
            help="Paired difference on the test questions; shares in percentage points",
        ),
        Column("q", "q", "p", help="Benjamini-Hochberg over every candidate tried on every task by"
               f" this metric; discoveries have at most {level:g}"),
        Column("p_null", "null p", "p", help="Share of this row and its matched random rows that"
               " are as far from the mean of them all as this row"),
        Column("q_null", "null q", "p", help="Benjamini-Hochberg over the same candidates, of how"
               " surprising this row would be as one more random row"),
        Column("found", "Discovery", "list", filter="select", help="q and null q at most the level,"
               " and outside of what the random rows do"),
        Column("rank", "Rank", "number", help="By the shrunk effect on the dev questions; none for"
               " nulls, prompts, lexical and undefined rows"),
        Column("shrunk", "Shrunk", "signed", kind_key="unit", help="Effect on the dev questions,"
               " shrunk towards the mean of all rows"),
        Column("flags", "Flags", "list", filter="select", help="What keeps a number from being read"
               " at its face"),
        Column("kind", "Kind", filter="select", help="What the row is"),
        Column("edit", "Edit", help="Operator and value, or after \u00d7 a multiple of max_act"),
        Column("truncation", "Truncated", "pair", kind_key="token_unit", extra=("truncation_base",),
               help="Share of responses that used up their budget"),
        Column("no_answer", "No answer", "pair", kind_key="token_unit", extra=("no_answer_base",),
               help="Share of responses without an answer"),
        Column("tokens", "Tokens", "pair", digits=0, extra=("tokens_base",),
               help="Mean tokens a response"),
        Column("fixed", "Fixed", "number", help="Questions right only with the intervention"),
        Column("broken", "Broken", "number", help="Questions right only without it"),
        Column("p", "p", "p", help="Two-sided, before any correction"),
        Column("test", "Test"),
        Column("n_test", "n", "number", help="Test questions that both sides have"),
        Column("all", "Effect, all", "interval", kind_key="unit", extra=("all_lo", "all_hi"),
               help="The effect on dev and test questions together"),
        Column("dev", "Effect, dev", "signed", kind_key="unit"),
        Column("smallest", "Detectable", "signed", kind_key="unit", help="The difference that this"
               " many questions show with 80 % power"),
        Column("worst", "Worst", "signed", kind_key="unit", help="The effect if missing answers"
               " were as bad as they can be; empty where they do not differ by more than 3 points"),
        Column("best", "Best", "signed", kind_key="unit"),
        Column("layer", "Layer", "number"),
        Column("promoted", "Promotes", search=True, help="Tokens that the direction promotes most;"
               " lexical ones first"),
        *(Column(key, hidden=True) for key in _HIDDEN),
    ]  # fmt: skip


def _line(row: Row, cell: Cell, places: Mapping[str, int]) -> dict[str, Value]:
    share = is_share(cell.metric)
    # Counts have no interval that a reader could mistake for one of shares.
    return {
        "row": row_title(row),
        "href": row_link(row.id, places.get(cell.task, 0)),
        "kind": KINDS[row.kind],
        "look": look_of(row, cell),
        "edit": edit_title(row),
        "task": cell.task,
        "task_id": cell.task,
        "metric": metric_title(cell.metric),
        "metric_id": cell.metric,
        "unit": "points" if share else "signed",
        "level": "percent" if share else "number",
        "token_unit": "percent",
        "base": cell.base.value,
        "value": cell.value.value,
        "effect": cell.effect.value if row.kind != "baseline" else None,
        "lo": cell.effect.lo,
        "hi": cell.effect.hi,
        "q": cell.q,
        "p_null": cell.p_null,
        "q_null": cell.q_null,
        "found": ["discovery"] if cell.discovery else [],
        "rank": cell.rank,
        "shrunk": cell.shrunk_dev,
        "flags": list(cell.flags),
        "truncation": cell.truncation,
        "truncation_base": cell.truncation_base,
        "no_answer": cell.no_answer,
        "no_answer_base": cell.no_answer_base,
        "tokens": cell.tokens,
        "tokens_base": cell.tokens_base,
        "fixed": cell.fixed,
        "broken": cell.broken,
        "p": cell.p,
        "test": cell.test,
        "n_test": cell.n_test,
        "all": cell.effect_all.value if row.kind != "baseline" else None,
        "all_lo": cell.effect_all.lo,
        "all_hi": cell.effect_all.hi,
        "dev": cell.effect_dev.value,
        "smallest": cell.smallest_effect,
        "worst": cell.worst,
        "best": cell.best,
        "layer": layer_of(row),
        "sensitivity": row.sensitivity,
        "sensitivity_control": row.sensitivity_control,
        "promoted": " ".join((*row.lexical, *(t for t in row.promoted if t not in row.lexical))),
    }
