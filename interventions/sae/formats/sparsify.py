"""EleutherAI sparsify folders: `cfg.json` and `sae.safetensors`."""

from pathlib import Path

import torch

from interventions.errors import SAEError
from interventions.sae.build import RawSAE
from interventions.sae.formats.files import read_json, read_safetensors, take

CFG = "cfg.json"
WEIGHTS = "sae.safetensors"


def matches(folder: Path) -> bool:
    """Return whether `folder` is a sparsify folder."""
    return (folder / CFG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path, source: str) -> RawSAE:
    """Return the SAE of a sparsify folder.

    The library subtracts `b_dec` from the input of every autoencoder, whatever
    `normalize_decoder` says; so does this.

    Args:
        folder: named after its hook point (`layers.20`), holds `cfg.json` and `sae.safetensors`.
        source: for messages.

    Raises:
        SAEError: the folder is of another format.

    Source: `SparseCoder.encode`, `load_from_disk` of EleutherAI/sparsify.
    """
    cfg = read_json(folder / CFG)
    path = folder / WEIGHTS
    weights = read_safetensors(path)
    w_enc = take(weights, path, "encoder.weight", "W_enc").T
    w_dec = take(weights, path, "W_dec", "decoder.weight")
    if "W_dec" not in weights:
        w_dec = w_dec.T
    activation = cfg.get("activation", "topk")
    kinds = {"topk": "abstopk" if cfg.get("signed") else "topk", "groupmax": "groupmax"}
    if activation not in kinds:
        raise SAEError(f"{source}: activation '{activation}' is unknown; known: topk, groupmax")
    b_enc = weights.get("encoder.bias", weights.get("b_enc"))
    parent = folder.parent / "config.json"
    run = read_json(parent) if parent.is_file() else {}
    transcoder = bool(cfg.get("transcode"))
    return RawSAE(
        "transcoder" if transcoder else kinds[activation],
        w_dec,
        source,
        W_enc=w_enc,
        b_enc=torch.zeros(w_dec.shape[0]) if b_enc is None else b_enc,
        b_dec=weights.get("b_dec", weights.get("decoder.bias")),
        k=cfg.get("k"),
        apply_b_dec_to_input=not transcoder,
        hook_name=folder.name,
        model_name=run.get("model"),
    )
