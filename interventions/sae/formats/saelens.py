"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, versions 3 to 6."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.errors import SAEError
from interventions.sae.build import RawSAE
from interventions.sae.formats.files import read_json, read_safetensors

CFG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"

_V5_ACTIVATIONS = frozenset({"relu", "topk"})
_MATCHING_PURSUIT = ("residual_threshold", "max_iterations", "stop_on_duplicate_support")


def matches(folder: Path) -> bool:
    """Return whether `folder` is a SAELens folder."""
    return (folder / CFG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, source: str) -> RawSAE:
    """Return the SAE of a SAELens folder.

    Args:
        folder: holds `cfg.json` and `sae_weights.safetensors`.
        source: for messages.

    Raises:
        SAEError: the folder is not a SAELens inference SAE.

    Source: `sae_lens_disk_loader`, `handle_pre_6_0_config` of sae_lens 6.54.
    """
    return from_parts(read_json(folder / CFG), read_safetensors(folder / WEIGHTS), source)


def from_parts(cfg: dict[str, Any], weights: dict[str, Tensor], source: str) -> RawSAE:
    """Return the SAE of a SAELens config and state dict.

    Args:
        cfg: `cfg.json` of any version, or `sae.cfg.to_dict()`.
        weights: `sae.state_dict()`; not changed.
        source: for messages.

    Raises:
        SAEError: the two do not make an inference SAE.
    """
    meta = {**cfg, **(cfg.get("metadata") or {})}
    architecture, k = _architecture(cfg, source)
    weights = _finetuned(dict(weights), cfg, source)
    if "W_dec" not in weights:
        raise SAEError(
            f"{source} has no tensor 'W_dec' (it has {', '.join(sorted(weights)[:8])}); the file is"
            f" incomplete or of another format"
        )
    transcoder = "transcoder" in architecture
    options = {key: cfg[key] for key in _MATCHING_PURSUIT if key in cfg}
    normalize = _normalize(cfg)
    extra = meta.get("model_from_pretrained_kwargs") or {}
    factor = cfg.get("activation_normalization_factor") if architecture == "temporal" else None
    names = ("W_enc", "b_enc", "b_dec", "threshold", "b_gate", "b_mag", "r_mag")
    tensors: dict[str, Any] = {name: weights.get(name) for name in names}
    return RawSAE(
        architecture,
        weights["W_dec"],
        source,
        **tensors,
        k=k,
        # A transcoder does not undo its input's normalisation on the way out.
        normalize="none" if transcoder and normalize in _UNDONE else normalize,
        scale=factor,
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", not transcoder)),
        rescale_acts_by_decoder_norm=bool(cfg.get("rescale_acts_by_decoder_norm", False)),
        center_input=bool(extra.get("center_writing_weights", False)),
        hook_name=meta.get("hook_name") or meta.get("hook_point"),
        model_name=meta.get("model_name"),
        median_norm=meta.get("median_norm"),
        options=options if architecture == "matching_pursuit" else None,
    )


_UNDONE = frozenset({"layer_norm", "constant_norm_rescale"})


def _architecture(cfg: dict[str, Any], source: str) -> tuple[str, int | None]:
    architecture = cfg.get("architecture", "standard")
    activation = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu")) or "relu"
    kwargs = cfg.get("activation_fn_kwargs") or {}
    if architecture == "standard" and activation == "topk":
        return "topk", kwargs.get("k")
    if activation not in _V5_ACTIVATIONS:
        raise SAEError(
            f"{source}: activation_fn '{activation}' is not an inference activation; known: relu,"
            f" topk"
        )
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        raise SAEError(
            f"{source} is a training checkpoint ('{architecture}', whose activations depend on the"
            f" batch); save it with sae_lens's `save_inference_model`"
        )
    return architecture, cfg.get("k", kwargs.get("k"))


def _normalize(cfg: dict[str, Any]) -> str:
    value = cfg.get("normalize_activations")
    if isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    return value or "none"


def _finetuned(weights: dict[str, Tensor], cfg: dict[str, Any], source: str) -> dict[str, Tensor]:
    """Fold version 5's per-feature output factor, which acts between activations and decoder."""
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor = weights.pop(name, None)
        if factor is None or torch.allclose(factor, torch.ones_like(factor)):
            continue
        if not cfg.get("finetuning_scaling_factor"):
            raise SAEError(
                f"{source} stores a '{name}' that is not 1 while its config says it is unused; set"
                f" finetuning_scaling_factor in its cfg.json"
            )
        weights["W_dec"] = weights["W_dec"].float() * factor.float().unsqueeze(1)
    return weights
