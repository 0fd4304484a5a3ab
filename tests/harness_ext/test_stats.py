import numpy as np
import pytest

from harness_ext.errors import MetricError
from harness_ext.stats import (
    bh_q_values,
    bootstrap_p,
    bootstrap_weights,
    clustered_se,
    mcnemar,
    pass_at_k,
    ratio,
    wilson,
)

CLUSTERS = [[1, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(("fixed", "broken", "p"), [(12, 4, 0.0768127), (4, 0, 0.125), (0, 0, 1)])
def test_exact_mcnemar(fixed, broken, p):
    assert mcnemar(fixed, broken) == pytest.approx(p, abs=1e-7)
    assert mcnemar(broken, fixed) == pytest.approx(p, abs=1e-7)


def test_mid_p_of_mcnemar():
    assert mcnemar(12, 4, mid_p=True) == pytest.approx(0.0490417, abs=1e-7)


def test_wilson():
    assert wilson(0, 7) == pytest.approx((0, 0.354330), abs=1e-6)
    assert wilson(15, 60) == pytest.approx((0.157765, 0.372321), abs=1e-6)
    assert wilson(0, 0) is None


def test_benjamini_hochberg():
    p = [0.001, 0.008, 0.039, 0.041, 0.042, 0.060, 0.074, 0.205, 0.212, 0.216]
    q = [0.01, 0.04, 0.084, 0.084, 0.084, 0.1, 0.105714, 0.216, 0.216, 0.216]
    assert bh_q_values(p) == pytest.approx(q, abs=1e-6)
    assert bh_q_values(p[::-1]) == pytest.approx(q[::-1], abs=1e-6)
    assert bh_q_values([]) == []


def test_clustered_standard_error():
    assert clustered_se(CLUSTERS) == pytest.approx(0.186339, abs=1e-6)
    assert clustered_se(CLUSTERS, finite=True) == pytest.approx(0.215166, abs=1e-6)
    values = [[v] for cluster in CLUSTERS for v in cluster]
    assert clustered_se(values, finite=True) == pytest.approx(0.150756, abs=1e-6)
    assert clustered_se([[1, 0, 1]]) is None


def test_pass_at_k():
    assert pass_at_k(16, 5, 4) == pytest.approx(0.8186813, abs=1e-7)
    assert pass_at_k(4, 0, 4) == 0
    assert pass_at_k(4, 4, 1) == 1
    assert pass_at_k(3, 1, 4) is None


def test_a_ratio_with_one_sample_has_the_usual_error_of_a_mean():
    taking_part = [1.0, 0.0, 0.0, 1.0, 1.0]
    pairs = [(v, 1.0) for v in taking_part] + [(0.0, 0.0)] * 4
    found = ratio(pairs)
    assert found.value == pytest.approx(0.6)
    assert found.se == pytest.approx(np.std(taking_part, ddof=1) / np.sqrt(5))


def test_a_ratio_of_averaged_samples_weighs_questions_by_their_denominator():
    found = ratio([(0.5, 0.5), (0.0, 1.0)])
    assert found.value == pytest.approx(1 / 3)


def test_an_undefined_ratio_is_none_and_not_zero():
    assert ratio([(0.0, 0.0)]).value is None
    assert ratio([(1.0, 1.0), (0.0, 0.0)]).se is None


def test_the_error_of_a_ratio_agrees_with_a_bootstrap():
    rng = np.random.default_rng(1)
    den = rng.integers(0, 4, 300).astype(float)
    num = rng.binomial(den.astype(int), 0.3).astype(float)
    weights = bootstrap_weights(300, 4000, seed=3)
    draws = (weights @ num) / (weights @ den)
    se = ratio(list(zip(num, den, strict=True))).se
    assert se == pytest.approx(draws.std(), rel=0.05)


def test_bootstrap_weights_are_resamples_and_depend_on_the_seed_only():
    weights = bootstrap_weights(7, 50, seed=4)
    assert (weights.sum(axis=1) == 7).all()
    assert (weights == bootstrap_weights(7, 50, seed=4)).all()
    assert (weights != bootstrap_weights(7, 50, seed=5)).any()


def test_bootstrap_p_is_two_sided_and_never_zero():
    assert bootstrap_p(np.full(999, 0.2)) == pytest.approx(2 / 1000)
    assert bootstrap_p(np.full(999, -0.2)) == pytest.approx(2 / 1000)
    assert bootstrap_p(np.zeros(99)) == 1
    with pytest.raises(MetricError):
        bootstrap_p(np.array([]))
