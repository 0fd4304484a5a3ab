"""sae_lens is the oracle: same files, same activations, same effect of an edit."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("sae_lens")

import sae_lens

from interventions.errors import SAEError
from interventions.hook_points import HookPoint
from interventions.sae.activations import feature_acts
from interventions.sae.core import SAE
from interventions.sae.io import load_sae
from interventions.spec import SAERef
from tests.interventions.sae.made_up import D_MODEL, D_SAE, FEATURES, K, resid

HOOK = "blocks.5.hook_resid_post"

pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES = {
    "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
    "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
    "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
    "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": K}),
    "topk_rescaled": (
        sae_lens.TopKSAE,
        sae_lens.TopKSAEConfig,
        {"k": K, "rescale_acts_by_decoder_norm": True},
    ),
    "abstopk": (sae_lens.AbsTopKSAE, sae_lens.AbsTopKSAEConfig, {"k": K}),
    "abstopk_rescaled": (
        sae_lens.AbsTopKSAE,
        sae_lens.AbsTopKSAEConfig,
        {"k": K, "rescale_acts_by_decoder_norm": True},
    ),
    "matching_pursuit": (
        sae_lens.MatchingPursuitSAE,
        sae_lens.MatchingPursuitSAEConfig,
        {"max_iterations": 9, "residual_threshold": 0.5},
    ),
}
NORMS = ("none", "layer_norm", "constant_norm_rescale")
CELLS = list(itertools.product(CLASSES, NORMS, (True, False)))


def make(kind: str, seed: int = 0, **options):
    sae_class, cfg_class, extra = CLASSES[kind]
    cfg = cfg_class(
        d_in=D_MODEL,
        d_sae=D_SAE,
        metadata=sae_lens.saes.sae.SAEMetadata(hook_name=HOOK, model_name="tiny"),
        **extra,
        **options,
    )
    sae = sae_class(cfg)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            scale = 0.3 if parameter.ndim == 2 else 0.2
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()
            if name == "W_dec" and kind == "matching_pursuit":
                parameter.div_(parameter.norm(dim=1, keepdim=True))
    return sae.eval()


def loaded(oracle, folder: Path, **ref) -> SAE:
    oracle.save_model(folder)
    return load_sae(SAERef(path=str(folder), **ref))


@pytest.mark.parametrize(("kind", "norm", "b_dec"), CELLS)
def test_encode_decode_and_single_features_equal_the_oracle(kind, norm, b_dec, tmp_path):
    oracle = make(kind, normalize_activations=norm, apply_b_dec_to_input=b_dec)
    ours = loaded(oracle, tmp_path)
    x = resid()
    with torch.no_grad():
        expected = oracle.encode(x)
        recon = oracle.decode(expected)
        acts = ours.encode(x)
        single, _ = feature_acts(x, ours.directions(FEATURES))
    assert (expected != 0).any()
    assert torch.allclose(acts, expected, atol=1e-5)
    assert torch.allclose(ours.decode(acts, x), recon, atol=1e-4)
    assert torch.allclose(single, expected[..., list(FEATURES)], atol=1e-5)
    assert ours.hook_point == HookPoint(5)
    assert ours.model_name == "tiny"


@pytest.mark.parametrize(("kind", "norm", "b_dec"), CELLS)
def test_one_row_of_w_dec_moves_the_stream_as_decode_with_the_feature_replaced(
    kind, norm, b_dec, tmp_path
):
    oracle = make(kind, normalize_activations=norm, apply_b_dec_to_input=b_dec)
    ours = loaded(oracle, tmp_path)
    x = resid()
    with torch.no_grad():
        dense = oracle.encode(x)
        clean = oracle.decode(dense)
        # The features that fire most often, so that the edits have something to remove.
        features = (dense != 0).sum(dim=(0, 1)).topk(3).indices.tolist()
        dirs = ours.directions(features)
        single, factor = feature_acts(x, dirs)
        for position, feature in enumerate(features):
            own = dense[..., feature]
            targets = {"clamp": torch.full_like(own, 4.0), "ablate": torch.zeros_like(own)}
            targets |= {"scale": 2.5 * own, "add": own + 1.5}
            for target in targets.values():
                replaced = oracle.encode(x)
                replaced[..., feature] = target
                expected = oracle.decode(replaced) - clean
                strength = target - single[..., position]
                if factor is not None:
                    strength = strength * factor
                moved = strength.unsqueeze(-1) * dirs.w[position]
                assert torch.allclose(moved, expected, atol=1e-4)


@pytest.mark.parametrize("kind", CLASSES)
def test_expected_average_needs_a_scale_and_then_equals_sae_lens_after_its_fold(kind, tmp_path):
    oracle = make(kind, normalize_activations="expected_average_only_in")
    with pytest.raises(SAEError, match=r"set `scale` of `sae` in the spec"):
        loaded(oracle, tmp_path)
    ours = load_sae(SAERef(path=str(tmp_path), scale=0.4))
    x = resid()
    with torch.no_grad():
        unfolded = oracle.encode(0.4 * x)
        oracle.fold_activation_norm_scaling_factor(0.4)
        expected = oracle.encode(x)
        assert torch.allclose(ours.encode(x), expected, atol=1e-5)
        assert torch.allclose(ours.decode(expected, x), oracle.decode(expected), atol=1e-4)
    if kind != "matching_pursuit" and "rescaled" not in kind:
        assert torch.allclose(expected, unfolded, atol=1e-5)
    assert ours.scale == 0.4


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk", "standard", "topk"])
def test_what_the_trainer_saves_for_inference_loads(architecture, tmp_path):
    name = {
        "batchtopk": "BatchTopK",
        "matryoshka_batchtopk": "MatryoshkaBatchTopK",
        "standard": "Standard",
        "topk": "TopK",
    }[architecture]
    extra = {"matryoshka_widths": [20, D_SAE]} if name.startswith("Matryoshka") else {}
    if architecture != "standard":
        extra["k"] = K
    cfg = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=D_MODEL, d_sae=D_SAE, **extra)
    trained = getattr(sae_lens, f"{name}TrainingSAE")(cfg)
    if "batch" in architecture:
        trained.topk_threshold.fill_(0.3)
    with torch.no_grad():
        trained.b_enc.normal_(generator=torch.Generator().manual_seed(0))
    trained.save_inference_model(tmp_path)
    oracle = sae_lens.SAE.load_from_disk(tmp_path)
    ours = load_sae(SAERef(path=str(tmp_path), hook_point="layers.3"))
    x = resid()
    with torch.no_grad():
        assert torch.allclose(ours.encode(x), oracle.encode(x), atol=1e-5)
    assert ours.architecture == oracle.cfg.architecture()
    assert ours.hook_point == HookPoint(3)


@pytest.mark.parametrize(
    "cfg",
    [
        {"hook_point": HOOK},
        {"hook_name": HOOK, "architecture": "standard", "apply_b_dec_to_input": False},
        {"hook_name": HOOK, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {"hook_name": HOOK, "normalize_activations": "layer_norm", "activation_fn": "relu"},
        {"hook_name": HOOK, "normalize_activations": False},
    ],
)
def test_configs_of_version_5_and_older(cfg, tmp_path):
    cfg = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "model_name": "gpt2-small", **cfg}
    weights = {k: v.detach() for k, v in make("standard").state_dict().items()}
    save_file(
        {**weights, "scaling_factor": torch.ones(D_SAE)}, tmp_path / "sae_weights.safetensors"
    )
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    oracle = sae_lens.SAE.load_from_disk(tmp_path)
    ours = load_sae(SAERef(path=str(tmp_path)))
    x = resid()
    with torch.no_grad():
        assert torch.allclose(ours.encode(x), oracle.encode(x), atol=1e-5)
        recon = oracle.decode(oracle.encode(x))
    assert torch.allclose(ours.decode(ours.encode(x), x), recon, atol=1e-4)
    assert ours.hook_point == HookPoint(5)
    assert ours.model_name == "gpt2-small"


def test_transcoders_give_directions_but_no_activations(tmp_path):
    cfg = sae_lens.TranscoderConfig(d_in=D_MODEL, d_sae=D_SAE, d_out=16, apply_b_dec_to_input=False)
    cfg.metadata.hook_name = "blocks.2.hook_mlp_in"
    oracle = sae_lens.Transcoder(cfg)
    ours = loaded(oracle, tmp_path)
    dirs = ours.directions([4])
    assert torch.equal(dirs.w[0], oracle.W_dec[4].detach())
    assert ours.d_model == 16
    assert ours.hook_point is None
    with pytest.raises(SAEError, match="transcoder reads another place than it writes to"):
        feature_acts(resid(), dirs)
    with pytest.raises(SAEError, match="give `hook_point`"):
        ours.resolve_hook_point()


def test_temporal_saes_give_directions_in_units_of_the_stream(tmp_path):
    cfg = sae_lens.saes.temporal_sae.TemporalSAEConfig(
        d_in=D_MODEL,
        d_sae=64,
        n_heads=2,
        bottleneck_factor=8,
        normalize_activations="constant_scalar_rescale",
        activation_normalization_factor=0.25,
    )
    oracle = sae_lens.TemporalSAE(cfg)
    ours = loaded(oracle, tmp_path)
    acts = torch.zeros(1, 2, 64)
    before = oracle.decode(acts)
    acts[..., 5] = 1.0
    moved = (oracle.decode(acts) - before).detach()
    assert torch.allclose(ours.directions([5]).w[0].expand_as(moved), moved, atol=1e-5)
    with pytest.raises(SAEError, match="depend on all earlier tokens"):
        ours.encode(resid())


@pytest.mark.parametrize("b_dec", [True, False])
@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu", "topk"])
def test_centred_models_are_read_from_an_uncentred_stream(kind, b_dec, tmp_path):
    oracle = make(kind, apply_b_dec_to_input=b_dec)
    oracle.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    ours = loaded(oracle, tmp_path)
    x = resid()
    with torch.no_grad():
        expected = oracle.encode(x - x.mean(dim=-1, keepdim=True))
    assert torch.allclose(ours.encode(x), expected, atol=1e-5)
    assert torch.allclose(
        feature_acts(x, ours.directions(FEATURES))[0], expected[..., list(FEATURES)], atol=1e-5
    )
