"""p-values of noise are uniform, pairs are swapped as pairs, intervals cover."""

import itertools

import pytest
import torch
from scipy import stats

from interventions.features.permutation import (
    Design,
    bootstrap_interval,
    permutation_p,
    q_values,
)


def design(n_base, n_exp, shared=0):
    groups = [f"g{i}" for i in range(n_base)]
    groups += [f"g{i}" if i < shared else f"h{i}" for i in range(n_exp)]
    return Design.of(groups, torch.arange(n_base + n_exp) >= n_base)


@pytest.mark.parametrize("shared", [0, 20, 7])
def test_p_of_noise_is_uniform(shared):
    found = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        # Sparse and skewed like activations; one column a feature.
        noise = torch.randn(40, 300, generator=generator).relu() ** 2
        found.append(permutation_p(noise, design(20, 20, shared), most=2000, seed=seed))
    assert stats.kstest(torch.cat(found).numpy(), "uniform").pvalue > 0.01


def test_p_is_that_of_all_permutations():
    values = torch.tensor([[1.0], [2.0], [3.5], [4.0], [7.0], [9.0], [9.5]])
    layout = design(3, 4)
    observed = abs(values[3:].mean() - values[:3].mean())
    every = [
        abs(values[list(c)].mean() - values[[i for i in range(7) if i not in c]].mean())
        for c in itertools.combinations(range(7), 4)
    ]
    exact = sum(bool(d >= observed - 1e-6) for d in every) / len(every)
    p = permutation_p(values, layout, most=20_000)
    assert float(p[0]) == pytest.approx(exact, abs=0.006)


def test_pairs_see_what_a_shuffle_does_not():
    generator = torch.Generator().manual_seed(0)
    question = 20 * torch.randn(30, 1, generator=generator)
    values = torch.cat([question, question + 1 + 0.2 * torch.randn(30, 1, generator=generator)])
    assert float(permutation_p(values, design(30, 30, shared=30))[0]) < 0.001
    assert float(permutation_p(values, design(30, 30))[0]) > 0.2


def test_labels_keep_pairs_and_sizes():
    layout = design(5, 6, shared=3)
    drawn = layout.draw(200, torch.Generator().manual_seed(0))
    assert (drawn.sum(1) == 6).all()
    assert (drawn[:, layout.pairs[:, 0]] != drawn[:, layout.pairs[:, 1]]).all()
    assert drawn.float().mean(0).min() > 0.2


def test_q_is_benjamini_and_hochberg():
    p = [0.001, 0.008, 0.039, 0.041, 0.042, 0.060, 0.074, 0.205, 0.212, 0.216]
    q = [0.01, 0.04, 0.084, 0.084, 0.084, 0.1, 0.105714, 0.216, 0.216, 0.216]
    torch.testing.assert_close(
        q_values(torch.tensor(p).double()), torch.tensor(q).double(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("shared", [0, 25])
def test_intervals_cover_the_true_difference(shared):
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(50, 400, generator=generator)
    values[25:] += 0.7
    low, high = bootstrap_interval(values, design(25, 25, shared), resamples=500)
    covered = ((low <= 0.7) & (high >= 0.7)).double().mean()
    assert 0.88 < float(covered) < 0.98


def test_the_same_seed_gives_the_same_figures():
    values = torch.randn(20, 5, generator=torch.Generator().manual_seed(3))
    layout = design(10, 10)
    assert torch.equal(permutation_p(values, layout, seed=4), permutation_p(values, layout, seed=4))
    first, again = (bootstrap_interval(values, layout, seed=4, resamples=50) for _ in range(2))
    assert torch.equal(first, again)
