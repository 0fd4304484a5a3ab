"""A row of a left-padded batch gets what it gets alone, in every family."""

import pytest
import torch

from tests.lm_requests import recording
from tests.tiny_models import FAMILIES, SLIDING_WINDOW

PROMPTS = [
    "the cat sat on the mat and then the rain began to fall on the town",
    "What is 3 + 4?",
    "x",
    "Tell me about the river, the hills and the mills along its banks in spring",
    "in an inner ring the thane ran",
]
EDITS = [
    {"op": "clamp", "feature": 3, "value": 5.0},
    {"op": "add", "feature": 5, "value": 2.0, "positions": "generated"},
    {"op": "scale", "feature": 9, "value": 3.0, "positions": "prompt"},
    {"op": "clamp", "feature": 12, "value": 2.0, "positions": "last_prompt"},
]
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}


@pytest.fixture
def two_layers(sae_folder):
    return [*EDITS, {"op": "ablate", "feature": 7, "sae": {"path": sae_folder(layer=2, seed=5)}}]


def unpadded(seen, lm, prompts, responses):
    """Return each row's deltas: rows are generated longest first, padding stands on the left."""
    lengths = [len(lm._encode_prompt(prompt)) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-lengths[i], prompts[i]))
    delta, width = seen.delta(), max(lengths)
    rows = {}
    for place, index in enumerate(order):
        end = width + responses[index].n_tokens - 1
        rows[index] = delta[place, width - lengths[index] : end]
        assert torch.equal(
            delta[place, : width - lengths[index]], 0 * delta[place, : width - lengths[index]]
        )
        assert torch.equal(delta[place, end:], 0 * delta[place, end:])
    return [rows[i] for i in range(len(prompts))]


@pytest.mark.parametrize("gen_kwargs", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_batch_equals_each_row_alone(steered, generate, two_layers, family, gen_kwargs):
    lm = steered(two_layers, family=family)
    # Some token that the first row makes halfway ends rows here: they end at different times.
    free = generate(lm, PROMPTS, gen_kwargs)
    first = lm.tok_encode(str(free[0]), add_special_tokens=False)
    lm.model.generation_config.eos_token_id = [1, *{t for t in first[5:7] if t > 2}]
    with recording(lm.model, 1) as seen:
        together = generate(lm, PROMPTS, gen_kwargs)
    rows = unpadded(seen, lm, PROMPTS, together)
    for prompt, response, row in zip(PROMPTS, together, rows, strict=True):
        with recording(lm.model, 1) as seen:
            (alone,) = generate(lm, [prompt], gen_kwargs)
        assert response == alone
        assert (response.n_tokens, response.finish_reason, response.seed) == (
            alone.n_tokens,
            alone.finish_reason,
            alone.seed,
        )
        torch.testing.assert_close(row, seen.delta()[0], atol=2e-4, rtol=1e-4)
    assert len(lm._encode_prompt(PROMPTS[0])) > SLIDING_WINDOW
    receipt = lm.get_model_info()["sae_steered"]["receipt"]
    assert receipt["rows"] == 3 * len(PROMPTS)
    assert all(edit["selected"] == edit["expected"] > 0 for edit in receipt["edits"])


def test_rows_end_at_different_times(steered, generate, two_layers):
    lm = steered(two_layers, family="qwen2")
    lm.model.generation_config.eos_token_id = list(range(1, 25))
    together = generate(lm, PROMPTS, {**SAMPLED, "max_gen_toks": 9})
    assert len({r.n_tokens for r in together}) > 2
    assert {r.finish_reason for r in together} == {"stop", "length"}
    for prompt, response in zip(PROMPTS, together, strict=True):
        (alone,) = generate(lm, [prompt], {**SAMPLED, "max_gen_toks": 9})
        assert (alone, alone.n_tokens) == (response, response.n_tokens)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_rows_with_little_room_left_do_not_disturb_the_others(steered, generate, family):
    """The long row ends at the model's last position while the short ones go on."""
    lm = steered(EDITS, family=family)
    long = "a" * (lm.max_length - 4)
    prompts = [long, "x", "the cat"]
    kwargs = {"max_gen_toks": 100}
    together = generate(lm, prompts, kwargs)
    assert len(lm._encode_prompt(long)) == lm.max_length - 3
    assert [r.n_tokens for r in together] == [3, 100, 100]
    assert together[0].finish_reason == "length"
    assert together == [generate(lm, [prompt], kwargs)[0] for prompt in prompts]


def test_padding_that_is_end_of_text(model_folder, steered, generate):
    """GPT-2 style: pad is eos, so a row that has ended looks like padding."""
    lm = steered(EDITS, family="gpt2")
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    kwargs = {**SAMPLED, "max_gen_toks": 30}
    lm.model.generation_config.eos_token_id = [1, *range(60, 110)]
    together = generate(lm, PROMPTS, kwargs)
    assert len({r.n_tokens for r in together}) > 1
    assert together == [generate(lm, [prompt], kwargs)[0] for prompt in PROMPTS]


def test_batch_size_auto_is_more_than_one_row(steered, generate, monkeypatch):
    from harness_ext.model_hf import SteeredHF

    lm = steered(EDITS, batch_size="auto", max_batch_size=3)
    sizes = []
    real = SteeredHF._generate_batch
    monkeypatch.setattr(
        SteeredHF,
        "_generate_batch",
        lambda self, batch, decoding: sizes.append(len(batch)) or real(self, batch, decoding),
    )
    generate(lm, PROMPTS)
    assert sizes == [3, 2]
