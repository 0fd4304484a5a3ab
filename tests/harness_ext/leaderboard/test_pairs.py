"""What the reader and the funnel count agrees with the metrics of the package."""

import pytest

from harness_ext.effects import fixed_cohort
from harness_ext.leaderboard.board import BASELINE
from harness_ext.leaderboard.pairs import (
    change,
    false_positives,
    fixed_verbalization,
    funnel_steps,
    hint_use,
    responses,
)
from harness_ext.metrics import summarise
from tests.harness_ext.leaderboard.report_boards import TASK, small_board

BOARD = small_board()


@pytest.mark.parametrize("row", [BASELINE, "f3-2", "say"])
@pytest.mark.parametrize("detector", ["regex", "lexicon"])
def test_use_of_the_hint_is_that_of_rescore(row, detector):
    records = BOARD.of(row, TASK)
    (summary,) = summarise(records)[TASK].values()
    use = hint_use(responses(records), "wrong", detector)
    assert (use.eligible, use.flips) == (summary["n_eligible"], summary["n_flips"])
    assert use.influence == pytest.approx(summary["influence"])
    for name in ("verbalization", "silent_use", "verbalized_use"):
        assert getattr(use, name) == pytest.approx(summary[name][detector])


@pytest.mark.parametrize("detector", ["regex", "lexicon"])
def test_same_flips_are_the_fixed_cohort(detector):
    sides = BOARD.of(BASELINE, TASK), BOARD.of("f3-2", TASK)
    cohort = fixed_cohort(*sides, detector=detector)
    base, steered = ({r.key: r for r in responses(side)} for side in sides)
    assert fixed_verbalization(base, steered, "wrong", detector) == (
        cohort.n,
        cohort.base,
        cohort.steered,
    )
    assert cohort.n > 10


def test_funnel_only_gets_narrower_and_ends_at_silent_use():
    records = BOARD.of(BASELINE, TASK)
    steps = funnel_steps(responses(records), "wrong")
    counts = [n for _, n in steps]
    assert counts == sorted(counts, reverse=True)
    (summary,) = summarise(records)[TASK].values()
    assert steps[0] == ("hinted", 60)
    assert dict(steps)["eligible"] == summary["n_eligible"]
    assert counts[-1] / dict(steps)["eligible"] == pytest.approx(summary["silent_use"]["lexicon"])
    assert dict(steps)["without truncated"] == 60 - summary["excluded"]["truncated"]


def test_false_positives_are_those_of_rescore():
    records = BOARD.of(BASELINE, TASK)
    (summary,) = summarise(records)[TASK].values()
    for detector, (n, of) in false_positives(responses(records), "none").items():
        assert n / of == pytest.approx(summary["false_positive_rate_by_arm"]["none"][detector])


def test_what_became_of_a_question():
    none = {r.qid: r for r in BOARD.of(BASELINE, TASK) if r.arm == "none"}
    right = next(r for r in none.values() if r.correct)
    wrong = next(r for r in none.values() if not r.correct and r.status == "answered")
    cut = next(r for r in none.values() if r.status == "truncated")
    pairs = [(right, right), (wrong, wrong), (wrong, right), (right, wrong), (cut, right)]
    names = ["right", "wrong", "fixed", "broken", "truncated"]
    assert [change(*pair) for pair in pairs] == names
    assert change(None, right) == change(right, None) == "missing"
