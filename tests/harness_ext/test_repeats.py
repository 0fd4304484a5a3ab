import itertools
import random

import pytest

from harness_ext.records import Record
from harness_ext.repeats import default_ks, maj_at_k, maj_at_ks, vote_counts
from harness_ext.stats import pass_at_k


def record(answer, *, gold="5", status="answered"):
    return Record(
        task="t",
        qid="q",
        arm="none",
        gold=gold,
        answer=answer,
        status=status,
        correct=status == "answered" and answer in (gold, f"{gold}.0", f"0{gold}"),
        reasoning="",
        final="",
    )


def by_enumeration(answers, k):
    """The definition: every choice of k samples, one of the tied answers with equal chance."""
    total = n = 0
    for chosen in itertools.combinations(answers, k):
        n += 1
        votes = {a: chosen.count(a) for a in chosen if a is not None}
        if votes:
            best = [a for a, v in votes.items() if v == max(votes.values())]
            total += ("right" in best) / len(best)
    return total / n


@pytest.mark.parametrize("seed", range(30))
def test_maj_at_k_is_the_mean_over_all_choices(seed):
    rng = random.Random(seed)
    n = rng.randint(1, 9)
    answers = [rng.choice(["right", "a", "b", "c", None]) for _ in range(n)]
    others = [answers.count(x) for x in "abc" if answers.count(x)]
    for k in range(1, n + 1):
        got = maj_at_k(n, answers.count("right"), others, k)
        assert got == pytest.approx(by_enumeration(answers, k)), (answers, k)


def test_worked_values():
    assert maj_at_k(4, 2, (2,), 4) == 0.5  # a tie of two
    assert maj_at_k(4, 1, (1, 1, 1), 4) == 0.25
    assert maj_at_k(5, 2, (1, 1, 1), 5) == 1.0
    assert maj_at_k(5, 1, (), 5) == 1.0  # four samples without an answer do not vote
    assert maj_at_k(5, 0, (2,), 5) == 0.0
    assert maj_at_k(3, 2, (1,), 4) is None
    assert maj_at_k(3, 2, (1,), 1) == pytest.approx(2 / 3) == pytest.approx(pass_at_k(3, 2, 1))
    # METRICS: pass@4 of n=16, c=5
    assert pass_at_k(16, 5, 4) == pytest.approx(0.8186813, abs=1e-7)


def test_sixty_four_samples_take_no_time():
    value = maj_at_k(64, 20, tuple([4] * 8 + [1] * 12), 32)
    assert value is not None
    assert 0.99 < value <= 1


def test_equal_answers_vote_together_in_any_order():
    records = [record(a) for a in ("7", "5", r"\frac{14}{2}", "7.0", "05", "8", r"\frac{16}{2}")]
    records += [record(None, status="no_answer"), record(None, status="truncated")]
    for seed in range(5):
        random.Random(seed).shuffle(records)
        assert vote_counts(records) == (2, (3, 2))


def test_answers_that_are_no_maths_vote_for_themselves():
    records = [record(a, status="parse_error") for a in (r"\frac{", r"\frac{", "}{")]
    assert vote_counts(records) == (0, (2, 1))


def test_which_k_are_reported():
    assert default_ks(1) == ()
    assert default_ks(2) == (2,)
    assert default_ks(6) == (2, 4, 6)
    assert default_ks(64) == (2, 4, 8, 16, 32, 64)


def test_where_nobody_is_right_nothing_is_compared(monkeypatch):
    def refuse(*_):
        raise AssertionError("compared")

    records = [record(rf"x^2+{i}") for i in range(64)]
    monkeypatch.setattr("harness_ext.repeats.same_answer", refuse)
    assert maj_at_ks(records, (1, 64, 65)) == {1: 0.0, 64: 0.0, 65: None}
    monkeypatch.undo()
    assert maj_at_ks([record("5"), record("7"), record("8")], (1, 3)) == {
        1: pytest.approx(1 / 3),
        3: pytest.approx(1 / 3),
    }
