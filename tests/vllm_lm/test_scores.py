"""Log-likelihoods of the steered model, against `backend=hf`."""

import pytest
from lm_eval.api.instance import Instance

from tests.lm_requests import generate_requests, loglikelihood_requests
from tests.vllm_lm.asked import ADD, STRONG, spec

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Berlin"),
    ("2 + 2 =", " 4"),
    ("2 + 2 =", " 4, and 3 + 3 = 6. Both are even"),
    ("She picked up her guitar and began to", " play a song for the whole village"),
    ("", "Once upon a time there was a river"),
]
TEXTS = [
    "The band played all night, and the crowd sang along.",
    "Seven plus five is twelve. " * 90,  # several windows
]
SPECS = {
    "none": None,
    "all": spec(STRONG),
    "prompt": spec(STRONG, positions="prompt"),
    "generated": spec(ADD, positions="generated"),
}


@pytest.mark.parametrize("name", SPECS)
def test_same_scores(lm, hf, say, name):
    for model in (lm, hf):
        model.set_intervention(SPECS[name])
    # What the steered model itself would say, so that some are its first choice.
    contexts = [context for context, _ in PAIRS[::2]]
    likely = hf.generate_until(generate_requests(contexts, {"max_gen_toks": 2}), disable_tqdm=True)
    pairs = [
        *PAIRS,
        *((context, str(text)) for context, text in zip(contexts, likely, strict=True)),
    ]
    ours, theirs = (
        model.loglikelihood(loglikelihood_requests(pairs), disable_tqdm=True) for model in (lm, hf)
    )
    told = lm.get_model_info()["sae_steered"]["receipt"]
    hf.set_intervention(None)
    plain = hf.loglikelihood(loglikelihood_requests(pairs), disable_tqdm=True)
    worst = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    moved = sum(abs(a[0] - b[0]) > 0.01 for a, b in zip(theirs, plain, strict=True))
    say(f"largest difference {worst:.1e}; {moved} of {len(pairs)} scores are not those unsteered")
    assert worst < 1e-3
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert any(greedy for _, greedy in ours)
    assert not all(greedy for _, greedy in ours)
    assert moved >= (3 if SPECS[name] else 0)
    if SPECS[name]:
        # A prompt that is scored never comes from the cache. (hf scores both capitals at once.)
        assert (told["rows"], told["cached_tokens"]) == (len(pairs), 0)


@pytest.mark.parametrize("name", ["none", "all", "generated"])
def test_same_rolling_scores(lm, hf, say, name):
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(TEXTS)]
    found = []
    # Windows of 126 tokens: an engine keeps a place for the token that it has to generate.
    for model, length in ((lm, 128), (hf, 126)):
        model.set_intervention(SPECS[name])
        before, model._max_length = model._max_length, length
        found.append(model.loglikelihood_rolling(requests, disable_tqdm=True))
        model._max_length = before
    say(f"{found}")
    assert all(score < -10 for score in found[0])
    assert found[0] == pytest.approx(found[1], abs=1e-3 * 5)  # five windows in the longer text


def test_a_row_that_does_not_fit(lm):
    from interventions.errors import SpecError

    with pytest.raises(SpecError, match="never truncated"):
        lm.loglikelihood(loglikelihood_requests([("a " * 2000, "b")]), disable_tqdm=True)
