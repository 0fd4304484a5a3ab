"""A steered run that did not steer, or steered other tokens, raises."""

import logging

import pytest
import torch

from interventions.backends.hf import HFSteering, decoder_layers, measure_median_norms, token_facts
from interventions.errors import HookPointError, ReceiptError, SpecError, SteeringError
from interventions.hook_points import HookPoint
from tests import tiny_models
from tests.lm_requests import generate_requests, loglikelihood_requests, recording

EDIT = {"op": "clamp", "feature": 3, "value": 4.0}
PROMPTS = ["the cat sat on the mat", "x"]


def drop_hooks_after(lm, monkeypatch, n_passes):
    """Make torch lose the hooks of layer 1 in the middle of a run, as a compiled model does."""
    layer = decoder_layers(lm.model)[1]
    passes = [0]

    def count(module, args):
        passes[0] += 1
        if passes[0] > n_passes:
            module._forward_hooks.clear()

    layer.register_forward_pre_hook(count)
    return passes


@pytest.mark.parametrize("n_passes", [0, 1, 5])
def test_hooks_that_vanish_while_generating(steered, generate, monkeypatch, n_passes):
    lm = steered([EDIT])
    drop_hooks_after(lm, monkeypatch, n_passes)
    with pytest.raises(ReceiptError, match="demand") as caught:
        generate(lm, PROMPTS)
    assert "\n" not in str(caught.value)


def test_hooks_that_vanish_while_scoring(steered, monkeypatch):
    lm = steered([EDIT])
    drop_hooks_after(lm, monkeypatch, 0)
    with pytest.raises(ReceiptError, match=r"\[0\] tokens"):
        lm.loglikelihood(loglikelihood_requests([("a", "b")]), disable_tqdm=True)


def test_a_pass_too_many_raises(steered, generate):
    """A backend that runs a prompt twice edits twice as many tokens as there are."""
    lm = steered([EDIT])
    real, calls = lm.model.forward, [0]

    def twice(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 1:
            real(*args, **{**kwargs, "past_key_values": None, "use_cache": False})
        return real(*args, **kwargs)

    lm.model.forward = twice
    with pytest.raises(ReceiptError, match="demand"):
        generate(lm, PROMPTS)


def test_another_end_of_a_row_raises(steered, generate, monkeypatch):
    """If rows were edited past their end, the count would say so."""
    lm = steered([EDIT])
    lm.model.generation_config.eos_token_id = list(range(1, 200))
    monkeypatch.setattr(HFSteering, "finish_rows", lambda self, done, column: None)
    prompts = ["the cat sat on the mat", "x", "What is this?"]
    with pytest.raises(ReceiptError, match="demand"):
        generate(lm, prompts, {"do_sample": True, "temperature": 1.5, "max_gen_toks": 20})


def test_positions_that_never_occur(steered, generate):
    lm = steered([{**EDIT, "positions": "thinking"}])
    with pytest.raises(ReceiptError, match="'thinking' never occurred in 2 inputs"):
        generate(lm, PROMPTS)


def test_a_guard_that_leaves_everything_alone(steered, generate):
    lm = steered([EDIT], spec={"norm_guard": 1.0, "median_norm": 1e-3})
    with pytest.raises(ReceiptError, match=r"norm guard \(limit 0\.001\) left all \d+ alone"):
        generate(lm, PROMPTS)


def test_one_idle_edit_among_others_raises(steered, generate):
    lm = steered([EDIT, {"op": "add", "feature": 5, "value": 1.0, "positions": "thinking"}])
    with pytest.raises(ReceiptError, match=r"edit 2 at blocks\.1\.hook_resid_post"):
        generate(lm, PROMPTS)


def test_forward_passes_that_nobody_announced_are_not_edited(steered, generate):
    lm = steered([{"op": "add", "feature": 3, "value": 9.0}])
    free = steered([])
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        wanted = free.model(ids).logits
        assert torch.equal(lm.model(ids).logits, wanted)
        with lm._steering:
            assert torch.equal(lm.model(ids).logits, wanted)
        generate(lm, PROMPTS)
        assert torch.equal(lm.model(ids).logits, wanted)
    assert not any(layer._forward_hooks for layer in decoder_layers(lm.model))


def test_an_error_in_a_batch_leaves_no_hook_and_no_announcement(steered, generate, monkeypatch):
    lm = steered([EDIT])
    monkeypatch.setattr(lm.model, "generate", lambda **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(lm, PROMPTS)
    monkeypatch.undo()
    assert not any(layer._forward_hooks for layer in decoder_layers(lm.model))
    generate(lm, PROMPTS)


def test_nothing_is_hooked_for_an_empty_spec(steered):
    lm = steered([])
    with lm._steering:
        assert not any(layer._forward_hooks for layer in decoder_layers(lm.model))


def test_tuple_and_tensor_outputs_are_both_edited(steered):
    """Layers return a tuple in some families and versions, a tensor in others."""
    lm = steered([{"op": "add", "feature": 3, "value": 6.0}])
    pairs = [("the cat", " sat on the mat"), ("x", "yz")]
    wanted = lm.loglikelihood(loglikelihood_requests(pairs), disable_tqdm=True)
    layer = decoder_layers(lm.model)[1]
    following = decoder_layers(lm.model)[2]
    real, real_next = layer.forward, following.forward
    layer.forward = lambda *args, **kwargs: (real(*args, **kwargs), None)
    following.forward = lambda hidden, *args, **kwargs: real_next(hidden[0], *args, **kwargs)
    assert lm.loglikelihood(loglikelihood_requests(pairs), disable_tqdm=True) == wanted


def test_the_median_is_measured_where_the_sae_stores_none(steered, generate, caplog):
    with caplog.at_level(logging.INFO):
        lm = steered([EDIT], spec={"norm_guard": 10.0})
    assert "measured" in caplog.text
    median = lm.plan.layers[0].median_norm
    assert lm.plan.layers[0].norm_limit == pytest.approx(10 * median)
    text_free = steered([])
    assert measure_median_norms(text_free.model, text_free.tokenizer, [HookPoint(1)]) == {
        HookPoint(1): median
    }
    with recording(lm.model, 1) as seen:
        generate(lm, PROMPTS)
    assert 0.2 < seen.raw().norm(dim=-1).median() / median < 5


def test_steering_without_a_median_is_refused(sae_folder):
    from interventions.plan import ModelFacts, make_plan
    from interventions.spec import parse_spec

    spec = parse_spec({"sae": {"path": sae_folder()}, "edits": [EDIT]})
    plan = make_plan(spec, ModelFacts("tiny", tiny_models.D_MODEL, tiny_models.N_LAYERS))
    tokenizer = tiny_models.make_tokenizer()
    with pytest.raises(ReceiptError, match="measure_median_norms"):
        HFSteering(
            tiny_models.make_model(), plan, token_facts(tokenizer, spec, needs_thinking=False)
        )


def test_delimiters_of_several_tokens_are_refused(steered):
    edits = [{**EDIT, "positions": "thinking"}]
    with pytest.raises(SpecError, match=r"'<reasoning>' is \d+ tokens of this tokenizer, not 1"):
        steered(edits, spec={"think_start": "<reasoning>"})


def test_encoder_decoders_are_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    tiny = T5Config(
        d_model=16,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        d_kv=8,
        vocab_size=32,
        decoder_start_token_id=0,
    )
    with pytest.raises(HookPointError, match="encoder-decoder"):
        decoder_layers(T5ForConditionalGeneration(tiny))
    with pytest.raises(SteeringError, match="no decoder layers"):
        decoder_layers(torch.nn.Linear(2, 2))


def test_the_receipt_adds_up_over_calls(steered, generate):
    lm = steered([EDIT])
    generate(lm, PROMPTS)
    lm.loglikelihood(loglikelihood_requests([("the cat", " sat")]), disable_tqdm=True)
    receipt = lm.get_model_info()["sae_steered"]["receipt"]
    tokens = sum(len(lm._encode_prompt(p)) + 11 for p in PROMPTS)
    context, continuation = lm._encode_pair("the cat", " sat")
    tokens += len(context) + len(continuation) - 1
    assert receipt["rows"] == 3
    assert receipt["edits"][0]["selected"] == receipt["edits"][0]["expected"] == tokens
    lm.set_intervention({"sae": lm.plan.spec.sae.model_dump(exclude_none=True), "edits": [EDIT]})
    assert lm.get_model_info()["sae_steered"]["receipt"] == {"rows": 0, "edits": []}


def test_generate_requests_are_answered_in_order(steered):
    lm = steered([EDIT], batch_size=2)
    prompts = ["x", "the cat sat on the mat", "yy", "What is it?"]
    together = lm.generate_until(generate_requests(prompts), disable_tqdm=True)
    singles = [lm.generate_until(generate_requests([p]), disable_tqdm=True)[0] for p in prompts]
    assert together == singles
