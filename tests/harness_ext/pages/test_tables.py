"""The table of a page: what Python puts in, and what a reader can do with it in a browser."""

import json
import re

import pytest

from harness_ext.errors import PageError
from harness_ext.pages import Column, table
from harness_ext.pages.render import environment
from tests.browser import DESKTOP, PHONE

ATTACK = "</script><script>window.hacked = 1</script>"
N = 3000
COLUMNS = [
    Column("name", "Name", href="link"),
    Column("link", hidden=True),
    Column("kind", "Kind", filter="select"),
    Column("effect", "Effect", "interval", kind_key="unit", extra=("lo", "hi")),
    Column("lo", hidden=True),
    Column("hi", hidden=True),
    Column("unit", hidden=True),
    Column("q", "q", "p"),
    Column("base", hidden=True),
    Column("value", "Value", "pair", extra=("base",)),
    Column("flags", "Flags", "list", filter="select"),
]


def rows(n: int = N) -> list[dict]:
    return [
        {
            "name": f"row {i}" if i else ATTACK,
            "link": f"#r{i}",
            "kind": ["feature", "null"][i % 2],
            "effect": None if i % 10 == 3 else (i % 100) / 100 - 0.5,
            "lo": -0.25,
            "hi": 0.125,
            "unit": "points" if i % 2 else "signed",
            "q": 1e-5 if i == 7 else (i % 50) / 50,
            "base": 1,
            "value": i,
            "flags": ["lexical", "few flips"][: i % 3],
        }
        for i in range(n)
    ]


def data_of(markup) -> dict:
    found = re.search(r"data-table-data>(.*?)</script>", str(markup), re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    body = table(COLUMNS, rows(), id="main", caption="Rows", sort="q", row_class="kind")
    source = (
        "{% extends 'base.html' %}{% block title %}T{% endblock %}"
        "{% block main %}{{ body }}{% endblock %}"
    )
    path = tmp_path_factory.mktemp("table") / "page.html"
    path.write_text(environment().from_string(source).render(body=body), encoding="utf-8")
    return path


def test_values_survive_the_page():
    data = data_of(table(COLUMNS, rows(5), id="t", caption="c"))
    by_key = {c["key"]: c for c in data["columns"]}
    assert by_key["name"]["values"][0] == ATTACK
    assert by_key["effect"]["values"][3] is None
    assert by_key["flags"]["values"][2] == ["lexical", "few flips"]


def test_texts_that_repeat_are_stored_once():
    data = data_of(table(COLUMNS, rows(100), id="t", caption="c"))
    (kind,) = [c for c in data["columns"] if c["key"] == "kind"]
    assert kind["levels"] == ["feature", "null"]
    assert kind["values"][:4] == [0, 1, 0, 1]


def test_no_text_ends_the_script():
    assert ATTACK not in str(table(COLUMNS, rows(5), id="t", caption=ATTACK))


def test_what_is_no_number_is_empty():
    data = data_of(
        table([Column("x")], [{"x": float("nan")}, {"x": float("inf")}, {}], id="t", caption="c")
    )
    assert data["columns"][0]["values"] == [None, None, None]


def test_unknown_key_is_named():
    with pytest.raises(PageError, match="no column 'nope'; columns are a"):
        table([Column("a", href="nope")], [], id="t", caption="c")
    with pytest.raises(PageError, match="comes twice"):
        table([Column("a"), Column("a")], [], id="t", caption="c")
    with pytest.raises(PageError, match="is no name"):
        table([Column("a")], [], id="a b", caption="c")


def names(browser) -> list[str]:
    return browser.texts("#main tbody th")


def test_first_page_is_sorted_and_empty_values_come_last(browser, page):
    browser.open(page, size=DESKTOP)
    assert browser.console() == []
    assert browser.outside() == []
    assert len(names(browser)) == 25
    browser.js("SaeTables.main.choose('kind', 'null')")
    assert not browser.js("return SaeTables.main.byKey.get('kind').cell.checkVisibility()")
    browser.click("#main thead th:nth-child(3) button")
    order = browser.js("const t = SaeTables.main; return t.rows.map(r => t.get('effect', r))")
    assert order.index(None) == len([v for v in order if v is not None])
    known = [v for v in order if v is not None]
    assert known == sorted(known, reverse=True)
    assert (
        browser.js("return document.querySelectorAll('#main th[aria-sort=descending]').length") == 1
    )


def test_head_sorts_by_keyboard_in_both_directions(browser, page):
    browser.open(page)
    browser.js("document.querySelector('#main thead th:first-child button').focus()")
    browser.press("ENTER")
    assert names(browser)[1] == "row 1"  # numbers within texts count as numbers
    browser.press("ENTER")
    assert names(browser)[0] == f"row {N - 1}"


def test_filter_and_search_say_how_many_are_left(browser, page):
    browser.open(page)
    browser.js("SaeTables.main.choose('flags', 'few flips')")
    assert browser.texts("#main [data-count]") == ["1,000 of 3,000 rows"]
    browser.type("#main [data-search]", "row 299 feature")
    found = {f"row {i}" for i in range(N) if "299" in str(i) and i % 3 == 2 and i % 2 == 0}
    assert set(names(browser)) == found
    browser.type("#main [data-search]", "no such thing")
    assert browser.texts("#main td.none") == ["No row matches."]


def test_pages_go_on_and_keep_the_focus(browser, page):
    browser.open(page)
    first = names(browser)
    browser.js("document.querySelector('[aria-label=\"Next page\"]').focus()")
    browser.press("ENTER")
    second = names(browser)
    assert not set(first) & set(second)
    browser.press("ENTER")
    assert not set(second) & set(names(browser))
    assert browser.texts("#main .pages span") == ["page 3 of 120"]


def test_numbers_are_written_as_their_column_says(browser, page):
    browser.open(page)
    browser.type("#main [data-search]", "row 7")
    browser.js("SaeTables.main.sortBy('value')")
    browser.js("SaeTables.main.sortBy('value')")
    (line,) = browser.js(
        "return [...document.querySelectorAll('#main tbody tr')]"
        ".filter(r => r.firstChild.textContent === 'row 7')"
        ".map(r => [...r.children].map(c => c.textContent.trim()))"
    )
    assert line == [
        *("row 7", "null", "\u221243.0 [\u221225.0, +12.5]", "<\u2009.001", "1 \u2192 7"),
        "lexical",
    ]


def test_text_is_never_run(browser, page):
    browser.open(page)
    assert any(ATTACK in name for name in names(browser))
    assert browser.js("return window.hacked ?? null") is None


@pytest.mark.parametrize("dark", [False, True])
def test_phone_scrolls_the_table_not_the_page(browser, page, dark):
    browser.open(page, size=PHONE, dark=dark)
    assert browser.overflow() <= 0
    assert browser.js(
        "const s = document.querySelector('.scroll'); return s.scrollWidth > s.clientWidth"
    )


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast(browser, page, dark):
    """Source: WCAG 2.1, 1.4.3: 4.5 for text, 3 for large or incidental text."""
    browser.open(page, dark=dark)
    ratios = browser.js("""
        const style = getComputedStyle(document.documentElement);
        const light = (name) => {
          const c = style.getPropertyValue(name).trim().replace('#', '');
          const full = c.length === 3 ? [...c].map(x => x + x).join('') : c;
          const [r, g, b] = [0, 2, 4].map(i => parseInt(full.slice(i, i + 2), 16) / 255)
            .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
          return .2126 * r + .7152 * g + .0722 * b;
        };
        const ratio = (a, b) => {
          const [x, y] = [light(a), light(b)].sort((m, n) => n - m);
          return (x + .05) / (y + .05);
        };
        return Object.fromEntries(['--ink', '--dim', '--accent', '--good', '--bad', '--warn',
          '--prompt', '--grey'].map(n => [n, ratio(n, '--bg')]));
    """)
    assert min(v for k, v in ratios.items() if k != "--grey") >= 4.5, ratios
    assert ratios["--grey"] >= 3
