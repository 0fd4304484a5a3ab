"""The SAE that is shipped, on the real default model, on text that no training saw."""

import json

import pytest
import torch

from interventions.default_model import default_sae_path, resolve_pretrained
from interventions.hook_points import HookPoint
from interventions.train.files import read_tensors, sha256
from interventions.train.generate import Sampling, chat_tokens, sample_answers
from interventions.train.harvest import residuals
from interventions.train.named_features import PROMPTS
from interventions.train.pipeline import load_trained

FOLDER = default_sae_path()


def test_the_log_beside_it_belongs_to_it_and_meets_the_targets():
    log = json.loads((FOLDER / "training_log.json").read_text())
    for name, digest in log["sha256"].items():
        assert sha256(FOLDER / name) == digest, name
    found = log["steps"]["evaluate"]
    assert found["guarded"]["fvu"] <= 0.20
    assert 28 <= found["guarded"]["l0"] <= 38
    assert found["guarded"]["dead"] <= 0.02
    assert found["guarded"]["recovered_zero"] >= 0.97
    assert found["bf16"]["flips"] <= 0.005
    assert (FOLDER / "sae_weights.safetensors").stat().st_size <= 11_000_000
    card = (FOLDER / "README.md").read_text()
    assert f"{found['guarded']['fvu']:.4f}" in card


def test_it_loads_with_its_statistics():
    sae = load_trained(FOLDER)
    assert (sae.architecture, sae.d_model, sae.d_sae) == ("jumprelu", 576, 4608)
    assert str(sae.hook_point) == "blocks.15.hook_resid_post"
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(4608), atol=5e-3, rtol=0)
    stats = read_tensors(FOLDER / "stats.safetensors")
    assert sae.max_act is not None
    assert (stats["count"] > 0).all()
    assert (stats["p999"] <= stats["max_act"]).all()
    assert (stats["mean_act"] <= stats["p999"]).float().mean() > 0.99
    # The threshold is the least that an activation can be.
    assert sae.threshold is not None
    assert (stats["mean_act"] > sae.threshold).all()


@pytest.mark.slow
def test_sae_lens_computes_the_same_activations():
    sae_lens = pytest.importorskip("sae_lens")
    theirs = sae_lens.SAE.load_from_disk(str(FOLDER), device="cpu")
    ours = load_trained(FOLDER)
    resid = ours.b_dec + 40 * torch.randn(500, 576, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        acts = theirs.encode(resid)
        assert (acts > 0).any()
        torch.testing.assert_close(ours.encode(resid), acts, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(ours.decode(acts, resid), theirs.decode(acts))
    assert theirs.cfg.metadata.hook_name == "blocks.15.hook_resid_post"


@pytest.mark.real
def test_it_reconstructs_new_answers_and_the_guard_is_needed():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve_pretrained().path
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    turns = [chat_tokens(tokenizer, text) for text in PROMPTS]
    answers = sample_answers(model, turns, Sampling(0.8, 50, 60, 123), stop_id=2)
    rows = [torch.tensor(t + a) for t, a in zip(turns, answers, strict=True)]
    resid = residuals(model, HookPoint(15), rows, 2048).float()
    sae = load_trained(FOLDER)
    assert sae.median_norm is not None
    norms = resid.norm(dim=-1)
    clean = resid[norms <= 10 * sae.median_norm]
    acts = sae.encode(clean)
    error = (sae.decode(acts, clean) - clean).pow(2).sum()
    fvu = float(error / (clean - clean.mean(0)).pow(2).sum())
    l0 = float((acts > 0).sum() / len(clean))
    assert fvu <= 0.20
    assert 24 <= l0 <= 40
    sink = resid[0]
    assert norms[0] > 50 * sae.median_norm
    assert int((sae.encode(sink) > 0).sum()) > 2000


def test_named_features_beat_random_ones_of_equal_norm():
    entries = json.loads((FOLDER / "named_features.json").read_text())
    assert len(entries) >= 3
    assert len({entry["name"] for entry in entries}) == len(entries)
    for entry in entries:
        figures, control = entry["measured"], entry["random_control"]
        assert 1 <= entry["strength"] <= 2
        assert len(control["features"]) >= 5
        assert entry["feature"] not in control["features"]
        assert figures["rate"] > figures["rate_base"]
        assert figures["rate"] > 2 * control["rate_max"]
        assert figures["distinct_2"] >= 0.6
