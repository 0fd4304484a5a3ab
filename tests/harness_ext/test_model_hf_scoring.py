"""Steered loglikelihoods against log_softmax of a model with an independent hook."""

import pytest
import torch

from interventions.errors import ReceiptError, SpecError
from tests.lm_requests import layers_of, loglikelihood_requests
from tests.tiny_models import FAMILIES

EDIT = {"op": "add", "feature": 3, "value": 6.0}
PAIRS = [
    ("the cat", " sat on the mat"),
    ("the cat", " ran"),
    ("What is 3 + 4?", " 7 in the end"),
    ("x", "yz"),
    ("a much longer context than the others have, with a mat", " and"),
]


def by_hand(lm, context, continuation, positions):
    """Return the continuation's log-probability with a hook of this test's own."""
    from safetensors.torch import load_file

    edit_spec = lm.plan.spec.edits[0]
    weights = load_file(f"{lm.plan.spec.sae.path}/sae_weights.safetensors")
    vector = edit_spec.value * weights["W_dec"][edit_spec.feature]
    ids = context + continuation
    n = len(context)
    where = {
        "all": slice(None),
        "prompt": slice(0, n),
        "generated": slice(n, None),
        "last_prompt": slice(n - 1, n),
    }[positions]

    def add(module, args, output):
        resid = output[0] if isinstance(output, tuple) else output
        moved = resid.clone()
        moved[:, where] += vector
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = layers_of(lm.model)[1].register_forward_hook(add)
    try:
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids[:-1]])).logits.log_softmax(-1)[0]
    finally:
        handle.remove()
    rows = logits[n - 1 :]
    greedy = rows.argmax(-1).tolist() == continuation
    return sum(rows[i, token].item() for i, token in enumerate(continuation)), greedy


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last_prompt"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_loglikelihood(steered, family, positions):
    lm = steered([EDIT], family=family, spec={"positions": positions}, batch_size=3)
    scores = lm.loglikelihood(loglikelihood_requests(PAIRS), disable_tqdm=True)
    assert family in FAMILIES
    for (context, continuation), (score, greedy) in zip(PAIRS, scores, strict=True):
        wanted, wanted_greedy = by_hand(lm, *lm._encode_pair(context, continuation), positions)
        assert score == pytest.approx(wanted, abs=1e-4)
        assert greedy == wanted_greedy
    unsteered = steered([], family=family, batch_size=3)
    base = unsteered.loglikelihood(loglikelihood_requests(PAIRS), disable_tqdm=True)
    assert max(abs(a[0] - b[0]) for a, b in zip(scores, base, strict=True)) > 0.01


def test_multiple_choice_of_one_token_each(steered):
    """lm-eval runs such a question once and reads all choices from one row."""
    lm = steered([EDIT], spec={"positions": "last_prompt"})
    pairs = [("Question: which?\nAnswer:", letter) for letter in "ABCD"]
    pairs += [("Another one\nAnswer:", letter) for letter in "ABCD"]
    scores = lm.loglikelihood(loglikelihood_requests(pairs), disable_tqdm=True)
    for (context, continuation), (score, _) in zip(pairs, scores, strict=True):
        wanted, _ = by_hand(lm, *lm._encode_pair(context, continuation), "last_prompt")
        assert score == pytest.approx(wanted, abs=1e-4)


def test_rolling_of_a_text_longer_than_the_model(steered):
    lm = steered([EDIT], max_length=32)
    text = "the rain in spain stays mainly in the plain, and the cat sat on the mat again " * 2
    (request,) = loglikelihood_requests([("", text)])
    request.request_type, request.arguments = "loglikelihood_rolling", (text,)
    (score,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
    tokens = lm.tok_encode(text)
    assert len(tokens) > 2 * 32
    total, position, prefix = 0.0, 0, [lm.prefix_token_id]
    while position < len(tokens):
        window = tokens[position : position + 32]
        # Later windows reach back so that each holds 32 tokens, as in lm-eval.
        back = position - (33 - len(window))
        context = tokens[back:position] if position else prefix
        total += by_hand(lm, context, window, "all")[0]
        position += len(window)
    assert score == pytest.approx(total, abs=1e-3)


def test_generated_positions_never_occur_in_single_tokens(steered):
    lm = steered([EDIT], spec={"positions": "generated"})
    pairs = [("Question: which?\nAnswer:", letter) for letter in "AB"]
    with pytest.raises(ReceiptError, match="'generated' never occurred in"):
        lm.loglikelihood(loglikelihood_requests(pairs), disable_tqdm=True)


def test_a_context_that_does_not_fit_is_refused(steered):
    lm = steered([EDIT], max_length=16)
    with pytest.raises(SpecError, match="max_length 16") as caught:
        lm.loglikelihood(loglikelihood_requests([("a b " * 20, " c")]), disable_tqdm=True)
    assert "never truncated" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last_prompt"])
def test_rows_that_hold_token_0(steered, positions):
    """lm-eval pads with 0, which here is BOS: rows that end in 0 look padded."""
    lm = steered([EDIT], spec={"positions": positions})
    rows = [
        ([5, 0, 6, 0], [0, 0, 7]),
        ([9, 8], [7, 6, 5, 4, 3, 9, 9]),
        ([7], [0, 0, 8]),
        ([4], [4, 5]),
    ]
    requests = [(None, context, continuation) for context, continuation in rows]
    scores = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    for (context, continuation), (score, _) in zip(rows, scores, strict=True):
        assert score == pytest.approx(by_hand(lm, context, continuation, positions)[0], abs=1e-4)


def test_a_padded_row_that_equals_another_request(steered):
    """[7, 6] padded is [7, 6, 0, 0], which is also asked for, with a longer context."""
    rows = [([7], [6, 5]), ([7, 6, 0], [0, 9]), ([3, 3, 3], [3, 3])]
    requests = [(None, context, continuation) for context, continuation in rows]
    lm = steered([EDIT])
    scores = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    for (context, continuation), (score, _) in zip(rows, scores, strict=True):
        assert score == pytest.approx(by_hand(lm, context, continuation, "all")[0], abs=1e-4)
    lm = steered([EDIT], spec={"positions": "last_prompt"})
    with pytest.raises(SpecError, match="positions: all"):
        lm._loglikelihood_tokens(requests, disable_tqdm=True)
