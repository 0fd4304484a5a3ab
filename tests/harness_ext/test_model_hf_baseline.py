"""Strength 0, and no edit at all, are bit-equal to lm-eval's own `hf`."""

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from tests.lm_requests import generate_requests, loglikelihood_requests
from tests.tiny_models import FAMILIES

PROMPTS = ["the cat sat on the mat", "What is 3 + 4 in the end?", "x"]
PAIRS = [
    ("the cat", " sat"),
    ("the cat", " ran on"),
    ("Question: why?\nAnswer:", " A"),
    ("Question: why?\nAnswer:", " B"),
    ("", "the"),
]
NOTHING = [
    {"op": "add", "feature": 3, "strength": 0, "max_act": 5.0},
    {"op": "scale", "feature": 4, "value": 1.0},
    {"op": "add", "feature": 5, "value": 0.0, "positions": "generated"},
]


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.mark.parametrize("edits", [NOTHING, []], ids=["strength_0", "no_edit"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_nothing_added_is_bit_equal(model_folder, steered, family, edits, dtype):
    plain = HFLM(model_folder(family), dtype=dtype, device="cpu", batch_size=3)
    ours = steered(edits, family=family, dtype=dtype, batch_size=3)
    requests = loglikelihood_requests(PAIRS)
    rolling = [type(requests[0])("loglikelihood_rolling", {}, ("the cat sat on a mat",), 0)]
    logits = {}

    def watch(name, lm):
        real = type(lm)._model_call

        def call(inps, attn_mask=None, labels=None):
            result = real(lm, inps, attn_mask, labels)
            logits.setdefault(name, []).append(result.clone())
            return result

        lm._model_call = call

    watch("plain", plain)
    watch("ours", ours)
    assert ours.loglikelihood(requests, disable_tqdm=True) == plain.loglikelihood(
        requests, disable_tqdm=True
    )
    assert len(logits["plain"]) > 1
    assert all(map(torch.equal, logits["plain"], logits["ours"]))
    if all(edit.get("positions") != "generated" for edit in edits):
        assert ours.loglikelihood_rolling(
            rolling, disable_tqdm=True
        ) == plain.loglikelihood_rolling(rolling, disable_tqdm=True)
    kwargs = {"max_gen_toks": 20, "until": []}
    theirs = plain.generate_until(generate_requests(PROMPTS, kwargs), disable_tqdm=True)
    assert ours.generate_until(generate_requests(PROMPTS, kwargs), disable_tqdm=True) == theirs
    assert ours.intervention == ("none" if not edits else ours.plan.fingerprint)


def test_the_logits_of_a_steered_model_differ(steered, model_folder):
    """So that the equality above is not that of a hook that never runs."""
    plain = HFLM(model_folder(), dtype="float32", device="cpu", batch_size=3)
    ours = steered([{"op": "add", "feature": 3, "value": 5.0}], batch_size=3)
    requests = loglikelihood_requests(PAIRS)
    a = ours.loglikelihood(requests, disable_tqdm=True)
    b = plain.loglikelihood(requests, disable_tqdm=True)
    assert all(x[0] != y[0] for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "edit",
    [
        {"op": "clamp", "feature": 3, "value": 0.0},
        {"op": "ablate", "feature": 3},
        {"op": "scale", "feature": 3, "value": 50.0},
        {"op": "add", "feature": 3, "value": 50.0, "when": "active"},
    ],
)
def test_a_feature_that_never_fires_changes_nothing(steered, model_folder, tmp_path, edit):
    """SAE.md, identity test: these read an activation of 0 and write nothing."""
    from safetensors.torch import load_file, save_file

    from tests.tiny_models import save_sae

    sae = save_sae(tmp_path / "sae").path / "sae_weights.safetensors"
    weights = load_file(sae)
    weights["b_enc"][3] = -1e6
    save_file(weights, sae)
    plain = HFLM(model_folder(), dtype="bfloat16", device="cpu", batch_size=3)
    ours = steered([edit], dtype="bfloat16", batch_size=3, spec={"sae": {"path": str(sae.parent)}})
    requests = loglikelihood_requests(PAIRS)
    assert ours.loglikelihood(requests, disable_tqdm=True) == plain.loglikelihood(
        requests, disable_tqdm=True
    )
    (edit,) = ours.get_model_info()["sae_steered"]["receipt"]["edits"]
    assert edit["fired"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_untouched_tokens_keep_their_bits(sae_folder, dtype):
    from interventions.editor import Editor
    from interventions.plan import ModelFacts, make_plan
    from interventions.positions import Selector
    from interventions.spec import parse_spec

    spec = parse_spec(
        {
            "sae": {"path": sae_folder()},
            "norm_guard": None,
            "edits": [{"op": "clamp", "feature": 3, "value": 4.0}],
        }
    )
    editor = Editor(make_plan(spec, ModelFacts("tiny", 32, 4)).layers[0])
    resid = (torch.randn(2, 5, 32, dtype=torch.float64) * 7).to(dtype)
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
    edited = editor(resid, {Selector("all", False): mask})
    assert edited.dtype == dtype
    assert torch.equal(edited[~mask], resid[~mask])
    assert not (edited[mask] == resid[mask]).all(dim=-1).any()
