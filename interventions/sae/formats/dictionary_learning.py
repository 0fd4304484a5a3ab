"""dictionary_learning folders: `config.json` and `ae.pt`."""

from pathlib import Path
from typing import Any

import torch

from interventions.errors import SAEError
from interventions.sae.build import RawSAE
from interventions.sae.formats.files import read_json, read_pt, take

CFG = "config.json"
WEIGHTS = "ae.pt"

_THRESHOLD = frozenset({"BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"})
_CLASSES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}
_NO_INPUT_BIAS = frozenset({"AutoEncoderNew", "JumpReluAutoEncoder"})


def matches(folder: Path) -> bool:
    """Return whether `folder` is a dictionary_learning folder."""
    return (folder / CFG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, source: str) -> RawSAE:
    """Return the SAE of a dictionary_learning folder, in the units of its weights.

    BatchTopK kinds use their stored threshold, as the library does at inference. The library's
    `AutoEncoder.from_pretrained` also renormalises the decoder; that changes the unit of an
    activation and is not done here (sae_lens does not either).

    Args:
        folder: holds `config.json` and `ae.pt`.
        source: for messages.

    Raises:
        SAEError: the kind of dictionary is unknown, or a tensor is missing.

    Source: `dictionary_learning/dictionary.py` and `trainers/` of saprmarks/dictionary_learning.
    """
    trainer: dict[str, Any] = read_json(folder / CFG).get("trainer", {})
    path = folder / WEIGHTS
    weights = read_pt(path)
    kind = trainer.get("dict_class", "")
    if kind not in _CLASSES:
        raise SAEError(
            f"{source}: dict_class '{kind}' is unknown; known: {', '.join(sorted(_CLASSES))}"
        )
    w_enc = weights["W_enc"] if "W_enc" in weights else take(weights, path, "encoder.weight").T
    w_dec = weights["W_dec"] if "W_dec" in weights else take(weights, path, "decoder.weight").T
    threshold = None
    if kind in _THRESHOLD:
        threshold = take(weights, path, "threshold")
        if threshold.ndim == 0:
            threshold = torch.full((w_dec.shape[0],), float(threshold))
    k = weights.get("k", trainer.get("k"))
    return RawSAE(
        _CLASSES[kind],
        w_dec,
        source,
        W_enc=w_enc,
        b_enc=weights.get("b_enc", weights.get("encoder.bias")),
        b_dec=take(weights, path, "b_dec", "bias", "decoder_bias", "decoder.bias"),
        threshold=threshold,
        k=None if k is None else int(k),
        b_gate=weights.get("gate_bias"),
        b_mag=weights.get("mag_bias"),
        r_mag=weights.get("r_mag"),
        apply_b_dec_to_input=kind not in _NO_INPUT_BIAS,
        hook_name=_hook_name(trainer),
        model_name=trainer.get("lm_name"),
    )


def _hook_name(trainer: dict[str, Any]) -> str | None:
    """Return the hook point; `submodule_name` says if it is another site than resid_post."""
    layer, site = trainer.get("layer"), trainer.get("submodule_name") or ""
    if layer is None:
        return None
    kinds = {"mlp": "hook_mlp_out", "att": "hook_attn_out"}
    hook = next((name for key, name in kinds.items() if key in site), "hook_resid_post")
    return f"blocks.{layer}.{hook}"
