"""Dose and response: a curve for each feature that was tried with two sizes."""

import re
from dataclasses import replace

import pytest

from harness_ext.leaderboard.board import Board
from harness_ext.leaderboard.report_charts import by_key, family_dose
from tests.harness_ext.leaderboard.report_boards import TASK, small_board, small_results


@pytest.fixture(scope="module")
def made():
    board = small_board()
    results = small_results(board)
    (family,) = [f for f in results.families if (f.task, f.metric) == (TASK, "silent_use_lexicon")]
    return board, by_key(results), family


def test_a_feature_with_two_strengths_has_a_curve_with_both(made):
    board, cells, family = made
    chart = str(family_dose(board, cells, family, 0))
    assert "1 curve: f3 clamp" in chart
    assert "multiples of the largest activation" in chart
    said = re.findall(r"<title>f3 clamp[^<]*: ([^<]*) at ([^<]*)</title>", chart)
    effects = {at: cells["f3-" + at, TASK, family.metric].effect.value for at in ("1", "2")}
    assert [at for _, at in said] == ["1", "2"]
    for shown, at in said:
        number = float(shown.replace("\u2212", "-"))
        assert number == pytest.approx(100 * effects[at], abs=0.01)


def test_sizes_given_as_values_are_on_the_axis(made):
    board, cells, family = made
    rows = tuple(row.model_copy(update={"strength": None}) for row in board.rows)
    chart = str(family_dose(replace(board, rows=rows), cells, family, 0))
    assert "value of the edit" in chart
    assert "at 8<" in chart


def test_one_size_alone_is_no_curve(made):
    board, cells, family = made
    fewer = Board(board.info, tuple(r for r in board.rows if r.id != "f3-2"), board.records)
    assert family_dose(fewer, cells, family, 0) is None
