import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp
from statsmodels.stats.power import TTestPower

from harness_ext.leaderboard.power import (
    power_of_accuracy,
    power_of_mean,
    smallest_accuracy_difference,
    smallest_mean_difference,
)


@pytest.mark.parametrize(
    ("n", "accuracy", "points"), [(198, 0.54, 10), (500, 0.91, 3.5), (30, 0.466, 28)]
)
def test_known_benchmarks_show_about_what_is_said_of_them(n, accuracy, points):
    found = smallest_accuracy_difference(n, accuracy * (1 - accuracy))
    assert found is not None
    assert 100 * found == pytest.approx(points, abs=1.5)


@pytest.mark.parametrize("n", [10, 40, 500])
def test_mean_differences_agree_with_statsmodels(n):
    size = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8, alternative="two-sided")
    assert smallest_mean_difference(2.0, n) == pytest.approx(2 * float(size), rel=1e-3)


def test_for_many_questions_it_is_the_normal_formula():
    z = 1.959964 + 0.841621
    assert smallest_mean_difference(0.5, 10_000) == pytest.approx(z * 0.5 / 100, rel=1e-3)
    found = smallest_accuracy_difference(20_000, 0.2)
    assert found == pytest.approx(z * math.sqrt(0.2 / 20_000), rel=0.02)


def test_a_difference_of_that_size_is_seen_in_80_of_100_samples():
    n, share = 100, 0.25
    size = smallest_accuracy_difference(n, share)
    assert size is not None
    rng = np.random.default_rng(0)
    discordant = share + size**2
    draws = rng.multinomial(
        n, [(discordant + size) / 2, (discordant - size) / 2, 1 - discordant], size=3000
    )
    seen = [a + b > 0 and binomtest(int(a), int(a + b)).pvalue <= 0.05 for a, b, _ in draws]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.03)
    assert power_of_accuracy(n, discordant, size) == pytest.approx(0.8, abs=0.001)


def test_a_mean_difference_of_that_size_is_seen_in_80_of_100_samples():
    n = 25
    size = smallest_mean_difference(1.0, n)
    assert size is not None
    draws = np.random.default_rng(1).normal(size, 1, size=(3000, n))
    seen = ttest_1samp(draws, 0, axis=1).pvalue <= 0.05
    assert np.mean(seen) == pytest.approx(0.8, abs=0.03)
    assert power_of_mean(n, 1.0, size) == pytest.approx(0.8, abs=1e-3)


def test_a_stricter_level_needs_a_larger_difference():
    assert smallest_accuracy_difference(100, 0.2, level=0.05 / 40) > smallest_accuracy_difference(
        100, 0.2
    )
    assert smallest_mean_difference(1.0, 100, level=0.05 / 40) > smallest_mean_difference(1.0, 100)


def test_too_few_questions_show_nothing():
    # Five changed questions of five have p = .0625.
    assert smallest_accuracy_difference(5, 0.2) is None
    assert smallest_mean_difference(1.0, 1) is None
    assert smallest_mean_difference(0.0, 20) is None
    assert smallest_mean_difference(float("nan"), 20) is None
