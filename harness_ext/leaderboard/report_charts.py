"""The charts of the report, each from the statistics of one family or one task."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from harness_ext.leaderboard.board import BASELINE, Board, Row
from harness_ext.leaderboard.flat import layer_of
from harness_ext.leaderboard.names import NULLS, is_share, metric_title, row_link, row_title
from harness_ext.leaderboard.report_table import look_of
from harness_ext.leaderboard.results import Cell, Family, Results
from harness_ext.pages.charts import (
    Format,
    Item,
    Point,
    Series,
    forest,
    lines,
    percent,
    plain,
    points,
    scatter,
)

CANDIDATES, OTHERS, CURVES, GREY_CURVES = 16, 5, 6, 60

Cells = Mapping[tuple[str, str, str], Cell]


def by_key(results: Results) -> dict[tuple[str, str, str], Cell]:
    """Return the cells by row, task and metric."""
    return {(cell.row, cell.task, cell.metric): cell for cell in results.cells}


def family_forest(board: Board, cells: Cells, family: Family, place: int) -> Markup:
    """Return effects with intervals: discoveries, best ranks, lexical rows, prompts, large nulls.

    Args:
        board: its rows.
        cells: `by_key(results)`.
        family: whose effects.
        place: number of the task, for links.
    """
    found = _cells(board, cells, family)
    share = is_share(family.metric)
    candidates = sorted(
        ((r, cell) for r, cell in found if r.kind == "feature" and "lexical" not in cell.flags),
        key=lambda pair: (not pair[1].discovery, pair[1].rank or 10**9, pair[0].id),
    )
    prompts = [pair for pair in found if pair[0].kind == "prompt"]
    lexical = [pair for pair in found if "lexical" in pair[1].flags]
    nulls = sorted(
        (pair for pair in found if pair[0].kind in NULLS and pair[1].effect.value is not None),
        key=lambda pair: (-abs(pair[1].effect.value or 0.0), pair[0].id),
    )
    items = [
        _item(row, cell, place)
        for row, cell in (
            *candidates[:CANDIDATES],
            *lexical[:OTHERS],
            *prompts[:OTHERS],
            *nulls[:OTHERS],
        )
    ]
    return forest(
        items,
        title=f"Effect on {metric_title(family.metric)}: {family.task}",
        x="effect in points" if share else "effect",
        band=null_band(family),
        band_label="random rows, mean \u00b1 1.96 standard deviations",
        format_x=points if share else plain,
    )


def family_dose(board: Board, cells: Cells, family: Family, place: int) -> Markup | None:
    """Return the effect of each feature over its strengths; None where no feature has two.

    The features with the best rank have colours and intervals; the others are grey.
    """
    groups: dict[tuple[str, ...], list[tuple[float, Row, Cell]]] = defaultdict(list)
    for row, cell in _cells(board, cells, family):
        at = row.strength if row.strength is not None else row.value
        if row.kind == "feature" and at is not None and cell.effect.value is not None:
            groups[_group(row)].append((at, row, cell))
    features = [row for row in board.rows if row.kind == "feature"]
    saes = len({row.sae for row in features if row.sae}) > 1
    layers = len({row.hook_point for row in features if row.hook_point}) > 1
    shown = 5 if saes else 4 if layers else 3  # parts of a name that tell curves apart
    curves = {
        " ".join(part for part in key[:shown] if part): sorted(group, key=lambda g: g[0])
        for key, group in groups.items()
        if len({g[0] for g in group}) > 1
    }
    if not curves:
        return None
    best = sorted(curves, key=lambda n: (min(g[2].rank or 10**9 for g in curves[n]), n))
    grey = [
        Series(name, _points(curves[name], place), kind="null", named=False)
        for name in best[CURVES : CURVES + GREY_CURVES]
    ]
    coloured = [
        Series(name, _points(curves[name], place), kind=f"s{number}")
        for number, name in enumerate(best[:CURVES], 1)
    ]
    share = is_share(family.metric)
    by_strength = all(g[1].strength is not None for group in curves.values() for g in group)
    return lines(
        [*grey, *reversed(coloured)],
        title=f"Dose and response: {metric_title(family.metric)}, {family.task}",
        x="strength, multiples of the largest activation" if by_strength else "value of the edit",
        y="effect in points" if share else "effect",
        zero=0.0,
        band=null_band(family),
        band_label="random rows, mean \u00b1 1.96 standard deviations",
        format_y=points if share else plain,
    )


def use_scatter(
    board: Board, cells: Cells, task: str, place: int, *, accuracy: str, use: str
) -> Markup | None:
    """Return accuracy against silent use, a dot a row; None where no row has both."""
    dots: list[Point] = []
    cross = None
    for row in board.rows:
        right, silent = cells.get((row.id, task, accuracy)), cells.get((row.id, task, use))
        if right is None or silent is None:
            continue
        if right.base.value is not None and silent.base.value is not None and cross is None:
            cross = (right.base.value, silent.base.value)
        if right.value.value is None or silent.value.value is None:
            continue
        dots.append(
            Point(
                right.value.value,
                silent.value.value,
                kind=_scatter_kind(row, right, silent),
                label=row_title(row),
                href=row_link(row.id, place),
            )
        )
    if not dots:
        return None
    dots.sort(key=lambda dot: ("null", "undefined", "", "prompt", "found").index(dot.kind))
    if cross is not None:
        dots.append(Point(*cross, kind="base", label="baseline", href=row_link(BASELINE, place)))
    return scatter(
        dots,
        title=f"Accuracy against silent use: {task}",
        x=metric_title(accuracy),
        y=metric_title(use),
        cross=cross,
        format_x=percent,
        format_y=percent,
    )


def null_band(family: Family) -> tuple[float, float] | None:
    """Return what 95 % of normal nulls span; None with fewer than two."""
    if family.null_mean is None or family.null_sd is None:
        return None
    half = 1.96 * family.null_sd
    return family.null_mean - half, family.null_mean + half


def effect_format(metric: str) -> Format:
    """Return how effects on a metric are written."""
    return points if is_share(metric) else plain


def _cells(board: Board, cells: Cells, family: Family) -> list[tuple[Row, Cell]]:
    found = ((row, cells.get((row.id, family.task, family.metric))) for row in board.rows)
    return [(row, cell) for row, cell in found if cell is not None]


def _item(row: Row, cell: Cell, place: int) -> Item:
    effect = cell.effect
    look = {"few": "undefined", "baseline": "base"}.get(look_of(row, cell), look_of(row, cell))
    notes = [*cell.flags, *([f"q {cell.q:.3f}"] if cell.q is not None else [])]
    href = row_link(row.id, place)
    label = row_title(row)
    return Item(label, effect.value, effect.lo, effect.hi, look, ", ".join(notes), href)


def _points(group: Sequence[tuple[float, Row, Cell]], place: int) -> tuple[Point, ...]:
    return tuple(
        Point(
            at,
            cell.effect.value or 0.0,
            cell.effect.lo,
            cell.effect.hi,
            href=row_link(row.id, place),
        )
        for at, row, cell in group
    )


def _group(row: Row) -> tuple[str, ...]:
    """Return what the rows of one curve share."""
    name = f"f{row.feature}" if row.feature is not None else row.id
    positions = "" if row.positions in (None, "all") else str(row.positions)
    layer = layer_of(row)
    return name, row.op or "", positions, "" if layer is None else f"layer {layer}", row.sae or ""


def _scatter_kind(row: Row, right: Cell, silent: Cell) -> str:
    if row.kind in NULLS:
        return "null"
    if row.kind == "prompt":
        return "prompt"
    if right.discovery or silent.discovery:
        return "found"
    return "undefined" if "few flips" in silent.flags or "undefined" in silent.flags else ""
