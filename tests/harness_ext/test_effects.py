"""Effects of an intervention, paired by question."""

import pytest

from harness_ext.effects import fixed_cohort, paired_effect
from harness_ext.errors import MetricError
from tests.harness_ext.made_records import response, run


def accuracy_runs(fixed, broken, same_right, same_wrong):
    outcomes = [(0, 1)] * fixed + [(1, 0)] * broken + [(1, 1)] * same_right + [(0, 0)] * same_wrong
    base = [response(f"q{i}", answer="7" if a else "5") for i, (a, _) in enumerate(outcomes)]
    steered = [response(f"q{i}", answer="7" if b else "5") for i, (_, b) in enumerate(outcomes)]
    return base, steered


def test_a_paired_accuracy_has_the_exact_mcnemar_p():
    effect = paired_effect(*accuracy_runs(12, 4, 100, 82), "acc_none", draws=500)
    assert effect.test == "mcnemar"
    assert effect.p == pytest.approx(0.0768127, abs=1e-7)
    assert effect.difference == pytest.approx(8 / 198)
    assert effect.n_questions == 198
    assert effect.lo < effect.difference < effect.hi


def test_no_change_has_no_effect():
    base, _ = accuracy_runs(3, 3, 10, 10)
    effect = paired_effect(base, base, "acc_none", draws=200)
    assert (effect.difference, effect.lo, effect.hi, effect.p) == (0, 0, 0, 1)


def test_the_interval_pairs_by_question():
    # Half of the questions are always right: unpaired, the interval would be wide.
    base, steered = accuracy_runs(2, 0, 99, 99)
    effect = paired_effect(base, steered, "acc_none", draws=2000)
    assert effect.difference == pytest.approx(0.01)
    assert effect.lo == pytest.approx(0, abs=1e-9)
    assert effect.hi < 0.03


def test_an_effect_on_a_ratio_is_bootstrapped_over_questions():
    effect = paired_effect(run(100, 40, 20), run(100, 20, 14), "silent_use_lexicon", draws=1000)
    assert effect.test == "bootstrap"
    assert effect.base == pytest.approx(0.2)
    assert effect.steered == pytest.approx(0.06)
    assert effect.difference == pytest.approx(-0.14)
    assert effect.lo < -0.14 < effect.hi < 0
    assert effect.p < 0.05
    again = paired_effect(run(100, 40, 20), run(100, 20, 14), "silent_use_lexicon", draws=1000)
    assert again == effect


def test_questions_on_one_side_are_left_out_and_counted():
    effect = paired_effect(run(10, 4, 2), run(8, 4, 2), "influence", draws=100)
    assert (effect.n_questions, effect.n_unpaired) == (8, 2)


def test_an_undefined_effect_is_none():
    effect = paired_effect(run(10, 0, 0), run(10, 4, 2), "verbalization_regex", draws=100)
    assert (effect.base, effect.steered) == (None, 0.5)
    assert (effect.difference, effect.lo, effect.hi, effect.p) == (None, None, None, None)


def test_runs_without_a_common_question_are_refused():
    with pytest.raises(MetricError, match="none of 3 base and 2 steered"):
        paired_effect(run(3, 1, 1), run(2, 1, 1, prefix="z"), "influence")
    with pytest.raises(MetricError, match="unknown metric 'luck'"):
        paired_effect(run(3, 1, 1), run(3, 1, 1), "luck")


def test_the_fixed_cohort_asks_the_same_questions():
    cohort = fixed_cohort(run(100, 40, 20), run(100, 20, 14), detector="regex")
    assert cohort.n == 40
    assert cohort.still_flipped == 20
    assert (cohort.base, cohort.steered) == (0.5, pytest.approx(14 / 40))
    assert fixed_cohort(run(5, 0, 0), run(5, 1, 1)).base is None
