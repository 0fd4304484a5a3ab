"""The logit lens is the final norm and the unembedding, whatever the family calls them."""

import pytest
import torch

from interventions.errors import FeatureError
from interventions.features.lens import _final_norm, logit_lens
from tests.tiny_models import D_MODEL, FAMILIES, VOCABULARY, make_model


def scrambled(family, tied):
    """Return a model whose norms have gains and biases that matter."""
    model = make_model(family, tie_word_embeddings=tied)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in _final_norm(model).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_norm_then_unembedding_of_the_direction(family, tied):
    model = scrambled(family, tied)
    norm, head = _final_norm(model), model.get_output_embeddings()
    assert (head.weight is model.get_input_embeddings().weight) == tied
    directions = torch.randn(6, D_MODEL, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        moved = norm(directions) - norm(torch.zeros(1, D_MODEL))
        layer_norm = family in ("gpt2", "neox")
        size = (
            directions.std(-1, unbiased=False) if layer_norm else directions.norm(dim=-1) / 32**0.5
        )
        expected = (moved * size[:, None]) @ head.weight.T
    expected = expected - expected.mean(-1, keepdim=True)
    found = logit_lens(model, VOCABULARY).logits(directions)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_a_constant_is_nothing_to_a_layer_norm_and_something_to_an_rms_norm():
    constant = torch.ones(1, D_MODEL)
    assert (
        float(logit_lens(scrambled("gpt2", True), VOCABULARY).logits(constant).abs().max()) < 1e-4
    )
    assert (
        float(logit_lens(scrambled("llama", True), VOCABULARY).logits(constant).abs().max()) > 0.1
    )


def test_bf16_weights_are_summed_in_fp32():
    model = scrambled("llama", False)
    directions = torch.randn(4, D_MODEL, generator=torch.Generator().manual_seed(0))
    found = logit_lens(model.bfloat16(), VOCABULARY).logits(directions)
    exact = logit_lens(model.float(), VOCABULARY).logits(directions)
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)


def test_tokens_are_the_best_and_the_worst_and_never_left_out_ones():
    model = make_model("llama")
    lens = logit_lens(model, VOCABULARY - 8, without=(3, 5, VOCABULARY - 1))
    directions = lens.readout[[3, 40]]  # would promote 3 and 40 themselves
    found = lens.tokens(directions, 4)
    logits = lens.logits(directions)
    assert int(logits[0].argmax()) == 3
    allowed = [i for i in range(VOCABULARY - 8) if i not in (3, 5)]
    for row in range(2):
        order = sorted(allowed, key=lambda i, row=row: -float(logits[row, i]))
        assert found.promoted_ids[row].tolist() == order[:4]
        assert found.suppressed_ids[row].tolist() == order[::-1][:4]
    assert int(found.promoted_ids[1, 0]) == 40


def test_an_odd_width_and_a_missing_norm_are_refused():
    model = make_model("llama", hidden_size=33, num_attention_heads=3, num_key_value_heads=3)
    with pytest.raises(FeatureError, match="even width, not 33"):
        logit_lens(model, VOCABULARY)
    model = make_model("llama")
    del model.model.norm
    with pytest.raises(FeatureError, match="no final norm found in LlamaForCausalLM"):
        logit_lens(model, VOCABULARY)
