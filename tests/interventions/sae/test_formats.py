"""Formats whose oracle is the library's own forward, written out here from its source."""

import json

import pytest
import torch
from safetensors.torch import save_file

from interventions.errors import SAEError
from interventions.hook_points import HookPoint
from interventions.sae.activations import feature_acts
from interventions.sae.io import load_sae
from interventions.spec import SAERef

D_MODEL, D_SAE, K = 16, 40, 5


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(seed=0):
    return {
        "encoder.weight": draw(D_SAE, D_MODEL, seed=seed),
        "encoder.bias": draw(D_SAE, seed=seed + 1),
        "W_dec": draw(D_SAE, D_MODEL, seed=seed + 2),
        "b_dec": draw(D_MODEL, seed=seed + 3),
    }


def sparsify_forward(weights, x, activation, signed):
    """`SparseCoder.encode` and `.decode` of sparsify 1.x; `signed` of 0.x."""
    pre = torch.nn.functional.linear(
        x - weights["b_dec"], weights["encoder.weight"], weights["encoder.bias"]
    )
    if signed:
        indices = pre.abs().topk(K, dim=-1).indices
        values = pre.gather(-1, indices)
    elif activation == "topk":
        values, indices = pre.relu().topk(K, dim=-1)
    else:
        values, indices = pre.relu().unflatten(-1, (K, -1)).max(dim=-1)
        indices = indices + torch.arange(0, D_SAE, D_SAE // K)
    acts = torch.zeros_like(pre).scatter_(-1, indices, values)
    return acts, acts @ weights["W_dec"] + weights["b_dec"]


@pytest.mark.parametrize("normalize_decoder", [True, False])
@pytest.mark.parametrize(
    ("activation", "signed"), [("topk", False), ("groupmax", False), ("topk", True)]
)
def test_sparsify(activation, signed, normalize_decoder, tmp_path):
    folder = tmp_path / "layers.12"
    folder.mkdir()
    weights = linear()
    save_file(weights, folder / "sae.safetensors")
    cfg = {"d_in": D_MODEL, "k": K, "activation": activation, "signed": signed}
    (folder / "cfg.json").write_text(json.dumps(cfg | {"normalize_decoder": normalize_decoder}))
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))
    sae = load_sae(SAERef(path=str(tmp_path), id="layers.12"))
    x = draw(3, 7, D_MODEL, seed=9)
    acts, recon = sparsify_forward(weights, x, activation, signed)
    assert torch.allclose(sae.encode(x), acts, atol=1e-5)
    assert torch.allclose(sae.decode(acts, x), recon, atol=1e-4)
    single, _ = feature_acts(x, sae.directions([0, 39]))
    assert torch.allclose(single, acts[..., [0, 39]], atol=1e-5)
    assert (sae.hook_point, sae.model_name) == (HookPoint(12), "EleutherAI/pythia-160m")


def test_sparsify_transcoders_and_mlp_sites(tmp_path):
    for name, cfg in (("layers.3.mlp", {}), ("layers.3", {"transcode": True})):
        folder = tmp_path / name
        folder.mkdir()
        save_file(linear(), folder / "sae.safetensors")
        (folder / "cfg.json").write_text(json.dumps({"d_in": D_MODEL, "k": K} | cfg))
        sae = load_sae(SAERef(path=str(folder)))
        assert not sae.gateable
        assert torch.equal(sae.directions([4]).w[0], linear()["W_dec"][4])


def test_dictionary_learning_auto_encoder_new_has_its_biases_in_two_linears(tmp_path):
    state = {
        "encoder.weight": draw(D_SAE, D_MODEL),
        "encoder.bias": draw(D_SAE, seed=1),
        "decoder.weight": draw(D_MODEL, D_SAE, seed=2),
        "decoder.bias": draw(D_MODEL, seed=3),
    }
    torch.save(state, tmp_path / "ae.pt")
    trainer = {"dict_class": "AutoEncoderNew", "layer": 4, "lm_name": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    sae = load_sae(SAERef(path=str(tmp_path)))
    x = draw(6, D_MODEL, seed=5)
    acts = (x @ state["encoder.weight"].T + state["encoder.bias"]).relu()
    assert torch.allclose(sae.encode(x), acts, atol=1e-5)
    recon = acts @ state["decoder.weight"].T + state["decoder.bias"]
    assert torch.allclose(sae.decode(acts, x), recon, atol=1e-4)


def test_dictionary_learning_of_an_unknown_kind(tmp_path):
    torch.save({}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "CrossCoder"}}))
    with pytest.raises(SAEError, match="dict_class 'CrossCoder' is unknown; known: AutoEncoder"):
        load_sae(SAERef(path=str(tmp_path)))


def openmoss(folder, *, unit_decoder=False, **cfg):
    weights = {
        "encoder.weight": draw(D_SAE, D_MODEL),
        "encoder.bias": draw(D_SAE, seed=1),
        "decoder.weight": draw(D_MODEL, D_SAE, seed=2),
        "decoder.bias": draw(D_MODEL, seed=3),
        "log_jumprelu_threshold": draw(D_SAE, seed=4),
        "dataset_average_activation_norm.blocks.9.hook_resid_post": torch.tensor(6.0),
    }
    save_file(weights, folder / "sae_weights.safetensors")
    base = {
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "hook_point_in": "blocks.9.hook_resid_post",
        "hook_point_out": "blocks.9.hook_resid_post",
        "d_model": D_MODEL,
    }
    (folder / "config.json").write_text(json.dumps(base | cfg))
    return weights


def openmoss_forward(weights, x, *, include_norm, subtract=False):
    """`SparseAutoEncoder.encode` of February 2025 with norm_activation "dataset-wise"."""
    factor = D_MODEL**0.5 / 6.0
    z = x * factor
    if subtract:
        z = z - weights["decoder.bias"]
    pre = z @ weights["encoder.weight"].T + weights["encoder.bias"]
    score = pre * weights["decoder.weight"].norm(dim=0) if include_norm else pre
    acts = pre * (score > weights["log_jumprelu_threshold"].exp())
    recon = acts @ weights["decoder.weight"].T + weights["decoder.bias"]
    return acts, recon / factor


@pytest.mark.parametrize("include_norm", [True, False])
@pytest.mark.parametrize("subtract", [True, False])
def test_openmoss_jumprelu_gates_on_what_a_feature_writes(include_norm, subtract, tmp_path):
    weights = openmoss(
        tmp_path,
        sparsity_include_decoder_norm=include_norm,
        apply_decoder_bias_to_pre_encoder=subtract,
    )
    sae = load_sae(SAERef(path=str(tmp_path)))
    x = draw(50, D_MODEL, seed=7)
    acts, recon = openmoss_forward(weights, x, include_norm=include_norm, subtract=subtract)
    assert torch.allclose(sae.encode(x), acts, atol=1e-5)
    assert torch.allclose(sae.decode(acts, x), recon, atol=1e-4)
    assert sae.scale == pytest.approx(D_MODEL**0.5 / 6.0)


def test_openmoss_topk_ranks_by_what_a_feature_writes(tmp_path):
    weights = openmoss(tmp_path, act_fn="topk", top_k=K)
    sae = load_sae(SAERef(path=str(tmp_path)))
    x = draw(20, D_MODEL, seed=7)
    factor = D_MODEL**0.5 / 6.0
    pre = (x * factor) @ weights["encoder.weight"].T + weights["encoder.bias"]
    score = (pre * weights["decoder.weight"].norm(dim=0)).clamp_min(0)
    kth = score.kthvalue(D_SAE - K + 1, dim=-1, keepdim=True).values
    acts = pre * score.ge(kth)
    recon = (acts @ weights["decoder.weight"].T + weights["decoder.bias"]) / factor
    ours = sae.encode(x)
    assert torch.equal(ours != 0, acts != 0)
    assert torch.allclose(sae.decode(ours, x), recon, atol=1e-4)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"use_glu_encoder": True}, "GLU encoder"),
        ({"act_fn": "leapfrog"}, "act_fn 'leapfrog' is unknown; known: jumprelu, relu, topk"),
        ({"norm_activation": "batch-wise"}, "norm_activation 'batch-wise' cannot be applied"),
    ],
)
def test_openmoss_saes_that_cannot_be_steered(cfg, message, tmp_path):
    openmoss(tmp_path, **cfg)
    with pytest.raises(SAEError, match=message):
        load_sae(SAERef(path=str(tmp_path)))


def test_openmoss_token_wise_normalisation(tmp_path):
    weights = openmoss(tmp_path, norm_activation="token-wise", act_fn="relu")
    sae = load_sae(SAERef(path=str(tmp_path)))
    x = draw(8, D_MODEL, seed=7)
    z = x * D_MODEL**0.5 / x.norm(dim=-1, keepdim=True)
    acts = (z @ weights["encoder.weight"].T + weights["encoder.bias"]).relu()
    assert torch.allclose(sae.encode(x), acts, atol=1e-5)


def test_openmoss_transcoders_give_directions_only(tmp_path):
    openmoss(tmp_path, hook_point_out="blocks.9.hook_mlp_out")
    assert not load_sae(SAERef(path=str(tmp_path))).gateable


def test_qwen_scope_needs_its_k(tmp_path):
    tensors = {"W_enc": draw(D_SAE, D_MODEL), "W_dec": draw(D_MODEL, D_SAE)}
    torch.save(tensors | {"b_enc": draw(D_SAE), "b_dec": draw(D_MODEL)}, tmp_path / "layer4.sae.pt")
    with pytest.raises(SAEError, match="whose k stands in the name of its repo"):
        load_sae(SAERef(path=str(tmp_path / "layer4.sae.pt")))
