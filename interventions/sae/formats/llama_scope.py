"""Llama Scope and other OpenMOSS SAEs: `hyperparams.json` or `config.json` with safetensors.

Two generations. Llama Scope (base) keeps `hyperparams.json` and `checkpoints/final.safetensors`
and one threshold for all features; Llama Scope R1-Distill keeps `config.json` and
`sae_weights.safetensors` with one `log_jumprelu_threshold` a feature.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.errors import SAEError
from interventions.sae.build import RawSAE
from interventions.sae.formats.files import read_json, read_safetensors, take

HYPERPARAMS = "hyperparams.json"
CONFIG = "config.json"
WEIGHTS = "sae_weights.safetensors"

_KINDS = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
_NORM_KEY = "dataset_average_activation_norm"


def matches(folder: Path) -> bool:
    """Return whether `folder` is an OpenMOSS folder."""
    if (folder / HYPERPARAMS).is_file():
        return True
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, source: str) -> RawSAE:
    """Return the SAE of an OpenMOSS folder, in the units of sae_lens.

    `dataset-wise` normalisation is `expected_average_only_in`, with the factor from the files where
    they store the mean norm. Where `sparsity_include_decoder_norm` is set (the library's default)
    the threshold is compared with the pre-activation times the decoder norm; sae_lens leaves the
    norm out, which is the same only for unit decoders.

    Args:
        folder: as the module describes.
        source: for messages.

    Raises:
        SAEError: a GLU encoder, an unknown activation, or a missing tensor.

    Source: `SparseAutoEncoder.encode`, `from_pretrained` of OpenMOSS/Language-Model-SAEs
        (October 2024, February 2025); `llama_scope*` loaders of sae_lens 6.54.
    """
    old = (folder / HYPERPARAMS).is_file()
    cfg = read_json(folder / (HYPERPARAMS if old else CONFIG))
    path = _weights_path(folder)
    weights = read_safetensors(path)
    if cfg.get("use_glu_encoder"):
        raise SAEError(f"{source} has a GLU encoder, whose features are not linear; use another")
    kind = str(cfg.get("act_fn", "jumprelu")).lower()
    if old and kind == "topk" and cfg.get("jump_relu_threshold", 0) > 0:
        kind = "jumprelu"
    if kind not in _KINDS:
        raise SAEError(f"{source}: act_fn '{kind}' is unknown; known: {', '.join(sorted(_KINDS))}")
    w_dec = take(weights, path, "decoder.weight").T
    scale = _scale(cfg, weights, w_dec.shape[1])
    normalize = _normalize(str(cfg.get("norm_activation", "dataset-wise")), source)
    threshold = None
    if kind == "jumprelu":
        threshold = _threshold(cfg, weights, w_dec, path, scale)
    hook_in, hook_out = cfg.get("hook_point_in"), cfg.get("hook_point_out")
    b_dec = weights.get("decoder.bias")
    return RawSAE(
        "transcoder" if hook_out not in (None, hook_in) else _KINDS[kind],
        w_dec,
        source,
        W_enc=take(weights, path, "encoder.weight").T,
        b_enc=take(weights, path, "encoder.bias"),
        b_dec=torch.zeros(w_dec.shape[1]) if b_dec is None else b_dec,
        threshold=threshold,
        k=cfg.get("top_k") if kind == "topk" else None,
        normalize=normalize,
        scale=scale,
        apply_b_dec_to_input=bool(cfg.get("apply_decoder_bias_to_pre_encoder", False)),
        # Its top-k ranks by what a feature writes; counting that as the activation is the same.
        rescale_acts_by_decoder_norm=bool(cfg.get("sparsity_include_decoder_norm", True)),
        norm_gated=threshold is not None and bool(cfg.get("sparsity_include_decoder_norm", True)),
        hook_name=hook_in,
        model_name=_model_name(cfg, folder, source),
    )


def _weights_path(folder: Path) -> Path:
    names = (WEIGHTS, "checkpoints/pruned.safetensors", "checkpoints/final.safetensors")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    return folder / names[-1]


def _normalize(mode: str, source: str) -> str:
    modes = {
        "dataset-wise": "expected_average_only_in",
        "token-wise": "constant_norm_rescale",
        "inference": "none",
    }
    if mode not in modes:
        raise SAEError(
            f"{source}: norm_activation '{mode}' cannot be applied at run time; known:"
            f" {', '.join(sorted(modes))}"
        )
    return modes[mode]


def _scale(cfg: dict[str, Any], weights: dict[str, Tensor], d_model: int) -> float | None:
    """Return `sqrt(d_model) / mean norm` where config or weights store the mean norm."""
    norms = cfg.get(_NORM_KEY) or {}
    mean = norms.get("in", norms.get(cfg.get("hook_point_in")))
    if (
        mean is None
        and (stored := weights.get(f"{_NORM_KEY}.{cfg.get('hook_point_in')}")) is not None
    ):
        mean = float(stored)
    return None if mean is None else math.sqrt(d_model) / float(mean)


def _threshold(
    cfg: dict[str, Any], weights: dict[str, Tensor], w_dec: Tensor, path: Path, scale: float | None
) -> Tensor:
    """Return thresholds for the pre-activation of the normalised residual."""
    if "log_jumprelu_threshold" in weights:
        theta = take(weights, path, "log_jumprelu_threshold").float().exp()
    elif "jump_relu_threshold" in cfg:
        # Meant for weights whose bias was divided by the factor: it counts in units of 1/factor.
        theta = torch.full((w_dec.shape[0],), float(cfg["jump_relu_threshold"]) * (scale or 1.0))
    else:
        theta = take(weights, path, "log_jumprelu_threshold")
    if cfg.get("sparsity_include_decoder_norm", True):
        theta = theta / w_dec.float().norm(dim=1)
    return theta


def _model_name(cfg: dict[str, Any], folder: Path, source: str) -> str | None:
    if name := cfg.get("model_name"):
        return str(name)
    text = f"{source}/{folder.as_posix()}".lower()
    if "r1-distill" in text or "openr1-math" in text:
        return "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    return "meta-llama/Llama-3.1-8B" if "llama3_1-8b-base" in text else None
