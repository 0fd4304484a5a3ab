"""What analyse() finds in simulated leaderboards; more of it: benchmarks/leaderboard_noise.py."""

from collections import defaultdict

import numpy as np
import pytest
from scipy.stats import binom, binomtest, kstest

from harness_ext.leaderboard import statistics
from harness_ext.leaderboard.power import power_of_accuracy
from harness_ext.leaderboard.simulate import Simulation, simulate_board
from harness_ext.leaderboard.statistics import Options, analyse

METRICS = ("acc_none", "influence", "silent_use_lexicon", "mean_tokens")
BOARDS = 40
LEVEL = 0.05


def noise_boards():
    for seed in range(BOARDS):
        repeats = 1 + seed % 2
        yield simulate_board(
            Simulation(features=10, nulls=0, questions=30, repeats=repeats, seed=seed)
        )


def families_with_a_discovery():
    found = defaultdict(int)
    for seed, board in enumerate(noise_boards()):
        # No random rows: the q-values alone must keep the level.
        for family in analyse(board, Options(metrics=METRICS, seed=seed, draws=500)).families:
            found[family.metric] += bool(family.discoveries)
    return found


@pytest.mark.slow
def test_a_leaderboard_of_noise_comes_out_empty():
    found = families_with_a_discovery()
    # The largest count that a share of .05 gives in 99 of 100 runs of 40 boards.
    most = binom.ppf(0.99, BOARDS, LEVEL)
    for metric in METRICS:
        assert found[metric] <= most, metric
    assert sum(found.values()) <= binom.ppf(0.999, BOARDS * len(METRICS), LEVEL)


@pytest.mark.slow
def test_the_same_check_fails_without_the_correction(monkeypatch):
    monkeypatch.setattr(statistics, "bh_q_values", list)
    found = families_with_a_discovery()
    most = binom.ppf(0.99, BOARDS, LEVEL)
    assert found["influence"] > most
    assert found["mean_tokens"] > most
    assert sum(found.values()) > binom.ppf(0.999, BOARDS * len(METRICS), LEVEL)


def test_p_values_of_noise_are_uniform():
    # One row a board: p-values of rows that share a baseline are not independent.
    p_values = []
    for seed in range(120):
        plan = Simulation(features=1, nulls=0, questions=24, hinted=False, seed=seed)
        results = analyse(
            simulate_board(plan), Options(metrics=("mean_tokens",), dev_share=0, seed=seed)
        )
        p_values.append(results.cells[0].p)
    assert kstest(p_values, "uniform").pvalue > 0.01
    hits = sum(p <= 0.1 for p in p_values)
    assert binomtest(hits, len(p_values), 0.1, alternative="greater").pvalue > 0.01


def test_planted_effects_are_seen_as_often_as_the_formula_says():
    questions, boards = 80, 150
    hits, shares, sizes = 0, [], []
    for seed in range(boards):
        plan = Simulation(
            features=1, nulls=0, questions=questions, hinted=False, accuracy=0.4, missing=0.0,
            spread=0.5, copied=0.0, accuracy_effects={0: 0.18}, seed=seed,
        )  # fmt: skip
        options = Options(metrics=("acc_none",), dev_share=0, draws=200)
        cell = analyse(simulate_board(plan), options).cells[0]
        hits += cell.p <= 0.05
        sizes.append(cell.effect.value)
        shares.append((cell.fixed + cell.broken) / questions)
    formula = power_of_accuracy(questions, float(np.mean(shares)), float(np.mean(sizes)))
    assert 0.3 < formula < 0.9
    assert binomtest(hits, boards, formula).pvalue > 0.01


@pytest.mark.slow
def test_false_discoveries_beside_planted_effects_stay_at_the_level():
    real = {f"f{i}" for i in range(4)}
    false, found = [], []
    for seed in range(20):
        plan = Simulation(
            features=16, nulls=0, questions=150, hinted=False, accuracy=0.35, seed=seed,
            accuracy_effects=dict.fromkeys(range(4), 0.35),
        )  # fmt: skip
        family = analyse(simulate_board(plan), Options(metrics=("acc_none",))).families[0]
        hits = set(family.discoveries)
        false.append(len(hits - real) / max(len(hits), 1))
        found.append(len(hits & real) / 4)
    assert np.mean(false) <= LEVEL + 2 * np.std(false) / np.sqrt(len(false))
    assert np.mean(found) > 0.6
