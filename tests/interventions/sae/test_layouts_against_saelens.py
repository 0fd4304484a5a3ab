"""Other libraries' layouts, read by sae_lens's own loaders from a local folder, are the oracle."""

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
from tests.interventions.sae.made_up import D_MODEL, D_SAE, FEATURES, K, resid

pytestmark = pytest.mark.filterwarnings("ignore")


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
    # What sae_lens has folded is known, or `doctor` would take the decoder norms for shorter ones.
    assert ours.scale == pytest.approx(3.9386839)
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
