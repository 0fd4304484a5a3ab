"""The pages in a real browser, from files: nothing runs that should not, all can be reached."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness_ext.dashboards.build import write_dashboards
from harness_ext.dashboards.choose import choose
from interventions.features.facts_store import FactStore
from interventions.features.scored import Scored, write_scored
from tests.browser import DESKTOP, PHONE, Browser
from tests.harness_ext.dashboards.facts_folder import HOSTILE, SUBJECT, make_facts

EVIL = "<img src=x onerror=window.pwned=1></script><script>window.pwned=1</script>"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight features whose tokens, labels, score and names try to run scripts."""
    folder = tmp_path_factory.mktemp("pages")
    subject = {**SUBJECT, "model": EVIL, "sae_label": EVIL}
    store = FactStore.open(make_facts(folder / "facts", silent=3, subject=subject))
    rows = [{"feature": f, "score": 1 / (1 + f)} for f in (5, 2, 7, 3, 1, 0, 8, 9)]
    write_scored(folder / "s.json", Scored(EVIL, SUBJECT, None, {}, rows))
    (folder / "l.json").write_text(json.dumps({"5": EVIL, "7": "seven wonders"}))
    choice = choose(store, scores=[folder / "s.json"], labels=folder / "l.json")
    write_dashboards(store, choice, folder / "out")
    return folder / "out"


@pytest.fixture
def clean(browser: Browser) -> Iterator[Browser]:
    """Return the browser; after the test, nothing was asked for, reported or run."""
    yield browser
    assert browser.console() == []
    assert browser.outside() == []
    assert browser.js("return window.pwned") is None


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", ["index.html", "features/5.html", "features/3.html"])
def test_no_page_is_wider_than_the_window(
    clean: Browser, pages: Path, name: str, size: tuple[int, int]
) -> None:
    clean.open(pages / name, size=size)
    assert clean.overflow() <= 0


def test_hostile_tokens_are_text(clean: Browser, pages: Path, facts: Path) -> None:
    clean.open(pages / "features" / "5.html")
    shown = "".join(clean.texts(".tokens > *"))
    for token in HOSTILE[:7]:
        if any(token in c.tokens for c in FactStore.open(facts).contexts(5)):
            assert token in shown
    assert "</script><script>" in shown
    assert clean.js("return document.querySelectorAll('main img, main script').length") == 0
    clean.js(
        "for (const t of document.querySelectorAll('.tokens > *'))"
        " t.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    )


def test_labels_scores_and_names_are_text_in_the_index(clean: Browser, pages: Path) -> None:
    clean.open(pages / "index.html")
    assert EVIL in clean.texts(".sub")[0]
    assert EVIL in clean.texts("thead th button")
    assert EVIL in clean.texts("tbody td")


def test_the_index_starts_in_the_order_of_the_scores_and_sorts(clean: Browser, pages: Path) -> None:
    clean.open(pages / "index.html")
    order = [int(text) for text in clean.texts("tbody th")]
    assert order == [5, 2, 7, 3, 1, 0, 8, 9]
    clean.js(
        "[...document.querySelectorAll('thead button')]"
        ".find(b => b.textContent === 'Feature').click()"
    )
    assert [int(text) for text in clean.texts("tbody th")] == sorted(order)


def test_the_index_finds_labels_and_tokens(clean: Browser, pages: Path, facts: Path) -> None:
    clean.open(pages / "index.html")
    clean.type("[data-search]", "WONDERS seven")
    assert clean.texts("tbody th") == ["7"]
    store = FactStore.open(facts)
    deep = store.feature(2).suppressed[-1].text.strip()
    clean.type("[data-search]", deep)
    assert "2" in clean.texts("tbody th")
    clean.type("[data-search]", "no such word")
    assert clean.texts("tbody td.none") == ["No row matches."]


def test_a_row_leads_to_its_page_and_back(clean: Browser, pages: Path) -> None:
    clean.open(pages / "index.html")
    clean.click("tbody th a")
    assert clean.texts("h1")[0].startswith("Feature 5")
    clean.click("[rel=next]")
    assert clean.texts("h1") == ["Feature 2"]
    clean.click(".trail a")
    assert "8 features" in clean.texts("h1")[0]


def test_features_that_fire_together_are_linked_where_they_have_a_page(
    clean: Browser, pages: Path, facts: Path
) -> None:
    clean.open(pages / "features" / "5.html")
    others = {str(other.feature) for other in FactStore.open(facts).feature(5).cofiring}
    there = {str(f) for f in (5, 2, 7, 3, 1, 0, 8, 9)}
    links = set(clean.texts("#cofiring ~ table tbody a"))
    assert links == others & there
    assert set(clean.texts("#cofiring ~ table tbody td:first-child")) == others


def test_arrow_keys_walk_through_a_row_and_say_each_activation(
    clean: Browser, pages: Path, facts: Path
) -> None:
    clean.open(pages / "features" / "5.html")
    first = FactStore.open(facts).contexts(5)[0]
    clean.js("document.querySelector('.tokens').focus({focusVisible: true})")
    tip = "#token-tip b"
    assert float(clean.texts(tip)[0]) == pytest.approx(first.acts[first.center], abs=0.006)
    for step, token in ((1, first.center + 1), (2, first.center + 2)):
        clean.press("ARROW_RIGHT")
        assert float(clean.texts(tip)[0]) == pytest.approx(first.acts[token], abs=0.006), step
    clean.press("HOME")
    assert float(clean.texts(tip)[0]) == pytest.approx(first.acts[0], abs=0.006)
    clean.press("ESCAPE")
    assert clean.js("return document.getElementById('token-tip').hidden")


def test_the_pointer_shows_the_activation_too(clean: Browser, pages: Path) -> None:
    clean.open(pages / "features" / "5.html")
    title = clean.js("return document.querySelector('.tokens .p').title")
    clean.js(
        "document.querySelector('.tokens .p')"
        ".dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    )
    assert clean.texts("#token-tip b") == [title]


def test_a_command_is_copied(clean: Browser, pages: Path) -> None:
    clean.open(pages / "features" / "5.html")
    clean.js(
        "window.copied = null;"
        "document.addEventListener('copy', () => { window.copied = String(getSelection()); });"
        "Object.defineProperty(navigator, 'clipboard', {value: {"
        "writeText: async (text) => { window.copied = text; }}});"
    )
    clean.click("[data-copy=spec]")
    assert clean.js("return window.copied").startswith("name: f5 x1.5\nsae:")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_on_colours_can_be_read(clean: Browser, pages: Path, dark: bool) -> None:
    clean.open(pages / "features" / "5.html", dark=dark)
    ratios = clean.js(
        """
        // Colours as a browser paints them, color-mix and transparency included.
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
        const paint = (...layers) => {
          for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
          const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
            .map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
          return .2126 * r + .7152 * g + .0722 * b;
        };
        const page = getComputedStyle(document.body).backgroundColor;
        return [...document.querySelectorAll(".tokens > b, .remark, .note, .value, .sub, .num")]
          .map(e => {
            const style = getComputedStyle(e);
            const back = paint(page, style.backgroundColor);
            const front = paint(style.color);
            return (Math.max(back, front) + .05) / (Math.min(back, front) + .05);
          });
        """
    )
    assert len(ratios) > 50
    assert min(ratios) >= 4.5
