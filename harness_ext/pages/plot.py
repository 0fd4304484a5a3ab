"""One chart as SVG: scales, axes, and the parts that charts are made of."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from markupsafe import Markup, escape

WIDTH = 480
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 30, 42
_LINE = 13  # px from one label to the next
CHARACTER = 6.3  # mean width in px of the labels' type


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


class Plot:
    """Scales and parts of one chart."""

    def __init__(
        self,
        title: str,
        x_span: tuple[float, float],
        y_span: tuple[float, float],
        *,
        height: float,
        left: float = LEFT,
        right: float = RIGHT,
    ) -> None:
        self.title, self.height = title, height
        self.x_span, self.y_span = x_span, y_span
        self.left, self.right = left, WIDTH - right
        self.top, self.bottom = TOP, height - BOTTOM
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        """Return the place in px of a value."""
        lo, hi = self.x_span
        return self.left + (self.right - self.left) * (value - lo) / ((hi - lo) or 1.0)

    def y(self, value: float) -> float:
        """Return the place in px of a value."""
        lo, hi = self.y_span
        return self.bottom - (self.bottom - self.top) * (value - lo) / ((hi - lo) or 1.0)

    def add(self, part: str) -> None:
        """Draw a part."""
        self.parts.append(part)

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
        """Write a text, cut where it has no room."""
        room = {"end": x, "start": WIDTH - x}.get(anchor, math.inf) / CHARACTER + 1
        short = text if len(text) <= room else text[: max(3, int(room) - 1)] + "\u2026"
        whole = f"<title>{escape(text)}</title>" if short != text else ""
        self.add(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(short)}{whole}</text>"
        )

    def x_axis(self, marks: Sequence[tuple[float, str]], name: str) -> None:
        """Draw the axis: places with what is written there, and its name."""
        for value, shown in marks:
            at = self.x(value)
            self.add(f'<path class="tick" d="M{at:.1f} {self.top}V{self.bottom:.1f}"/>')
            wide = at + CHARACTER * len(shown) / 2 > WIDTH
            place = (WIDTH, "end") if wide else (at, "middle")
            self.text(place[0], self.bottom + 15, shown, "", place[1])
        self.add(f'<path class="axis" d="M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}"/>')
        self.text((self.left + self.right) / 2, self.bottom + 33, name, "", "middle")

    def y_axis(self, marks: Sequence[tuple[float, str]], name: str) -> None:
        """Draw the axis: places with what is written there, and its name."""
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
        """Draw a line at a value, with a name."""
        at = self.x(value)
        self.add(f'<path class="zero" d="M{at:.1f} {self.top}V{self.bottom:.1f}"/>')
        if name:
            anchor = "end" if at > (self.left + self.right) / 2 else "start"
            self.text(at + (-4 if anchor == "end" else 4), self.top + 10, name, "", anchor)

    def band_x(self, lo: float, hi: float, name: str) -> None:
        """Draw a band between two values."""
        self.add(
            f'<rect class="band" x="{self.x(lo):.1f}" y="{self.top}"'
            f' width="{max(1.0, self.x(hi) - self.x(lo)):.1f}"'
            f' height="{self.bottom - self.top:.1f}"><title>{escape(name)}</title></rect>'
        )

    def band_y(self, lo: float, hi: float, name: str) -> None:
        """Draw a band between two values."""
        self.add(
            f'<rect class="band" x="{self.left:.1f}" y="{self.y(hi):.1f}"'
            f' width="{self.right - self.left:.1f}"'
            f' height="{max(1.0, self.y(lo) - self.y(hi)):.1f}">'
            f"<title>{escape(name)}</title></rect>"
        )

    def dot(self, point: Point, said: str, radius: float) -> None:
        """Draw a point that says what it is on demand, and links where it can."""
        kind = escape(point.kind)
        shape = (
            f'<circle class="dot {kind}" cx="{self.x(point.x):.1f}" cy="{self.y(point.y):.1f}"'
            f' r="{radius}"><title>{escape(said)}</title></circle>'
        )
        self.add(f'<a href="{escape(point.href)}">{shape}</a>' if point.href else shape)

    def forest_row(self, item: Item, at: float, left: float, shown: Format) -> None:
        """Draw a row of a forest plot."""
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
        """Draw a curve."""
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
        """Return the chart."""
        body = "".join(self.parts)
        name = "c" + blake2b(f"{self.title}{body}".encode(), digest_size=5).hexdigest()
        return Markup(
            f'<svg class="chart" viewBox="0 0 {WIDTH} {self.height:.0f}" role="img"'
            f' aria-labelledby="{name}t {name}d"><title id="{name}t">{escape(self.title)}</title>'
            f'<desc id="{name}d">{escape(description)}</desc>'
            f'<text class="head" x="0" y="14">{escape(self.title)}</text>{body}</svg>'
        )
