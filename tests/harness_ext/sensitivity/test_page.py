"""The page in a real browser: texts are text, nothing is asked for, a phone can read it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness_ext import cli
from harness_ext.sensitivity import output
from harness_ext.sensitivity.prompts import SEPARATOR
from tests.browser import DESKTOP, PHONE, Browser
from tests.harness_ext.sensitivity.runs import FEATURES, command, only_folder
from tests.llm_server import completion, serve

EVIL = "<img src=x onerror=window.pwned=1></script><script>window.pwned=1</script>"
LONG = "rain" * 60


@pytest.fixture(scope="module")
def page(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose writer and whose texts try to run scripts; one feature has no texts."""
    folder = tmp_path_factory.mktemp("page")

    def reply(n, body):
        if n == 0:
            return completion("")
        return completion(SEPARATOR.join([EVIL, f"{{{{the}}}} inn {EVIL}", LONG, "the rain"]))

    more = ("--attempts", "1", "--max-workers", "1", "--llm-model", EVIL, "--samples", "4")
    with serve(reply) as server:
        assert cli.main(command(place, folder, server.url, *more)) == 0
    return only_folder(folder) / output.PAGE


@pytest.fixture
def clean(browser: Browser) -> Iterator[Browser]:
    """Return the browser; after the test, nothing was asked for, reported or run."""
    yield browser
    assert browser.console() == []
    assert browser.outside() == []
    assert browser.js("return window.pwned") is None


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_is_not_wider_than_the_window(
    clean: Browser, page: Path, size: tuple[int, int], dark: bool
) -> None:
    clean.open(page, size=size, dark=dark)
    assert clean.overflow() <= 0


def test_what_the_writer_wrote_is_text(clean: Browser, page: Path) -> None:
    clean.open(page)
    shown = [text.replace("·", " ") for text in clean.texts(".context-list .tokens")]
    assert sum("onerror=window.pwned=1" in text for text in shown) == 4
    # The table's data stand in a script of JSON.
    assert (
        clean.js(
            "return document.querySelectorAll("
            "'main img, main script:not([type=\"application/json\"])').length"
        )
        == 0
    )
    assert EVIL in clean.texts(".sub")[0]


def test_every_feature_has_a_row_that_leads_to_its_texts(clean: Browser, page: Path) -> None:
    clean.open(page)
    targets = clean.js(
        "return [...document.querySelectorAll('#features a')].map(a => a.getAttribute('href'))"
    )
    assert sorted(targets) == sorted(f"#f{feature}" for feature in FEATURES)
    assert all(clean.js("return !!document.querySelector(arguments[0])", t) for t in targets)
    assert "of 8 generated texts are an example again" in " ".join(clean.texts(".remark"))
    assert clean.texts("main .note") == ["No texts came: empty."]
    coloured = clean.js(
        "return [...document.querySelectorAll('.tokens b')].filter("
        "b => getComputedStyle(b).backgroundColor !== 'rgba(0, 0, 0, 0)').length"
    )
    assert coloured > 0
