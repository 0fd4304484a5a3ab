from itertools import product

import numpy as np
import pytest

from harness_ext.leaderboard.rates import mean_intervals, rate_intervals
from harness_ext.leaderboard.resample import (
    Pairs,
    bootstrap_intervals,
    effects,
    permutation_p,
    standard_errors,
)
from harness_ext.leaderboard.shrink import shrink
from harness_ext.stats import bootstrap_p, bootstrap_weights, mcnemar, wilson


def one(top_base, bottom_base, top, bottom):
    return Pairs(
        np.array(top_base, float),
        np.array(bottom_base, float),
        np.array(top, float)[:, None],
        np.array(bottom, float)[:, None],
    )


def slow_t(n0, d0, n1, d1):
    """The studentised difference, straight from its definition."""
    if not sum(d0) or not sum(d1):
        return np.inf
    r0, r1 = sum(n0) / sum(d0), sum(n1) / sum(d1)
    w = (n1 - r1 * d1) / sum(d1) - (n0 - r0 * d0) / sum(d0)
    if (w**2).sum() < 1e-12:
        return 1e9 * np.sign(r1 - r0) * (abs(r1 - r0) > 1e-9)
    return (r1 - r0) / np.sqrt((w**2).sum())


def test_permutation_p_is_that_of_all_swaps():
    rng = np.random.default_rng(3)
    d0, d1 = rng.integers(0, 2, 9), rng.integers(0, 2, 9)
    n0, n1 = d0 * rng.integers(0, 2, 9), d1 * rng.integers(0, 2, 9)
    seen = abs(slow_t(n0, d0, n1, d1))
    extreme = 0
    for swap in product([False, True], repeat=9):
        s = np.array(swap)
        args = np.where(s, n1, n0), np.where(s, d1, d0), np.where(s, n0, n1), np.where(s, d0, d1)
        extreme += abs(slow_t(*args)) >= seen - 1e-9
    found = permutation_p(one(n0, d0, n1, d1), draws=20_000, most=20_000, seed=0)
    assert found[0] == pytest.approx(extreme / 2**9, abs=0.012)


def test_on_binary_outcomes_it_is_the_exact_mcnemar_test():
    base = np.array([0] * 12 + [1] * 4 + [1] * 30)
    row = np.array([1] * 12 + [0] * 4 + [1] * 30)
    ones = np.ones(46)
    found = permutation_p(one(base, ones, row, ones), draws=40_000, most=40_000, seed=0)
    assert found[0] == pytest.approx(mcnemar(12, 4), abs=0.005)


def test_rows_equal_to_the_baseline_have_a_p_of_1():
    top, ones = np.array([0, 1, 1, 0]), np.ones(4)
    assert permutation_p(one(top, ones, top, ones), draws=500, most=5000, seed=0)[0] == 1
    assert permutation_p(one(0 * top, ones, 0 * top, ones), draws=500, most=5000, seed=0)[0] == 1


def test_undefined_ratios_have_no_effect_no_interval_and_no_p():
    pairs = one([0, 0], [0, 0], [1, 0], [1, 1])
    assert np.isnan(effects(pairs)[0])
    assert np.isnan(permutation_p(pairs, draws=300, most=300, seed=0)[0])
    assert np.isnan(bootstrap_intervals(pairs, draws=300, seed=0)[0][0])


def test_small_p_values_get_more_permutations():
    rng = np.random.default_rng(0)
    base, ones = rng.normal(10, 1, 40), np.ones(40)
    pairs = Pairs(base, ones, np.column_stack([base + 5, base + rng.normal(0, 1, 40)]),
                  np.ones((40, 2)))  # fmt: skip
    p = permutation_p(pairs, draws=500, most=6000, seed=0)
    assert p[0] == pytest.approx(1 / 6001)
    assert round(p[1] * 501) == pytest.approx(p[1] * 501)


def test_a_row_has_the_same_p_alone_and_among_others():
    rng = np.random.default_rng(5)
    base, bottom = rng.integers(0, 2, 30).astype(float), np.ones(30)
    rows = rng.integers(0, 2, (30, 4)).astype(float)
    many = permutation_p(Pairs(base, bottom, rows, np.ones((30, 4))), draws=600, most=600, seed=0)
    alone = permutation_p(one(base, bottom, rows[:, 2], bottom), draws=600, most=600, seed=0)
    assert many[2] == alone[0]


def test_standard_error_of_a_mean_is_the_paired_one():
    rng = np.random.default_rng(0)
    a, b, ones = rng.normal(size=50), rng.normal(size=50), np.ones(50)
    assert standard_errors(one(a, ones, b, ones))[0] == pytest.approx(
        np.std(b - a, ddof=1) / np.sqrt(50)
    )


def test_bootstrap_interval_of_a_mean_is_near_students():
    rng = np.random.default_rng(0)
    a, ones = np.zeros(20), np.ones(20)
    b = rng.normal(1, 1, 20)
    lo, hi = bootstrap_intervals(one(a, ones, b, ones), draws=20_000, seed=0)
    half = 2.093 * np.std(b, ddof=1) / np.sqrt(20)
    assert (hi[0] - lo[0]) / 2 == pytest.approx(half, rel=0.06)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (15, 60), (60, 60)])
def test_single_rates_have_wilsons_interval(hits, n):
    top = np.array([1.0] * hits + [0.0] * (n - hits))[:, None]
    lo, hi = rate_intervals(top, np.ones((n, 1)))
    assert (lo[0], hi[0]) == pytest.approx(wilson(hits, n), abs=1e-6)


def test_samples_of_a_question_that_agree_are_one_trial():
    top = np.array([[1.0], [0.0], [1.0], [1.0]])
    lo, hi = rate_intervals(np.repeat(top, 1, axis=0), np.ones((4, 1)))
    assert (lo[0], hi[0]) == pytest.approx(wilson(3, 4), abs=1e-6)
    noisy_lo, noisy_hi = rate_intervals(np.array([[0.7], [0.8], [0.7], [0.8]]), np.ones((4, 1)))
    assert noisy_hi[0] - noisy_lo[0] < hi[0] - lo[0]


def test_undefined_rates_have_no_interval():
    assert np.isnan(rate_intervals(np.zeros((3, 1)), np.zeros((3, 1)))).all()
    assert np.isnan(mean_intervals(np.ones((1, 1)), np.ones((1, 1)))).all()


def test_shrinking_pulls_noise_together_and_leaves_signal():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 100)
    assert np.std(shrink(noise, np.full(100, 0.1))) < 0.3 * np.std(noise)
    signal = rng.normal(0, 1, 100)
    assert np.std(shrink(signal, np.full(100, 0.1))) > 0.95 * np.std(signal)


def test_shrinking_lowers_the_error_of_the_best_of_many():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 0.1, (200, 40))
    seen = true + rng.normal(0, 0.1, true.shape)
    raw, pulled = [], []
    for t, s in zip(true, seen, strict=True):
        found = shrink(s, np.full(40, 0.1))
        best = int(np.argmax(found))
        raw.append(s[best] - t[best])
        pulled.append(found[best] - t[best])
    assert np.mean(raw) > 0.08
    assert abs(np.mean(pulled)) < 0.03


def test_undefined_effects_stay_undefined_and_few_stay_as_they_are():
    effects_, errors = np.array([0.1, np.nan, 0.3]), np.array([0.1, np.nan, 0.1])
    found = shrink(effects_, errors)
    assert found[0] == 0.1
    assert np.isnan(found[1])
    assert shrink(np.zeros(4), np.zeros(4)).tolist() == [0, 0, 0, 0]


def test_with_few_questions_swaps_keep_the_level_where_the_bootstrap_does_not():
    rng = np.random.default_rng(0)
    n, boots, swaps = 16, 0, 0
    for seed in range(400):
        tops, bottoms = [], []
        for _ in range(2):
            bottoms.append((rng.random(n) < 0.8).astype(float))
            tops.append(bottoms[-1] * (rng.random(n) < 0.4))
        w = bootstrap_weights(n, 1000, seed)
        drawn = (w @ tops[1]) / (w @ bottoms[1]) - (w @ tops[0]) / (w @ bottoms[0])
        boots += bootstrap_p(drawn) <= 0.05
        pairs = one(tops[0], bottoms[0], tops[1], bottoms[1])
        swaps += permutation_p(pairs, draws=500, most=500, seed=seed)[0] <= 0.05
    assert boots / 400 > 0.07
    assert swaps / 400 <= 0.05 + 2.33 * np.sqrt(0.05 * 0.95 / 400)
