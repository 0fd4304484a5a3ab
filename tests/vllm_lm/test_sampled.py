"""Sampled responses: one seed each, whatever runs beside them; greedy ones at any batch size."""

import pytest

from tests.vllm_lm.asked import SPECS, ask, facts, questions

SAMPLED = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
REPEATS = 3


def everything(found):
    return [facts(one) for repeats in found for one in repeats]


@pytest.mark.parametrize("name", ["none", "all"])
def test_repeats_do_not_depend_on_the_batch(lm, hf, name):
    asked = questions(hf, 3)
    lm.set_intervention(SPECS[name])
    found = {}
    for size in ("auto", 1, 4):
        lm.batch_size_per_gpu = size
        found[size] = ask(lm, asked, REPEATS, **SAMPLED)
    assert everything(found["auto"]) == everything(found[1]) == everything(found[4])
    for repeats in found["auto"]:
        assert len({one.seed for one in repeats}) == REPEATS
    assert any(len(set(map(str, repeats))) > 1 for repeats in found["auto"])
    # Alone, and in another order, too.
    alone = ask(lm, asked[1:2], REPEATS, **SAMPLED)
    assert everything(alone) == everything(found["auto"][1:2])


def test_another_seed_gives_other_responses(lm, hf):
    asked = questions(hf, 2)
    first = ask(lm, asked, 2, **SAMPLED)
    other = ask(lm, asked, 2, **SAMPLED, seed=5)
    assert {one.seed for r in first for one in r}.isdisjoint(one.seed for r in other for one in r)
    assert everything(first) != everything(other)


def test_arms_share_their_seeds(lm, hf):
    """A steered run uses the random numbers of the baseline."""
    asked = questions(hf, 2)
    plain = ask(lm, asked, 2, **SAMPLED)
    lm.set_intervention(SPECS["all"])
    steered = ask(lm, asked, 2, **SAMPLED)
    assert [[one.seed for one in r] for r in plain] == [[one.seed for one in r] for r in steered]
    lm.set_intervention({"sae": "default", "edits": [{"op": "add", "feature": 1, "value": 0.0}]})
    nothing = ask(lm, asked, 2, **SAMPLED)
    assert [list(map(str, r)) for r in nothing] == [list(map(str, r)) for r in plain]


@pytest.mark.parametrize("size", [1, 4])
def test_greedy_at_any_batch_size(lm, hf, size):
    asked = questions(hf, 6)
    lm.set_intervention(SPECS["all"])
    together = ask(lm, asked)
    lm.batch_size_per_gpu = size
    assert everything(ask(lm, asked)) == everything(together)
