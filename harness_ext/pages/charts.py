"""Charts as SVG text: no library, no script, readable by screen readers, dark where the page is.

Colours are classes of `page.css`: a series or item has a `kind` such as `null`, `prompt`,
`found`, `undefined`, `base`, or `s1` to `s6` for lines that must be told apart.
"""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from harness_ext.pages.plot import BOTTOM, CHARACTER, TOP, Format, Item, Plot, Point, Series
from harness_ext.pages.plot import WIDTH as WIDTH
from harness_ext.pages.plot import percent as percent
from harness_ext.pages.plot import plain as plain
from harness_ext.pages.plot import points as points
from harness_ext.pages.plot import ticks as ticks


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    title: str,
    x: str = "",
    y: str = "count",
    marks: Sequence[tuple[float, str]] = (),
    log: bool = False,
    format_x: Format = plain,
) -> Markup:
    """Return a histogram.

    Args:
        edges: of the bins, ascending, one more than counts.
        counts: of each bin.
        title: head, and name for screen readers.
        x: name of the axis.
        y: the same.
        marks: places on the x axis with a name each.
        log: whether heights are log10(1 + count); the ticks name counts.
        format_x: of the ticks.

    Raises:
        ValueError: there is not one edge more than counts.
    """
    if len(edges) != len(counts) + 1:
        raise ValueError(f"{len(edges)} edges and {len(counts)} counts; one edge more is needed")
    scale: Callable[[float], float] = (lambda v: math.log10(1 + v)) if log else float
    top = max([scale(c) for c in counts], default=0.0) or 1.0
    if log:
        y_ticks = [0.0] + [10.0**i for i in range(math.ceil(top) + 1)]
        top = scale(y_ticks[-1])
    else:
        y_ticks = ticks(0, top, 4)
        top = y_ticks[-1]
    plot = Plot(title, (edges[0], edges[-1]), (0.0, top), height=230)
    plot.y_axis([(scale(t), plain(t)) for t in y_ticks], y)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, right, height = plot.x(low), plot.x(high), plot.y(scale(count))
        plot.add(
            f'<rect class="bar" x="{left:.1f}" y="{height:.1f}"'
            f' width="{max(0.5, right - left - 0.6):.1f}" height="{plot.y(0) - height:.1f}">'
            f"<title>{escape(format_x(low))} to {escape(format_x(high))}: {plain(count)}</title>"
            "</rect>"
        )
    plot.x_axis([(t, format_x(t)) for t in ticks(edges[0], edges[-1])], x)
    for place, name in marks:
        plot.mark(place, name)
    total = plain(float(sum(counts)))
    return plot.svg(f"Histogram of {total}, {format_x(edges[0])} to {format_x(edges[-1])}.")


def forest(
    items: Sequence[Item],
    *,
    title: str,
    x: str = "effect",
    zero: float = 0.0,
    band: tuple[float, float] | None = None,
    band_label: str = "",
    format_x: Format = plain,
) -> Markup:
    """Return a forest plot: a row an item, its interval as a line, its value as a dot.

    Args:
        items: from the top.
        title: head, and name for screen readers.
        x: name of the axis.
        zero: where nothing changes.
        band: what the nulls span.
        band_label: what the band is.
        format_x: of the ticks and of the values.
    """
    known = [v for i in items for v in (i.value, i.lo, i.hi) if v is not None]
    span = ticks(min([zero, *known, *(band or ())]), max([zero, *known, *(band or ())]))
    left = min(190.0, 12 + CHARACTER * max([len(i.label) for i in items], default=4))
    plot = Plot(
        title,
        (span[0], span[-1]),
        (0, 1),
        height=TOP + BOTTOM + 19 * len(items) + 12,
        left=left,
        right=20,  # half of a label such as +100
    )
    if band is not None:
        plot.band_x(*band, band_label)
    plot.x_axis([(t, format_x(t)) for t in span], x)
    plot.mark(zero, "")
    for number, item in enumerate(items):
        plot.forest_row(item, TOP + 14 + 19 * number, left, format_x)
    shown = [i for i in items if i.value is not None]
    said = "; ".join(f"{i.label} {format_x(i.value or 0.0)}" for i in shown[:5])
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return plot.svg(f"Forest plot of {len(items)} rows: {said}{more}." if items else "No rows.")


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    zero: float | None = None,
    band: tuple[float, float] | None = None,
    band_label: str = "",
    format_x: Format = plain,
    format_y: Format = plain,
) -> Markup:
    """Return curves, such as the effect over the strength of an edit, with intervals in y.

    Args:
        series: drawn in order, so the last lies on top.
        title: head, and name for screen readers.
        x: name of the axis.
        y: the same.
        zero: where nothing changes, on the y axis.
        band: what the nulls span, on the y axis.
        band_label: what the band is.
        format_x: of the ticks.
        format_y: of the ticks.
    """
    every = [point for one in series for point in one.points]
    ys = [v for p in every for v in (p.y, p.lo, p.hi) if v is not None]
    ys += [*(band or ()), *(() if zero is None else (zero,))] or [0.0]
    across, up = ticks(*_ends([p.x for p in every] or [0.0])), ticks(min(ys), max(ys))
    names = [one.name for one in series if one.named]
    right = min(130.0, 14 + CHARACTER * max(map(len, names), default=0))
    plot = Plot(title, (across[0], across[-1]), (up[0], up[-1]), height=280, right=right)
    if band is not None:
        plot.band_y(*band, band_label)
    plot.y_axis([(t, format_y(t)) for t in up], y)
    plot.x_axis([(t, format_x(t)) for t in across], x)
    if zero is not None:
        plot.add(f'<path class="zero" d="M{plot.left:.1f} {plot.y(zero):.1f}H{plot.right:.1f}"/>')
    for one in series:
        plot.line(one, format_x, format_y)
    plot.names(series)
    kind = "curve" if len(series) == 1 else "curves"
    said = f": {', '.join(names[:6])}" if names else ""
    return plot.svg(f"{len(series)} {kind}{said}.")


def scatter(
    dots: Sequence[Point],
    *,
    title: str,
    x: str,
    y: str,
    cross: tuple[float, float] | None = None,
    format_x: Format = plain,
    format_y: Format = plain,
) -> Markup:
    """Return a scatter plot; points with a `label` say it on demand, and link where they can.

    Args:
        dots: drawn in order.
        title: head, and name for screen readers.
        x: name of the axis.
        y: the same.
        cross: a point whose two coordinates are drawn through the plot, such as the baseline's.
        format_x: of the ticks.
        format_y: of the ticks.
    """
    more = [cross] if cross else []
    across = ticks(*_ends([d.x for d in dots] + [c[0] for c in more] or [0.0]))
    up = ticks(*_ends([d.y for d in dots] + [c[1] for c in more] or [0.0]))
    plot = Plot(title, (across[0], across[-1]), (up[0], up[-1]), height=300)
    plot.y_axis([(t, format_y(t)) for t in up], y)
    plot.x_axis([(t, format_x(t)) for t in across], x)
    for cx, cy in more:
        plot.add(f'<path class="zero" d="M{plot.left:.1f} {plot.y(cy):.1f}H{plot.right:.1f}"/>')
        plot.add(f'<path class="zero" d="M{plot.x(cx):.1f} {plot.top}V{plot.bottom:.1f}"/>')
    for dot in dots:
        plot.dot(dot, f"{dot.label}: {format_x(dot.x)}, {format_y(dot.y)}", 3.6)
    return plot.svg(f"{len(dots)} points, {y} over {x}.")


def funnel(steps: Sequence[tuple[str, float]], *, title: str, kinds: Sequence[str] = ()) -> Markup:
    """Return bars that get shorter: what is left after each exclusion, with counts and shares.

    Args:
        steps: name and count, the first being the whole.
        title: head, and name for screen readers.
        kinds: class of each bar; '' by default.
    """
    whole = max([count for _, count in steps], default=0.0) or 1.0
    height = TOP + 24 * len(steps) + 4
    left = min(210.0, 14 + CHARACTER * max([len(name) for name, _ in steps], default=4))
    plot = Plot(title, (0.0, whole), (0, 1), height=height, left=left, right=104)
    for number, (name, count) in enumerate(steps):
        at = TOP + 24 * number
        kind = escape(kinds[number]) if number < len(kinds) else ""
        share = f" ({percent(round(count / whole, 3))})" if number else ""
        end = plot.x(count)
        plot.text(left - 8, at + 15, name, "label", "end")
        plot.add(
            f'<rect class="bar {kind}" x="{left:.1f}" y="{at + 3}" rx="2"'
            f' width="{max(1.0, end - left):.1f}" height="17"/>'
        )
        plot.text(end + 6, at + 15, f"{plain(round(count, 1))}{share}", "")
    said = ", ".join(f"{name} {plain(round(count, 1))}" for name, count in steps)
    return plot.svg(f"{said}.")


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
