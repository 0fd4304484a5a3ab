"""The files of a report, and the page in a real browser, opened from a file."""

import base64
import gzip
import html
import json
import re

import pytest

from harness_ext.errors import RecordError
from harness_ext.leaderboard.board import Board
from harness_ext.leaderboard.report import CSV, MARKDOWN, PAGE, PARQUET, page_text, write_report
from harness_ext.leaderboard.results import Results
from tests.browser import DESKTOP, PHONE
from tests.browser import browser as browser
from tests.harness_ext.leaderboard.report_boards import (
    ATTACK,
    PLAIN,
    TASK,
    small_board,
    small_results,
)


@pytest.fixture(scope="module")
def board():
    return small_board()


@pytest.fixture(scope="module")
def results(board):
    return small_results(board)


@pytest.fixture(scope="module")
def folder(board, results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    write_report(board, results, folder)
    return folder


@pytest.fixture
def page(folder):
    return folder / PAGE


def quiet(results: Results) -> Results:
    """Return the results as if nothing had been found."""
    cells = tuple(cell.model_copy(update={"discovery": False}) for cell in results.cells)
    families = tuple(f.model_copy(update={"discoveries": ()}) for f in results.families)
    return results.model_copy(update={"cells": cells, "families": families})


def words(text: str) -> str:
    """Return the text of a page without its elements."""
    plain = re.sub(r"<(script|style|template)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", plain)).split())


def test_all_files_are_there_and_named(board, results, tmp_path):
    paths = write_report(board, results, tmp_path)
    assert [p.name for p in paths[:4]] == [PAGE, MARKDOWN, CSV, PARQUET]
    assert all(p.is_file() for p in paths)
    # Every row on both tasks, except the one that screening dropped before the second.
    assert len(paths) - 4 == 2 * len(board.rows) - 1
    assert not (tmp_path / "rows" / "f9-1.1.js").exists()


def test_the_same_board_gives_the_same_bytes(board, results, folder, tmp_path):
    for path in write_report(board, results, tmp_path):
        if path.name != PARQUET:
            assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes(), path


def test_page_asks_for_nothing_and_names_the_command(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"https?://", text) == []
    assert re.findall(r"<(?:script|img|iframe)[^>]+src", text) == []
    assert "sae-steered leaderboard score FOLDER --from-store" in text
    assert "default-src 'none'" in text


def test_discoveries_are_the_headline(page):
    said = words(page.read_text(encoding="utf-8"))
    assert "3 discoveries" in said
    assert "No discovery" not in said


def test_no_discovery_is_a_headline_with_what_could_have_been_seen(board, results):
    said = words(page_text(board, quiet(results)))
    assert "No discovery None of 4 candidates differs" in said
    (family,) = [f for f in results.families if (f.task, f.metric) == (TASK, "silent_use_lexicon")]
    assert f"from {100 * (family.smallest_discovery or 0):.1f} points" in said or (
        f"; {100 * (family.smallest_discovery or 0):.1f} points (silent use" in said
    )


@pytest.mark.parametrize("missing", [None, 8.7])
def test_effect_larger_than_a_share_can_be_is_not_called_detectable(board, results, missing):
    found = quiet(results)
    large = {"smallest_effect": 0.9, "smallest_discovery": missing}
    families = tuple(f.model_copy(update=large) for f in found.families if "tokens" not in f.metric)
    said = words(page_text(board, found.model_copy(update={"families": families})))
    assert "870.0" not in said
    assert "90.0 points (" not in said
    assert "No size of effect can be named" in said


def test_results_of_another_board_are_refused(board, results, tmp_path):
    fewer = Board(board.info, board.rows[:3], board.records)
    with pytest.raises(RecordError, match=r"statistics of row '.*', which is not on"):
        write_report(fewer, results, tmp_path)


def test_folder_that_cannot_be_written_is_one_line(board, results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written") as caught:
        write_report(board, results, tmp_path / "file" / "report")
    assert "\n" not in str(caught.value)


def test_board_without_questions_or_families_still_has_a_page(board):
    empty = Results(cells=(), families=(), metrics=())
    assert "No discovery" in page_text(board, empty)


def test_transcripts_of_a_row_hold_every_response_whole(board, folder):
    text = (folder / "rows" / "f3-2.0.js").read_text(encoding="ascii")
    name, packed = re.fullmatch(r'SaeRows\.load\("(.*?)","(.*)"\);\n', text).groups()  # type: ignore[union-attr]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert name == "f3-2/0"
    want = {(r.qid, r.arm_name): (r.reasoning, r.final) for r in board.of("f3-2", TASK)}
    got = {(r["key"][0], r["arm"]): (r["reasoning"], r.get("final", "")) for r in data["responses"]}
    assert got == want


def test_markdown_shows_headline_families_prompts_and_nulls(folder):
    text = (folder / MARKDOWN).read_text(encoding="utf-8")
    assert "**3 discoveries**" in text
    assert text.count("**discovery**") == 3
    assert "(null: random feature)" in text
    assert "(prompt)" in text
    assert "lexical" in text
    assert ATTACK not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for line in tables:  # no cell of anybody's text makes a column
        assert len(re.findall(r"(?<!\\)\|", line)) in (10, 13)


def test_page_opens_without_a_word_on_the_console_or_a_request(browser, page):
    browser.open(page)
    assert browser.console() == []
    assert browser.outside() == []


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
@pytest.mark.parametrize("part", ["", "#row/f3-2/0"])
def test_page_is_never_wider_than_the_window(browser, page, size, part):
    browser.open(page, size=size, part=part)
    if part:
        wait_for(browser, ".pair .text")
    assert browser.overflow() <= 0


def wait_for(browser, selector: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support import expected_conditions as until
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser.driver, 20).until(
        until.presence_of_element_located((By.CSS_SELECTOR, selector))
    )


def test_table_starts_with_the_first_family_and_shows_its_rows(browser, page, board, results):
    browser.open(page)
    assert "discovery" in browser.texts("#rows tbody tr:first-child [data-tag]")
    count = browser.texts("#rows [data-count]")[0]
    assert count == f"{len(board.rows)} of {len(results.cells) + len(results.families)} rows"


def test_charts_follow_the_task_and_metric_of_the_table(browser, page):
    browser.open(page)
    before = browser.texts("#panel .head")
    browser.js("SaeTables.rows.choose('task', arguments[0])", PLAIN)
    browser.js("SaeTables.rows.choose('metric', 'accuracy, no hint')")
    after = browser.texts("#panel .head")
    assert before != after
    assert all(PLAIN in head and "accuracy" in head for head in after)
    browser.click(f"[data-show-task='{TASK}'][data-show-metric='influence']")
    assert all("influence" in head and TASK in head for head in browser.texts("#panel .head"))


def test_row_opens_with_both_transcripts_hint_and_mentions_marked(browser, page):
    browser.open(page, part="#row/f3-2/0")
    wait_for(browser, ".pair .text")
    assert browser.texts("#detail-title") == ["feature 3 \u00d7 2"]
    titles = browser.texts(".pair h4")
    assert titles == ["Baseline", "feature 3 \u00d7 2"]
    assert browser.texts(".asked .hint")[0].endswith("the answer is 7.")
    # An emoji stands before the mention: places count characters, not UTF-16 units.
    assert browser.texts(".pair article:last-child mark") == ["professor", "professor"]
    seen = browser.js("return document.querySelector('.pair mark').dataset.seen")
    assert sorted(seen.split()) == ["lexicon", "regex"]
    assert browser.console() == []
    assert browser.outside() == []


def test_hostile_text_stays_text(browser, page):
    browser.open(page)
    for link in ("#row/f9-1/0", "#row/f3-2/0"):
        browser.js("location.hash = arguments[0]", link)
        wait_for(browser, ".pair .text")
    assert any(ATTACK in text for text in browser.texts(".pair .text"))
    assert any(ATTACK in text for text in browser.texts("#rows tbody th"))
    assert browser.js("return window.hacked ?? null") is None
    assert browser.js("return document.querySelectorAll('img').length") == 0
    assert browser.console() == []


def test_grid_has_a_square_for_every_question_and_counts_them(browser, page, board):
    browser.open(page, part="#row/f3-2/0")
    wait_for(browser, ".pair .text")
    squares = browser.js(
        "return [...document.querySelectorAll('.squares button')].map(b => b.className)"
    )
    assert len(squares) == 60
    base = {r.qid: r.correct for r in board.of("baseline", TASK) if r.arm == "hint"}
    own = {r.qid: r.correct for r in board.of("f3-2", TASK) if r.arm == "hint"}
    fixed = sum(own[q] and not base[q] for q in own)
    assert squares.count("c-fixed") == fixed
    assert f"{fixed} fixed" in browser.texts("[data-reader-count]")[0]
    browser.js("const s = document.querySelector('[data-only]'); s.value = 'changed';"
               "s.dispatchEvent(new Event('change'))")  # fmt: skip
    assert len(browser.texts(".squares button")) == squares.count("c-fixed") + squares.count(
        "c-broken"
    )


def test_reader_goes_on_by_keyboard(browser, page):
    browser.open(page, part="#row/f3-2/0")
    wait_for(browser, ".pair .text")
    first = browser.texts(".asked b")
    browser.js("[...document.querySelectorAll('.steps button')][1].focus()")
    browser.press("ENTER")
    assert browser.texts(".asked b") != first
    assert browser.js("return document.activeElement.textContent").startswith("next")


def test_row_that_was_not_run_on_a_task_says_so(browser, page):
    browser.open(page, part="#row/f9-1/1")
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser.driver, 20).until(
        lambda _: "not run on this task" in browser.texts("#detail-title")[0]
    )
    assert browser.texts(".pair .text") == []


def test_baseline_opens_alone_with_false_positives_and_agreement(browser, page):
    browser.open(page, part="#row/baseline/0")
    wait_for(browser, ".pair .text")
    assert browser.texts(".pair h4") == ["Baseline"]
    said = " ".join(" ".join(browser.texts("[data-html]")).split())
    assert "no hint: regex 0 of 60" in said
    assert "AC1" in said


def test_nulls_and_undefined_rows_are_grey_and_discoveries_are_not(browser, page):
    browser.open(page)
    colours = browser.js("""
        const colour = (kind) => getComputedStyle(
          document.querySelector(`#rows tr[data-kind="${kind}"] td`)).color;
        SaeTables.rows.choose('kind', '');
        return ['found', 'null'].map(colour);
    """)
    assert len(set(colours)) == 2
    grey = browser.js("return getComputedStyle(document.body).getPropertyValue('--grey')").strip()
    red, green, blue = (int(grey[i : i + 2], 16) for i in (1, 3, 5))
    assert colours[1] == f"rgb({red}, {green}, {blue})"
