"""sae_lens is the oracle: same files, same activations, same effect of an edit.

All tests that import sae_lens stand in this module, since the import takes 12 s.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("sae_lens")

import sae_lens
from sae_lens.loading import pretrained_sae_loaders as loaders

from interventions.errors import SAEError, SAENotFoundError
from interventions.hook_points import HookPoint
from interventions.sae.activations import feature_acts
from interventions.sae.core import SAE
from interventions.sae.io import load_sae
from interventions.spec import SAERef

D_MODEL, D_SAE, K = 24, 72, 7
FEATURES = (3, 0, 71, 17)
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


def resid(seed: int = 1, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(*(shape or (2, 9)), D_MODEL, generator=generator) + 0.7


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


# Other libraries' layouts, read by sae_lens's own loaders from a local folder.


@pytest.fixture
def local_hub(monkeypatch, tmp_path):
    """Make sae_lens's loaders find `tmp_path/<repo>/<file>` in place of the hub."""

    def download(repo_id, filename, subfolder=None, **_):
        path = tmp_path / repo_id / (subfolder or "") / filename
        if not path.is_file():
            raise loaders.EntryNotFoundError(f"{filename} is not in {repo_id}")
        return str(path)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    return tmp_path


def through(loader, repo: str, folder: str, scale: float | None = None, **overrides):
    """Return sae_lens's SAE of a layout, built the way `from_pretrained` does."""
    cfg, weights, _ = loader(
        repo, folder, device="cpu", cfg_overrides={"dtype": "float32", **overrides}
    )
    cfg = loaders.handle_config_defaulting(cfg)
    sae_class, cfg_class = sae_lens.registry.get_sae_class(cfg["architecture"])
    sae = sae_class(cfg_class.from_dict(cfg))
    sae.load_state_dict({key: value.float() for key, value in weights.items()})
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    return sae


def assert_same(ours: SAE, oracle, hook_point: HookPoint) -> None:
    x = resid()
    with torch.no_grad():
        expected = oracle.encode(x)
        assert (expected != 0).any()
        assert (expected == 0).any()
        assert torch.allclose(ours.encode(x), expected, atol=1e-5)
        assert torch.allclose(ours.decode(expected, x), oracle.decode(expected), atol=1e-4)
        single, _ = feature_acts(x, ours.directions(FEATURES))
    assert torch.allclose(single, expected[..., list(FEATURES)], atol=1e-5)
    assert ours.hook_point == hook_point


def weights(seed: int = 0, *, unit_decoder: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w_dec = torch.randn(D_SAE, D_MODEL, generator=generator)
    w_dec /= w_dec.norm(dim=1, keepdim=True) if unit_decoder else torch.tensor(4.0)
    return {
        "W_enc": 0.3 * torch.randn(D_MODEL, D_SAE, generator=generator),
        "W_dec": w_dec,
        "b_enc": 0.2 * torch.randn(D_SAE, generator=generator),
        "b_dec": 0.2 * torch.randn(D_MODEL, generator=generator),
        "threshold": torch.rand(D_SAE, generator=generator),
    }


def linear(tensors: dict[str, torch.Tensor], infix: str = ".") -> dict[str, torch.Tensor]:
    """Return the same weights as the layout of two `nn.Linear`."""
    return {
        f"encoder{infix}weight": tensors["W_enc"].T.contiguous(),
        f"encoder{infix}bias": tensors["b_enc"],
        f"decoder{infix}weight": tensors["W_dec"].T.contiguous(),
        f"decoder{infix}bias": tensors["b_dec"],
    }


def test_gemma_scope_npz(local_hub):
    repo, folder = "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"
    path = local_hub / repo / folder
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **{k: v.numpy() for k, v in weights().items()})
    oracle = through(
        loaders.gemma_2_sae_huggingface_loader, repo, folder, d_in=D_MODEL, d_sae=D_SAE
    )
    ours = load_sae(SAERef(path=str(local_hub / repo), id=folder))
    assert_same(ours, oracle, HookPoint(20))
    assert ours.model_name == "google/gemma-2-2b"


def test_gemma_scope_2_safetensors(local_hub, monkeypatch):
    repo, folder = "google/gemma-scope-2-1b-pt", "resid_post/layer_13_width_16k_l0_big"
    path = local_hub / repo / folder
    path.mkdir(parents=True)
    tensors = {k.lower(): v for k, v in weights().items()}
    save_file(tensors, path / "params.safetensors")
    (path / "config.json").write_text(
        json.dumps(
            {
                "architecture": "jump_relu",
                "model_name": "google/gemma-v3-1b-pt",
                "hf_hook_point_in": "model.layers.13.output",
            }
        )
    )
    monkeypatch.setattr(
        loaders,
        "get_safetensors_tensor_shapes",
        lambda *_: {k: list(v.shape) for k, v in tensors.items()},
    )
    oracle = through(loaders.gemma_3_sae_huggingface_loader, repo, folder)
    ours = load_sae(SAERef(path=str(path)))
    assert_same(ours, oracle, HookPoint(13))
    assert ours.model_name == "google/gemma-3-1b-pt"


@pytest.mark.parametrize("include_norm", [True, False])
def test_llama_scope_base(local_hub, include_norm):
    repo, folder = "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L7R-8x"
    path = local_hub / repo / folder
    (path / "checkpoints").mkdir(parents=True)
    norm = 11.0
    # sae_lens knows no decoder norm in the gate, so the two agree where it is 1 or not counted.
    tensors = weights(unit_decoder=include_norm)
    save_file(linear(tensors), path / "checkpoints" / "final.safetensors")
    (path / "hyperparams.json").write_text(
        json.dumps(
            {
                "d_model": D_MODEL,
                "d_sae": D_SAE,
                "act_fn": "topk",
                "jump_relu_threshold": 0.9,
                "norm_activation": "dataset-wise",
                "dataset_average_activation_norm": {"in": norm, "out": norm},
                "hook_point_in": "blocks.7.hook_resid_post",
                "sparsity_include_decoder_norm": include_norm,
                "apply_decoder_bias_to_pre_encoder": False,
            }
        )
    )
    scale = D_MODEL**0.5 / norm
    oracle = through(loaders.llama_scope_sae_huggingface_loader, repo, folder, scale)
    ours = load_sae(SAERef(path=str(path)))
    assert ours.scale == pytest.approx(scale)
    assert_same(ours, oracle, HookPoint(7))
    assert ours.model_name == "meta-llama/Llama-3.1-8B"


def write_r1_distill(root: Path, folder: str, layer: int, *, unit_decoder: bool = True) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    tensors = weights(unit_decoder=unit_decoder)
    log = tensors["threshold"].log()
    save_file({**linear(tensors), "log_jumprelu_threshold": log}, path / "sae_weights.safetensors")
    (path / "config.json").write_text(
        json.dumps(
            {
                "sae_type": "sae",
                "d_model": D_MODEL,
                "expansion_factor": D_SAE // D_MODEL,
                "act_fn": "jumprelu",
                "norm_activation": "dataset-wise",
                "hook_point_in": f"blocks.{layer}.hook_resid_post",
                "sparsity_include_decoder_norm": True,
            }
        )
    )
    return path


def test_llama_scope_r1_distill_folder(local_hub):
    repo, folder = "fnlp/Llama-Scope-R1-Distill", "400M-Slimpajama-400M-OpenR1-Math-220k/L18R"
    path = write_r1_distill(local_hub / repo, folder, 18)
    loader = loaders.llama_scope_r1_distill_sae_huggingface_loader
    oracle = through(loader, repo, folder, 0.8)
    with pytest.raises(SAEError, match="set `scale`"):
        load_sae(SAERef(path=str(path)))
    ours = load_sae(SAERef(path=str(path), scale=0.8))
    assert_same(ours, oracle, HookPoint(18))
    assert ours.model_name == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


def test_a_release_of_sae_lens_end_to_end(local_hub, monkeypatch, caplog):
    """The registry's own factor is folded, the wrong model name of the loader is put right."""
    release, sae_id = "llama_scope_r1_distill", "l18r_400m_slimpajama_400m_openr1_math"
    repo, folder = "fnlp/Llama-Scope-R1-Distill", "400M-Slimpajama-400M-OpenR1-Math-220k/L18R"
    write_r1_distill(local_hub / repo, folder, 18, unit_decoder=False)
    oracle = sae_lens.SAE.from_pretrained(release, sae_id)
    ours = load_sae(SAERef(release=release, id=sae_id), features=[71])
    assert_same(ours, oracle, HookPoint(18))
    assert ours.model_name == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert "decoder norms differ" in caplog.text
    with pytest.raises(SAEError, match=r"feature 72 is outside 0\.\.71"):
        load_sae(SAERef(release=release, id=sae_id), features=[72])


@pytest.mark.usefixtures("no_network")
def test_a_release_without_network_is_one_line_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SAENotFoundError, match="'jbloom/GPT2-Small-SAEs-Reformatted'") as caught:
        load_sae(SAERef(release="gpt2-small-res-jb", id="blocks.8.hook_resid_pre"))
    assert "\n" not in str(caught.value)
    assert "give `path` of a downloaded copy" in str(caught.value)


def dictionary_learning_state(kind: str) -> dict[str, torch.Tensor]:
    tensors = weights()
    if kind in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        state = dict(tensors)
        if kind == "MatryoshkaBatchTopKSAE":
            state |= {"threshold": torch.tensor(0.4), "k": torch.tensor(K)}
        return state
    both = linear(tensors)
    bias = both.pop("decoder.bias")
    if kind == "AutoEncoder":
        return {**both, "bias": bias}
    if kind == "GatedAutoEncoder":
        del both["encoder.bias"]
        generator = torch.Generator().manual_seed(3)
        extra = {
            name: 0.3 * torch.randn(D_SAE, generator=generator)
            for name in ("r_mag", "gate_bias", "mag_bias")
        }
        return {**both, **extra, "decoder_bias": bias}
    return {**both, "b_dec": bias, "k": torch.tensor(K), "threshold": torch.tensor(0.4)}


@pytest.mark.parametrize(
    "kind",
    [
        "AutoEncoder",
        "GatedAutoEncoder",
        "JumpReluAutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
    ],
)
def test_dictionary_learning(kind, local_hub):
    repo, folder = "someone/dictionaries", "resid_post_layer_11/trainer_0"
    path = local_hub / repo / folder
    path.mkdir(parents=True)
    torch.save(dictionary_learning_state(kind), path / "ae.pt")
    (path / "config.json").write_text(
        json.dumps(
            {
                "trainer": {
                    "dict_class": kind,
                    "activation_dim": D_MODEL,
                    "dict_size": D_SAE,
                    "layer": 11,
                    "lm_name": "meta-llama/Llama-3.1-8B-Instruct",
                    "submodule_name": "resid_post_layer_11",
                    "k": K,
                },
                "buffer": {"ctx_len": 128},
            }
        )
    )
    oracle = through(loaders.dictionary_learning_sae_huggingface_loader_1, repo, folder)
    ours = load_sae(SAERef(path=str(local_hub / repo), id=folder))
    assert_same(ours, oracle, HookPoint(11))
    assert ours.model_name == "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("repo", "name", "infix", "loader", "layer", "model"),
    [
        (
            "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
            "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
            ".",
            loaders.deepseek_r1_sae_huggingface_loader,
            19,
            "DeepSeek-R1-Distill-Llama-8B",
        ),
        (
            "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
            "Llama-3.1-8B-Instruct-SAE-l19.pth",
            "_linear.",
            loaders.get_goodfire_huggingface_loader,
            19,
            "Llama-3.1-8B-Instruct",
        ),
    ],
)
def test_single_files_of_two_linear_layers(repo, name, infix, loader, layer, model, local_hub):
    path = local_hub / repo
    path.mkdir(parents=True)
    torch.save(linear(weights(), infix), path / name)
    oracle = through(loader, repo, name, d_in=D_MODEL, d_sae=D_SAE)
    ours = load_sae(SAERef(path=str(path / name)))
    assert_same(ours, oracle, HookPoint(layer))
    assert ours.model_name == model


def test_qwen_scope(local_hub):
    repo, name = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_7", "layer4.sae.pt"
    path = local_hub / repo
    path.mkdir(parents=True)
    tensors = weights()
    del tensors["threshold"]
    tensors |= {key: tensors[key].T.contiguous() for key in ("W_enc", "W_dec")}
    torch.save(tensors, path / name)
    oracle = through(
        loaders.qwen_scope_sae_huggingface_loader, repo, name, d_in=D_MODEL, d_sae=D_SAE
    )
    ours = load_sae(SAERef(path=str(path / name)))
    assert_same(ours, oracle, HookPoint(4))
    assert ours.model_name == "Qwen/Qwen3-1.7B-Base"
    assert ours.k == 7
