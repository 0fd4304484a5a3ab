"""Charts are well-formed SVG whose shapes stand where their numbers say."""

import random
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from harness_ext.pages import charts
from harness_ext.pages.charts import Item, Point, Series

ATTACK = '"><script>alert(1)</script>'
SVG = "{http://www.w3.org/2000/svg}"


def parsed(chart) -> ElementTree.Element:
    # In a page of HTML the namespace is implied.
    return ElementTree.fromstring(str(chart).replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))


def dots(chart) -> list[tuple[float, float]]:
    return [
        (float(c.get("cx", "nan")), float(c.get("cy", "nan")))
        for c in parsed(chart).iter(f"{SVG}circle")
    ]


ALL = {
    "histogram": lambda name: charts.histogram([0, 1, 2], [3, 4], title=name, marks=[(1, name)]),
    "forest": lambda name: charts.forest(
        [Item(name, 0.1, 0.0, 0.2, note=name, href="#" + name), Item(name, None)],
        title=name,
        band=(-0.1, 0.1),
        band_label=name,
    ),
    "lines": lambda name: charts.lines(
        [Series(name, (Point(1, 2, 1, 3, href=name), Point(2, 3)))], title=name, x=name, y=name
    ),
    "scatter": lambda name: charts.scatter(
        [Point(0.1, 0.2, label=name, href=name)], title=name, x=name, y=name, cross=(0.5, 0.5)
    ),
    "funnel": lambda name: charts.funnel([(name, 10), (name, 3)], title=name),
}
EMPTY = {
    "histogram": lambda: charts.histogram([0.0, 1.0], [0], title="t"),
    "forest": lambda: charts.forest([], title="t"),
    "lines": lambda: charts.lines([], title="t", x="x", y="y"),
    "scatter": lambda: charts.scatter([], title="t", x="x", y="y"),
    "funnel": lambda: charts.funnel([], title="t"),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_title_and_description_name_the_chart_for_screen_readers(make):
    root = parsed(make("A name"))
    assert root.get("role") == "img"
    ids = (root.get("aria-labelledby") or "").split()
    texts = {e.get("id"): e.text for e in root if e.get("id")}
    assert texts[ids[0]] == "A name"
    assert len(texts[ids[1]] or "") > 5


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_text_stays_text(make):
    root = parsed(make(ATTACK))
    assert not list(root.iter(f"{SVG}script"))
    assert ATTACK in "".join(root.itertext())


@pytest.mark.parametrize("make", EMPTY.values(), ids=EMPTY)
def test_nothing_to_show_is_still_a_chart(make):
    assert parsed(make()).get("role") == "img"


def test_bars_of_a_histogram_are_as_high_as_their_counts():
    root = parsed(charts.histogram([0, 1, 2, 3], [1, 2, 4], title="t"))
    heights = [
        float(r.get("height", 0)) for r in root.iter(f"{SVG}rect") if r.get("class") == "bar"
    ]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert heights[2] == pytest.approx(4 * heights[0], abs=0.2)


def test_counts_on_a_logarithmic_scale_keep_zero_at_the_bottom():
    root = parsed(charts.histogram([0, 1, 2], [0, 9], title="t", log=True))
    heights = [
        float(r.get("height", 0)) for r in root.iter(f"{SVG}rect") if r.get("class") == "bar"
    ]
    assert heights[0] == 0
    assert heights[1] > 50


def test_histogram_without_its_last_edge_is_refused():
    with pytest.raises(ValueError, match="2 edges and 2 counts"):
        charts.histogram([0, 1], [1, 2], title="t")


def test_forest_puts_larger_effects_to_the_right_and_says_what_is_undefined():
    chart = charts.forest(
        [Item("a", -0.2, -0.3, -0.1), Item("b", 0.2), Item("c", None, note="0 flips")], title="t"
    )
    (ax, _), (bx, _) = dots(chart)
    assert ax < bx
    assert "0 flips" in str(chart)


def test_interval_spans_the_dot():
    chart = charts.forest([Item("a", 0.1, -0.1, 0.4)], title="t")
    (whisker,) = [p for p in parsed(chart).iter(f"{SVG}path") if "whisker" in p.get("class", "")]
    start, end = map(float, re.findall(r"[MH](-?[\d.]+)", whisker.get("d", "")))
    ((x, _),) = dots(chart)
    assert start < x < end


def test_curve_goes_through_its_points_in_order():
    chart = charts.lines(
        [Series("s", (Point(1, 0.0), Point(2, 1.0), Point(4, 0.5)))], title="t", x="x", y="y"
    )
    (x1, y1), (x2, y2), (x3, y3) = dots(chart)
    assert x1 < x2 < x3
    assert x3 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)
    assert y2 < y3 < y1  # up is more


@pytest.mark.parametrize("end", [0.0, 0.5, 1.0])
def test_names_of_lines_that_end_at_one_place_do_not_overlap(end):
    series = [Series(f"line {i}", (Point(1, i / 9), Point(2, end))) for i in range(10)]
    root = parsed(charts.lines(series, title="t", x="x", y="y"))
    places = sorted(
        float(t.get("y", 0)) for t in root.iter(f"{SVG}text") if (t.text or "").startswith("line")
    )
    assert len(places) == 10
    assert min(b - a for a, b in pairwise(places)) > 12
    assert places[0] > 0


def test_more_names_than_have_room_are_written_all_the_same():
    series = [Series(f"line {i}", (Point(1, 0), Point(2, i % 3))) for i in range(60)]
    found = str(charts.lines(series, title="t", x="x", y="y"))
    assert found.count(">line ") >= 60


def test_funnel_names_counts_and_shares():
    texts = "".join(parsed(charts.funnel([("all", 40), ("left", 10)], title="t")).itertext())
    assert "10 (25\u2009%)" in texts


def test_label_that_is_too_long_is_cut_and_kept_whole_for_a_pointer():
    name = "a very long name " * 10
    chart = charts.forest([Item(name, 0.1)], title="t")
    shown = [t.text or "" for t in parsed(chart).iter(f"{SVG}text")]
    assert any(t.endswith("\u2026") and len(t) < 40 for t in shown)
    assert name in "".join(parsed(chart).itertext())


SPANS = [(seed, 10.0**power) for seed in range(20) for power in (-9, -3, 0, 2, 9)]


def numbers(seed: int, size: float) -> list[float]:
    rng = random.Random(seed)
    return [rng.uniform(-size, size) * rng.random() ** 3 for _ in range(20)]


@pytest.mark.parametrize(("seed", "size"), SPANS)
def test_ticks_are_few_and_hold_the_span(seed, size):
    lo, hi = sorted(numbers(seed, size)[:2])
    found = charts.ticks(lo, hi)
    assert 2 <= len(found) <= 12
    step = found[1] - found[0]
    assert found[0] <= lo + step * 1e-6
    assert found[-1] >= hi - step * 1e-6


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-12])
def test_ticks_of_a_single_value_hold_it(value):
    found = charts.ticks(value, value)
    assert found[0] < value < found[-1]


@pytest.mark.parametrize(("seed", "size"), SPANS)
def test_dots_stay_inside_the_chart(seed, size):
    points = [Point(x, x * x / size) for x in numbers(seed, size)]
    chart = charts.scatter(points, title="t", x="x", y="y")
    height = float((parsed(chart).get("viewBox") or "").split()[3])
    for x, y in dots(chart):
        assert 0 <= x <= charts.WIDTH
        assert 0 <= y <= height


@pytest.mark.parametrize(
    ("value", "text"), [(0.125, "+12.5"), (-0.03, "\u22123"), (0.0, "0"), (1e-9, "+0")]
)
def test_points_are_signed_percentage_points(value, text):
    assert charts.points(value) in (text, text.lstrip("+"))
