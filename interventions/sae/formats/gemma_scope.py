"""Gemma Scope: `params.npz` (Gemma 2) and `params.safetensors` (Gemma 3)."""

import re
from pathlib import Path
from typing import Any

from interventions.sae.build import RawSAE
from interventions.sae.formats.files import read_json, read_npz, read_safetensors, take

NPZ = "params.npz"
WEIGHTS = "params.safetensors"

_SIZE = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)")


def matches(folder: Path) -> bool:
    """Return whether `folder` is one SAE of Gemma Scope."""
    return (folder / NPZ).is_file() or (folder / WEIGHTS).is_file()


def read(folder: Path, source: str) -> RawSAE:
    """Return the SAE of a Gemma Scope folder.

    The files of Gemma 2 say nothing but the weights: layer and site come from the folder's path
    (`layer_20/width_16k/average_l0_71`), the model from the name of the repo in it.

    Args:
        folder: holds `params.npz`, or `params.safetensors` and `config.json`.
        source: for messages, and searched for the repo's name.

    Raises:
        SAEError: a tensor is missing.

    Source: `gemma_2_sae_huggingface_loader`, `gemma_3_sae_huggingface_loader` of sae_lens 6.54.
    """
    path = folder / NPZ
    if path.is_file():
        return read_npz_file(path, source)
    path = folder / WEIGHTS
    weights = read_safetensors(path)
    cfg: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        cfg = read_json(folder / "config.json")
    where = str(cfg.get("hf_hook_point_in") or "")
    if not where and "resid_post" in str(folder) and (layer := _layer(str(folder))) is not None:
        where = f"model.layers.{layer}.output"
    transcoder = "affine_skip_connection" in weights or "hf_hook_point_out" in cfg
    model = cfg.get("model_name")
    return RawSAE(
        "jumprelu_transcoder" if transcoder else "jumprelu",
        take(weights, path, "w_dec"),
        source,
        W_enc=take(weights, path, "w_enc"),
        b_enc=take(weights, path, "b_enc"),
        b_dec=take(weights, path, "b_dec"),
        threshold=take(weights, path, "threshold"),
        hook_name=where or None,
        model_name=model.replace("gemma-v3", "gemma-3") if model else None,
    )


def read_npz_file(path: Path, source: str) -> RawSAE:
    """Return the SAE of a `params.npz` of Gemma Scope.

    Args:
        path: the file.
        source: for messages, and searched for the repo's name.

    Raises:
        SAEError: a tensor is missing.
    """
    weights = read_npz(path)
    text = f"{source}/{path.as_posix()}"
    found = _SIZE.search(text)
    layer = _layer(text)
    site = found.group(3) if found else "res"
    hooks = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
    hook = None if layer is None else f"blocks.{layer}.{hooks.get(site, 'hook_mlp_in')}"
    model = None
    if found:
        model = f"google/gemma-2-{found.group(1)}" + ("-it" if found.group(2) == "it" else "")
    return RawSAE(
        "jumprelu_transcoder" if site == "transcoders" else "jumprelu",
        take(weights, path, "W_dec", "w_dec"),
        source,
        W_enc=take(weights, path, "W_enc", "w_enc"),
        b_enc=take(weights, path, "b_enc"),
        b_dec=take(weights, path, "b_dec"),
        threshold=take(weights, path, "threshold"),
        hook_name=hook,
        model_name=model,
    )


def _layer(text: str) -> int | None:
    found = re.findall(r"layer_(\d+)", text)
    return int(found[-1]) if found else None
