import numpy as np
import pytest

from harness_ext.errors import MetricError
from harness_ext.leaderboard.board import Board, Row
from harness_ext.leaderboard.null import empirical_p, matched, outside, prediction_p
from harness_ext.leaderboard.simulate import Simulation, simulate_board
from harness_ext.leaderboard.split import is_dev
from harness_ext.leaderboard.statistics import Options, analyse
from harness_ext.metrics import estimate
from harness_ext.stats import bh_q_values, mcnemar

TASK = "simulated"


def change_rows(board, **changes):
    rows = tuple(
        row.model_copy(update=changes[row.id]) if row.id in changes else row for row in board.rows
    )
    return Board(board.info, rows, board.records)


def change_records(board, row_id, change):
    records = {**board.records, row_id: tuple(map(change, board.records[row_id]))}
    return Board(board.info, board.rows, records)


@pytest.fixture(scope="module")
def board():
    return simulate_board(Simulation(features=6, nulls=5, questions=60, seed=4))


@pytest.fixture(scope="module")
def results(board):
    return analyse(board)


def test_values_are_those_of_rescore_on_the_test_split(board, results):
    for metric in ("acc_none", "influence", "silent_use_lexicon", "mean_tokens"):
        cell = results.cell("f2", TASK, metric)
        for row, found in (("baseline", cell.base), ("f2", cell.value)):
            own = [r for r in board.records[row] if not is_dev(r.qid, seed=0, share=0.5)]
            assert found.value == pytest.approx(estimate(own, metric).value)
        assert cell.effect.value == pytest.approx(cell.value.value - cell.base.value)
        assert cell.effect.lo <= cell.effect.value <= cell.effect.hi


def test_effect_on_all_questions_is_that_of_both_splits(board, results):
    cell = results.cell("f1", TASK, "acc_none")
    whole = [estimate(board.records[row], "acc_none").value for row in ("f1", "baseline")]
    assert cell.effect_all.value == pytest.approx(whole[0] - whole[1])
    assert cell.n_dev + cell.n_test == 60


def test_accuracy_has_mcnemars_test_on_the_test_split(board, results):
    cell = results.cell("f0", TASK, "acc_none")
    right = {
        row: {r.qid: r.correct for r in board.records[row] if r.arm == "none"}
        for row in ("baseline", "f0")
    }
    test = [q for q in right["f0"] if not is_dev(q, seed=0, share=0.5)]
    fixed = sum(right["f0"][q] and not right["baseline"][q] for q in test)
    broken = sum(right["baseline"][q] and not right["f0"][q] for q in test)
    assert (cell.test, cell.fixed, cell.broken) == ("mcnemar", fixed, broken)
    assert cell.p == mcnemar(fixed, broken)


def test_repeats_are_averaged_and_tested_by_permutation():
    board = simulate_board(Simulation(features=2, nulls=0, questions=30, repeats=3))
    cell = analyse(board).cell("f0", TASK, "acc_none")
    assert cell.test == "permutation"
    assert cell.fixed is None
    assert cell.n_test + cell.n_dev == 30


def test_q_values_count_every_candidate_and_no_null(results):
    cells = [c for c in results.cells if c.metric == "influence"]
    features = [c for c in cells if c.row.startswith("f")]
    assert [c.q for c in features] == pytest.approx(bh_q_values([c.p for c in features]))
    assert all(c.q is None and c.rank is None for c in cells if c.row.startswith("null"))


def test_one_metric_is_one_family_over_all_tasks():
    plan = Simulation(features=4, nulls=2, questions=40, tasks=("a", "b"), hinted=False, seed=2)
    results = analyse(simulate_board(plan), Options(metrics=("mean_tokens", "acc_none")))
    for metric in ("mean_tokens", "acc_none"):
        cells = [c for c in results.cells if c.metric == metric and c.row.startswith("f")]
        assert [c.task for c in cells] == ["a"] * 4 + ["b"] * 4
        assert [c.q for c in cells] == pytest.approx(bh_q_values([c.p for c in cells]))
    alone = analyse(simulate_board(plan), Options(metrics=("mean_tokens",))).families
    one = Simulation(features=4, nulls=2, questions=40, tasks=("a",), hinted=False, seed=2)
    (family,) = analyse(simulate_board(one), Options(metrics=("mean_tokens",))).families
    assert [(f.n_candidates, f.n_tests) for f in alone] == [(4, 8), (4, 8)]
    assert (family.n_candidates, family.n_tests) == (4, 4)
    assert alone[0].smallest_effect == family.smallest_effect
    assert alone[0].smallest_discovery > family.smallest_discovery


def test_a_metric_that_is_asked_for_twice_counts_once(board):
    twice = analyse(board, Options(metrics=("mean_tokens", "mean_tokens")))
    assert twice == analyse(board, Options(metrics=("mean_tokens",)))


def test_ranks_follow_the_shrunk_dev_effect_in_the_metrics_direction(results):
    for metric, order in (("acc_none", -1), ("silent_use_lexicon", 1)):
        ranked = sorted(
            (c for c in results.cells if c.metric == metric and c.rank), key=lambda c: c.rank
        )
        assert [c.rank for c in ranked] == [1, 2, 3, 4, 5, 6]
        keys = [(round(order * c.shrunk_dev, 9), order * c.effect_dev.value) for c in ranked]
        assert keys == sorted(keys)


def test_a_planted_effect_is_ranked_first_and_found():
    plan = Simulation(
        features=8,
        nulls=19,
        questions=160,
        hinted=False,
        accuracy=0.3,
        accuracy_effects={3: 0.4},
        seed=1,
    )
    results = analyse(simulate_board(plan), Options(metrics=("acc_none",)))
    cell = results.cell("f3", TASK, "acc_none")
    assert results.families[0].discoveries == ("f3",)
    assert cell.rank == 1
    assert cell.discovery
    assert cell.p_null == pytest.approx(1 / 20)
    assert cell.effect.value > cell.smallest_effect


def test_what_any_push_does_is_no_discovery():
    plan = Simulation(
        features=6, nulls=19, questions=300, hinted=False, accuracy=0.6, null_effect=-0.3
    )
    results = analyse(simulate_board(plan), Options(metrics=("acc_none",)))
    cells = [c for c in results.cells if c.row.startswith("f")]
    assert sum(c.q <= 0.05 for c in cells) == 6
    assert sum(c.discovery for c in cells) == 0
    assert "6 differ from the baseline as random rows of that size do" in results.families[0].note


def test_candidates_like_random_rows_are_no_discoveries_however_many_there_are():
    # Each row has an effect of its own, so that about half of them differ from the baseline; by
    # the p-values against the random rows alone, four of these six boards have discoveries.
    found = []
    for seed in range(6):
        plan = Simulation(
            features=24, nulls=9, questions=300, hinted=False, null_spread=0.3, seed=seed
        )
        results = analyse(simulate_board(plan), Options(metrics=("acc_none",), draws=200))
        cells = [c for c in results.cells if c.row.startswith("f")]
        assert sum(c.q <= 0.05 for c in cells) > 8
        found.append(any(c.discovery for c in cells))
        far = [c for c in cells if c.p_null <= 0.1 and c.q <= 0.05]
        assert all(c.q_null > 0.05 for c in far if not c.discovery)
    assert sum(found) <= 1


def test_the_surprise_of_one_more_random_row_is_that_of_its_prediction_interval():
    rng = np.random.default_rng(0)
    p_values = [prediction_p(x[0], x[1:]) for x in rng.normal(3, 2, size=(4000, 10))]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.01)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.02)
    assert prediction_p(1.0, np.array([0.5])) is None
    assert prediction_p(1.0, np.zeros(5)) == 0.0
    assert prediction_p(0.0, np.zeros(5)) == 1.0


def test_without_random_rows_the_family_says_so():
    board = simulate_board(Simulation(features=3, nulls=0, questions=20))
    family = analyse(board, Options(metrics=("acc_none",))).families[0]
    assert family.n_null == 0
    assert "no random rows" in family.note


def test_rows_that_were_screened_out_count_as_tried(board):
    records = {k: v for k, v in board.records.items() if k not in ("f4", "f5")}
    fewer = Board(board.info, board.rows, records)
    fewer = change_rows(fewer, f4={"dropped": 1}, f5={"dropped": 1})
    results = analyse(fewer, Options(metrics=("influence",)))
    assert results.families[0].n_candidates == 6
    kept = [results.cell(f"f{i}", TASK, "influence") for i in range(4)]
    assert [c.q for c in kept] == pytest.approx(bh_q_values([*(c.p for c in kept), 1, 1])[:4])
    gone = results.cell("f4", TASK, "influence")
    assert gone.flags == ("screened out",)
    assert gone.effect.value is None
    assert gone.rank is None


def test_another_split_than_that_of_the_screening_is_refused(board):
    screened = change_rows(board, f5={"dropped": 1})
    analyse(screened, Options(metrics=("acc_none",), dev_share=0.5, split_seed=0))
    with pytest.raises(MetricError, match="would publish on some of them"):
        analyse(screened, Options(metrics=("acc_none",), split_seed=1))
    with pytest.raises(MetricError, match=r"dev_share 0\.2"):
        analyse(screened, Options(metrics=("acc_none",), dev_share=0.2))


def test_rows_without_records_that_were_not_screened_out_say_so(board):
    records = {k: v for k, v in board.records.items() if k != "f4"}
    cell = analyse(Board(board.info, board.rows, records)).cell("f4", TASK, "acc_none")
    assert cell.flags == ("no records",)


def test_lexical_rows_are_not_ranked_by_detectors_of_words(board):
    results = analyse(change_rows(board, f1={"lexical": ("professor",)}))
    for metric in ("silent_use_lexicon", "silent_use_regex", "verbalization_lexicon"):
        cell = results.cell("f1", TASK, metric)
        assert "lexical" in cell.flags
        assert cell.rank is None
        assert cell.q is None
        assert not cell.discovery
        assert cell.p is not None
    plain = results.cell("f1", TASK, "acc_none")
    assert plain.flags == analyse(board).cell("f1", TASK, "acc_none").flags
    assert plain.rank is not None


def test_uneven_missing_answers_give_bounds_around_the_effect(board):
    def lose(record):
        if int(record.qid.split("-")[1]) % 4 == 0:
            return record.model_copy(
                update={"status": "truncated", "answer": None, "correct": False}
            )
        return record

    results = analyse(change_records(board, "f0", lose))
    cell = results.cell("f0", TASK, "acc_none")
    assert "uneven missing" in cell.flags
    assert cell.worst <= cell.effect.value <= cell.best
    assert cell.worst < cell.best
    own = [r for r in change_records(board, "f0", lose).records["f0"] if r.arm == "none"]
    test = [r for r in own if not is_dev(r.qid, seed=0, share=0.5)]
    lost = sum(r.status in ("truncated", "no_answer") for r in test) / len(test)
    assert cell.best == pytest.approx(cell.value.value + lost - cell.base.value)
    silent = results.cell("f0", TASK, "silent_use_lexicon")
    assert silent.worst >= silent.best  # of silent use less is better
    assert cell.truncation > cell.truncation_base
    assert cell.no_answer is not None
    assert cell.tokens is not None


def test_even_missing_answers_give_no_bounds(results):
    for cell in results.cells:
        if cell.metric in ("mean_tokens", "truncation"):
            assert cell.worst is None
        assert ("uneven missing" in cell.flags) == (cell.worst is not None)


def test_few_flips_are_flagged_for_verbalization_only():
    board = simulate_board(Simulation(features=2, nulls=0, questions=24, follow=0.15))
    results = analyse(board)
    assert "few flips" in results.cell("f0", TASK, "verbalization_lexicon").flags
    assert "few flips" not in results.cell("f0", TASK, "acc_none").flags


def test_a_metric_without_any_flip_is_undefined_and_counted(board):
    quiet = board
    for row in ("f0", "baseline"):
        quiet = change_records(
            quiet,
            row,
            lambda r: r if r.arm == "none" else r.model_copy(update={"answer": r.gold}),
        )
    cell = analyse(quiet).cell("f0", TASK, "verbalization_lexicon")
    assert "undefined" in cell.flags
    assert (cell.effect.value, cell.p, cell.q, cell.rank) == (None, None, None, None)
    assert cell.discovery is False


def test_questions_of_one_side_only_are_left_out(board):
    half = tuple(r for r in board.records["f0"] if int(r.qid.split("-")[1]) < 40)
    results = analyse(Board(board.info, board.rows, {**board.records, "f0": half}))
    cell = results.cell("f0", TASK, "acc_none")
    assert cell.n_test + cell.n_dev == 40
    same = {r.qid for r in half if not is_dev(r.qid, seed=0, share=0.5)}
    base = [r for r in board.records["baseline"] if r.qid in same]
    assert cell.base.value == pytest.approx(estimate(base, "acc_none").value)


def test_tasks_without_hints_have_the_metrics_that_need_none():
    results = analyse(simulate_board(Simulation(features=2, nulls=2, questions=20, hinted=False)))
    assert results.metrics == ("acc_none", "mean_tokens", "truncation")


def test_correct_hints_get_the_metrics_of_correct_hints(board):
    def turn(record):
        if record.arm != "hint":
            return record
        return record.model_copy(update={"hint_sign": "correct", "hint_target": record.gold})

    turned = board
    for row in board.records:
        turned = change_records(turned, row, turn)
    assert "influence_correct" in analyse(turned).metrics


def test_numbers_do_not_depend_on_the_order_of_rows_or_records(board, results):
    shuffled = Board(
        board.info,
        (board.rows[0], *board.rows[:0:-1]),
        {k: v[::-1] for k, v in reversed(list(board.records.items()))},
    )
    again = analyse(shuffled)
    for cell in results.cells:
        other = again.cell(cell.row, cell.task, cell.metric)
        assert (other.p, other.q, other.p_null) == pytest.approx((cell.p, cell.q, cell.p_null))
        assert (other.rank, other.flags, other.discovery) == (
            cell.rank,
            cell.flags,
            cell.discovery,
        )
        assert other.effect == cell.effect


def test_dev_share_of_zero_ranks_nothing_and_tests_all(board):
    cell = analyse(board, Options(dev_share=0.0)).cell("f0", TASK, "acc_none")
    assert cell.rank is None
    assert (cell.n_dev, cell.n_test) == (0, 60)
    assert cell.effect.value == cell.effect_all.value


def test_the_split_is_by_question_id_and_near_its_share():
    ids = [f"q{i}" for i in range(2000)]
    dev = [is_dev(q, seed=0, share=0.3) for q in ids]
    assert np.mean(dev) == pytest.approx(0.3, abs=0.03)
    assert dev == [is_dev(q, seed=0, share=0.3) for q in ids]
    assert dev != [is_dev(q, seed=1, share=0.3) for q in ids]


def test_empirical_p_is_exact_and_never_zero():
    nulls = np.arange(19, dtype=float)
    assert empirical_p(100.0, nulls) == pytest.approx(1 / 20)
    assert empirical_p(9.0, nulls) == pytest.approx(1.0)
    assert empirical_p(0.0, np.array([])) is None
    ranks = [empirical_p(x[0], x[1:]) for x in np.random.default_rng(0).normal(size=(2000, 20))]
    assert np.mean(np.array(ranks) <= 0.05) == pytest.approx(0.05, abs=0.015)


def test_outside_the_null_needs_to_be_beyond_all_of_few_rows():
    assert outside(1 / 6, 5, 0.05)
    assert not outside(2 / 6, 5, 0.05)
    assert outside(None, 0, 0.05)
    assert not outside(0.06, 100, 0.05)


def test_nulls_of_the_same_size_are_used_where_there_are_some():
    feature = {"kind": "feature", "label": "", "op": "add", "hook_point": "h"}
    rows = [
        Row(id="a1", strength=1.0, **feature),
        Row(id="b1", strength=1.0, **feature),
        Row(id="a2", strength=2.0, **feature),
        Row(id="a3", strength=3.0, **feature),
        Row(id="n1", kind="random_feature", label="", matches="a1"),
        Row(id="n2", kind="random_direction", label="", matches="a2"),
    ]
    assert matched(rows[0], rows) == ("n1",)
    assert matched(rows[1], rows) == ("n1",)
    assert matched(rows[2], rows) == ("n2",)
    assert matched(rows[3], rows) == ("n1", "n2")


def test_units_positions_and_ablations_have_nulls_of_their_own():
    def feature(row_id, op, **more):
        return Row(id=row_id, kind="feature", label="", op=op, hook_point="h", **more)

    rows = [
        feature("a", "add", value=5.0, unit="sae", positions="all"),
        feature("b", "add", value=5.0, unit="residual", positions="all"),
        feature("b2", "add", value=5.0, unit="residual", positions="all"),
        feature("c", "ablate", positions="all"),
        feature("d", "ablate", positions="generated"),
        feature("d2", "ablate", positions="generated"),
        Row(id="spec-two-edits", kind="feature", label=""),
        *(
            Row(id=f"n{i}", kind="random_feature", label="", matches=i)
            for i in ("a", "b", "c", "d")
        ),
    ]
    by_id = {row.id: row for row in rows}
    assert matched(by_id["b2"], rows) == ("nb",)
    assert matched(by_id["d2"], rows) == ("nd",)
    assert matched(by_id["spec-two-edits"], rows) == ("na", "nb", "nc", "nd")


def test_bad_input_is_refused(board):
    with pytest.raises(MetricError, match="unknown metric 'accuracy'"):
        analyse(board, Options(metrics=("accuracy",)))
    with pytest.raises(MetricError, match="'n_flips' is no ratio"):
        analyse(board, Options(metrics=("n_flips",)))
    with pytest.raises(MetricError, match="no row 'baseline'"):
        analyse(Board(board.info, board.rows[1:], board.records))
    lost = {k: v for k, v in board.records.items() if k != "baseline"}
    with pytest.raises(MetricError, match="the baseline has none"):
        analyse(Board(board.info, board.rows, lost))
