"""Charts as SVG text: no library, no script, readable by screen readers, dark where the page is.

Colours are classes of `page.css`: a series or item has a `kind` such as `null`, `prompt`,
`found`, `undefined`, `base`, or `s1` to `s6` for lines that must be told apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from markupsafe import Markup, escape

WIDTH = 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 30, 42
_LINE = 13  # px from one label to the next
_CHARACTER = 6.3  # mean width in px of the labels' type


@dataclass(frozen=True)
class Item:
    """A row of a forest plot; without `value` it is listed as undefined."""

    label: str
    value: float | None
    lo: float | None = None
    hi: float | None = None
    kind: str = ""
    note: str = ""
    href: str = ""


@dataclass(frozen=True)
class Point:
    """A point with, if known, the ends of its interval in y, or what names it in a scatter."""

    x: float
    y: float
    lo: float | None = None
    hi: float | None = None
    kind: str = ""
    label: str = ""
    href: str = ""


@dataclass(frozen=True)
class Series:
    """A line: its name stands beside its end where `named`."""

    name: str
    points: tuple[Point, ...]
    kind: str = ""
    named: bool = True


Format = Callable[[float], str]


def plain(value: float) -> str:
    """Return a number as an axis shows it."""
    text = f"{value:,.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"
    if abs(value) >= 1000 and float(value).is_integer():
        text = f"{value:,.0f}"
    return text.replace("-", "\u2212")


def percent(value: float) -> str:
    """Return a share in percent."""
    return f"{plain(round(100 * value, 6))}\u2009%"


def points(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return ("+" if value > 0 else "") + plain(round(100 * value, 6))


def ticks(lo: float, hi: float, n: int = 6) -> list[float]:
    """Return about `n` round numbers that span `lo` to `hi`, ends included or passed."""
    if not hi > lo:
        hi, lo = lo + (abs(lo) or 1.0) / 2, lo - (abs(lo) or 1.0) / 2
    raw = (hi - lo) / max(1, n - 1)
    exponent = math.floor(math.log10(raw))
    power = 10.0**exponent
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
    return [round(i * step, 3 - exponent) for i in range(first, last + 1)]


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
    plot = _Plot(title, (edges[0], edges[-1]), (0.0, top), height=230)
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
    left = min(190.0, 12 + _CHARACTER * max([len(i.label) for i in items], default=4))
    plot = _Plot(
        title, (span[0], span[-1]), (0, 1), height=_TOP + _BOTTOM + 19 * len(items) + 12, left=left
    )
    if band is not None:
        plot.band_x(*band, band_label)
    plot.x_axis([(t, format_x(t)) for t in span], x)
    plot.mark(zero, "")
    for number, item in enumerate(items):
        plot.forest_row(item, _TOP + 14 + 19 * number, left, format_x)
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
    right = min(130.0, 14 + _CHARACTER * max(map(len, names), default=0))
    plot = _Plot(title, (across[0], across[-1]), (up[0], up[-1]), height=280, right=right)
    if band is not None:
        plot.band_y(*band, band_label)
    plot.y_axis([(t, format_y(t)) for t in up], y)
    plot.x_axis([(t, format_x(t)) for t in across], x)
    if zero is not None:
        plot.add(f'<path class="zero" d="M{plot.left:.1f} {plot.y(zero):.1f}H{plot.right:.1f}"/>')
    for one in series:
        plot.line(one, format_x, format_y)
    plot.names(series)
    return plot.svg(f"{len(series)} curves: {', '.join(names[:6])}." if names else "Curves.")


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
    plot = _Plot(title, (across[0], across[-1]), (up[0], up[-1]), height=300)
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
    height = _TOP + 24 * len(steps) + 4
    left = min(210.0, 14 + _CHARACTER * max([len(name) for name, _ in steps], default=4))
    plot = _Plot(title, (0.0, whole), (0, 1), height=height, left=left, right=104)
    for number, (name, count) in enumerate(steps):
        at = _TOP + 24 * number
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


class _Plot:
    """Scales and parts of one chart."""

    def __init__(
        self,
        title: str,
        x_span: tuple[float, float],
        y_span: tuple[float, float],
        *,
        height: float,
        left: float = _LEFT,
        right: float = _RIGHT,
    ) -> None:
        self.title, self.height = title, height
        self.x_span, self.y_span = x_span, y_span
        self.left, self.right = left, WIDTH - right
        self.top, self.bottom = _TOP, height - _BOTTOM
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        lo, hi = self.x_span
        return self.left + (self.right - self.left) * (value - lo) / ((hi - lo) or 1.0)

    def y(self, value: float) -> float:
        lo, hi = self.y_span
        return self.bottom - (self.bottom - self.top) * (value - lo) / ((hi - lo) or 1.0)

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
        room = {"end": x, "start": WIDTH - x}.get(anchor, math.inf) / _CHARACTER + 1
        short = text if len(text) <= room else text[: max(3, int(room) - 1)] + "\u2026"
        whole = f"<title>{escape(text)}</title>" if short != text else ""
        self.add(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(short)}{whole}</text>"
        )

    def x_axis(self, marks: Sequence[tuple[float, str]], name: str) -> None:
        for value, shown in marks:
            at = self.x(value)
            self.add(f'<path class="tick" d="M{at:.1f} {self.top}V{self.bottom:.1f}"/>')
            self.text(at, self.bottom + 15, shown, "", "middle")
        self.add(f'<path class="axis" d="M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}"/>')
        self.text((self.left + self.right) / 2, self.bottom + 33, name, "", "middle")

    def y_axis(self, marks: Sequence[tuple[float, str]], name: str) -> None:
        for value, shown in marks:
            at = self.y(value)
            self.add(f'<path class="tick" d="M{self.left:.1f} {at:.1f}H{self.right:.1f}"/>')
            self.add(
                f'<text x="{self.left - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">'
                f"{escape(shown)}</text>"
            )
        self.add(
            f'<text x="{-(self.top + self.bottom) / 2:.1f}" y="9" text-anchor="middle"'
            f' transform="rotate(-90)">{escape(name)}</text>'
        )

    def mark(self, value: float, name: str) -> None:
        at = self.x(value)
        self.add(f'<path class="zero" d="M{at:.1f} {self.top}V{self.bottom:.1f}"/>')
        if name:
            anchor = "end" if at > (self.left + self.right) / 2 else "start"
            self.text(at + (-4 if anchor == "end" else 4), self.top + 10, name, "", anchor)

    def band_x(self, lo: float, hi: float, name: str) -> None:
        self.add(
            f'<rect class="band" x="{self.x(lo):.1f}" y="{self.top}"'
            f' width="{max(1.0, self.x(hi) - self.x(lo)):.1f}"'
            f' height="{self.bottom - self.top:.1f}"><title>{escape(name)}</title></rect>'
        )

    def band_y(self, lo: float, hi: float, name: str) -> None:
        self.add(
            f'<rect class="band" x="{self.left:.1f}" y="{self.y(hi):.1f}"'
            f' width="{self.right - self.left:.1f}"'
            f' height="{max(1.0, self.y(lo) - self.y(hi)):.1f}">'
            f"<title>{escape(name)}</title></rect>"
        )

    def dot(self, point: Point, said: str, radius: float) -> None:
        kind = escape(point.kind)
        shape = (
            f'<circle class="dot {kind}" cx="{self.x(point.x):.1f}" cy="{self.y(point.y):.1f}"'
            f' r="{radius}"><title>{escape(said)}</title></circle>'
        )
        self.add(f'<a href="{escape(point.href)}">{shape}</a>' if point.href else shape)

    def forest_row(self, item: Item, at: float, left: float, shown: Format) -> None:
        kind = escape(item.kind)
        before = len(self.parts)
        self.text(left - 8, at + 4, item.label, "label", "end")
        if item.href:
            self.parts[before] = f'<a href="{escape(item.href)}">{self.parts[before]}</a>'
        if item.value is None:
            self.text(self.x(max(self.x_span[0], 0.0)) + 6, at + 4, item.note or "undefined", "")
            return
        said = f"{item.label}: {shown(item.value)}"
        if item.lo is not None and item.hi is not None:
            said += f" [{shown(item.lo)}, {shown(item.hi)}]"
            self.add(
                f'<path class="whisker {kind}"'
                f' d="M{self.x(item.lo):.1f} {at:.1f}H{self.x(item.hi):.1f}"/>'
            )
        said += f", {item.note}" if item.note else ""
        self.add(
            f'<circle class="dot {kind}" cx="{self.x(item.value):.1f}" cy="{at:.1f}" r="4">'
            f"<title>{escape(said)}</title></circle>"
        )

    def line(self, one: Series, format_x: Format, format_y: Format) -> None:
        if not one.points:
            return
        kind = escape(one.kind)
        path = "L".join(f"{self.x(p.x):.1f} {self.y(p.y):.1f}" for p in one.points)
        self.add(f'<path class="wire {kind}" d="M{path}"><title>{escape(one.name)}</title></path>')
        for point in one.points if one.named else ():
            if point.lo is not None and point.hi is not None:
                self.add(
                    f'<path class="whisker {kind}"'
                    f' d="M{self.x(point.x):.1f} {self.y(point.lo):.1f}V{self.y(point.hi):.1f}"/>'
                )
            said = f"{one.name}: {format_y(point.y)} at {format_x(point.x)}"
            self.dot(Point(point.x, point.y, kind=one.kind, href=point.href), said, 3.2)

    def names(self, series: Sequence[Series]) -> None:
        """Write each line's name beside its end, moved apart where ends lie close together."""
        ends = sorted(
            ((self.y(s.points[-1].y) + 4, s) for s in series if s.named and s.points),
            key=lambda end: end[0],
        )
        places: list[float] = []
        for at, _ in ends:
            places.append(max(at, places[-1] + _LINE) if places else at)
        # What the last ones were pushed below the plot goes up again, and takes others along.
        limit = self.bottom + 4
        for number in reversed(range(len(places))):
            places[number] = min(places[number], limit)
            limit = places[number] - _LINE
        for place, (_, one) in zip(places, ends, strict=True):
            self.text(self.x(one.points[-1].x) + 7, place, one.name, escape(one.kind))

    def svg(self, description: str) -> Markup:
        body = "".join(self.parts)
        name = "c" + blake2b(f"{self.title}{body}".encode(), digest_size=5).hexdigest()
        return Markup(
            f'<svg class="chart" viewBox="0 0 {WIDTH} {self.height:.0f}" role="img"'
            f' aria-labelledby="{name}t {name}d"><title id="{name}t">{escape(self.title)}</title>'
            f'<desc id="{name}d">{escape(description)}</desc>'
            f'<text class="head" x="0" y="14">{escape(self.title)}</text>{body}</svg>'
        )
