"""What the operator takes for a feature's activation is `sae.encode` of the true stream."""

import pytest
import torch

from interventions.default_model import default_sae_path
from tests.vllm.reference import CLOSE

pytestmark = pytest.mark.real
LAYER, VALUE = 15, 37.0


def activations(inner, world, feature, prompts, ask):
    """Return a feature's activation at every token, by the operator and by the encoder; the stream.

    Clamping to `VALUE` writes `(VALUE - a) w`, which says what `a` was.
    """
    spec = {"sae": "default", "norm_guard": None, "edits": [{"feature": feature, "value": VALUE}]}
    streams = []
    for one in (None, spec):
        assert inner.call("reset")
        requests = [ask(prompt, one, max_tokens=1) for prompt in prompts]
        first, second = inner.call("inside", "capture", LAYER, requests)
        streams.append(torch.from_numpy(first) + torch.from_numpy(second))
    before, after = streams
    # The first token of each prompt is a sink a hundred times as long; fp32 is too short for it.
    starts = torch.tensor([0, *(len(prompt) for prompt in prompts[:-1])]).cumsum(0)
    keep = torch.ones(len(before), dtype=torch.bool)
    keep[starts] = False
    before, after = before[keep], after[keep]
    sae = world.reference.saes["default"]
    w = sae.weights["W_dec"][feature]
    return VALUE - (after - before) @ w / (w @ w), sae.encode(before)[0][:, feature], before


def test_activations_equal_the_encoder(inner, world, ask, say):
    features = [*world.features["real"].many[:3], *world.features["real"].some[:2], 3036]
    prompts = [
        world.chat("I love to sing songs and dance to music with my band."),
        *world.prompts[:4],
    ]
    fired, streams = 0, None
    for feature in features:
        got, wanted, streams = activations(inner, world, feature, prompts, ask)
        torch.testing.assert_close(got, wanted, atol=2e-3, rtol=1e-4)
        fired += int((wanted > 0).sum())
    say(f"{len(features)} features at {len(got)} tokens, active at {fired} of them in all")
    assert fired >= 30
    # The stream is the one that transformers computes, and the encoder that of SAELens.
    truth = torch.cat([world.reference.stream(prompt, LAYER)[1:] for prompt in prompts])
    assert ((streams - truth).norm(dim=1) / truth.norm(dim=1)).max() < 1e-4
    sae_lens = pytest.importorskip("sae_lens")
    sae = sae_lens.SAE.load_from_disk(str(default_sae_path()), device="cpu")
    with torch.no_grad():
        theirs = sae.encode(truth)[:, features[-1]]
    torch.testing.assert_close(got, theirs, atol=2e-3, rtol=1e-3)


def test_the_comparison_fails_where_only_the_first_output_is_encoded(inner, world, ask, say):
    """The mistake of a published evaluation: in vLLM `output[0]` is what the MLP wrote, no more."""
    many = world.features["real"].many
    feature = many[0]
    edits = [{"op": "clamp", "feature": f, "value": 120.0, "when": "active"} for f in many]
    spec = {"sae": "default", "edits": edits}
    inner.call("inside", "first_half_only", True)
    try:
        got, wanted, _ = activations(inner, world, feature, world.prompts[:4], ask)
        assert inner.call("reset")
        prompt = world.prompts[1]
        (answer,) = inner.generate([ask(prompt, spec, max_tokens=48)])
    finally:
        inner.call("inside", "first_half_only", False)
    wrong = (got - wanted).abs() > 2e-3 + 1e-4 * wanted.abs()
    gap = world.reference.misfit(prompt, answer["outputs"][0], spec)
    say(f"{int(wrong.sum())} of {len(wrong)} activations are wrong, the answer by {gap:.3f} logits")
    assert wrong.float().mean() > 0.1
    assert gap > CLOSE
    assert inner.call("reset")
    (answer,) = inner.generate([ask(prompt, spec, max_tokens=48)])
    assert world.reference.misfit(prompt, answer["outputs"][0], spec) < CLOSE
