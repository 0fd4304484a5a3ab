import pytest
import torch

from harness_ext.sampling import SeededSampler, response_seed, sampling_processors


def draw(seeds, scores, steps, **options):
    processors = sampling_processors(
        {"temperature": 1.0, **options}, seeds, steps, torch.device("cpu")
    )
    ids = torch.zeros(len(seeds), 1, dtype=torch.long)
    return torch.stack([processors(ids, scores.clone()).argmax(-1) for _ in range(steps)], dim=1)


def test_seeds_are_those_of_question_and_repeat():
    assert response_seed(1, "q", 0) == response_seed(1, "q", 0)
    others = [(2, "q", 0), (1, "q2", 0), (1, "q", 1), (1, "q\x1f0", 0)]
    seeds = {response_seed(*args) for args in [(1, "q", 0), *others]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seed_is_the_same_in_every_version():
    """A stored run is only repeatable if this number never changes."""
    assert response_seed(1234, "question 1", 0) == 4809387461971871648


def test_frequencies_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    n = 4000
    tokens = draw(list(range(n)), probabilities.log().expand(n, -1), 1).flatten()
    for token, p in enumerate(probabilities.tolist()):
        share = (tokens == token).float().mean().item()
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)


def test_a_row_does_not_depend_on_its_batch_or_the_budget():
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    together = draw([11, 22, 33], scores, 40)
    for row, seed in enumerate([11, 22, 33]):
        assert torch.equal(draw([seed], scores[row : row + 1], 40)[0], together[row])
        # Budgets differ between batches: the first numbers must not.
        for steps in (1, 3, 17):
            assert torch.equal(draw([seed], scores[row : row + 1], steps)[0], together[row, :steps])


def test_one_score_is_left_and_it_is_finite():
    sampler = SeededSampler([1, 2], 1, torch.device("cpu"))
    picked = sampler(torch.zeros(2, 1), torch.randn(2, 9))
    assert torch.isfinite(picked).sum(dim=-1).tolist() == [1, 1]


def test_tokens_of_no_mass_are_never_drawn():
    scores = torch.full((500, 6), float("-inf"))
    scores[:, 2], scores[:, 4] = 0.0, 1.0
    tokens = draw(list(range(500)), scores, 1)
    assert set(tokens.flatten().tolist()) == {2, 4}
    only = torch.full((500, 6), float("-inf"))
    only[:, 5] = 3.0
    assert set(draw(list(range(500)), only, 1).flatten().tolist()) == {5}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 0}, {0, 1, 2, 3}),
        ({"top_k": None, "top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_p": 0.75}, {0, 1}),
        ({"min_p": 0.5}, {0, 1}),
        ({"temperature": 0.01}, {0}),
    ],
)
def test_truncation_and_temperature(options, kept):
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    n = 600
    tokens = draw(list(range(n)), probabilities.log().expand(n, -1), 1, **options)
    assert set(tokens.flatten().tolist()) == kept
