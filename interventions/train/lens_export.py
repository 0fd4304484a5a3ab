"""From what SAELens saves to what is shipped: thresholds set on held-out text, metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.errors import SAEError
from interventions.hook_points import HookPoint
from interventions.sae.core import SAE
from interventions.sae.io import load_sae
from interventions.sae.norms import normalise
from interventions.sae.threshold import calibrated_threshold
from interventions.spec import SAERef
from interventions.train.config import TrainerConfig
from interventions.train.export import shift_for_l0
from interventions.train.files import read_tensors, write_tensors, write_text


def calibrate_saved(
    source: Path,
    target: Path,
    config: TrainerConfig,
    resid: Tensor,
    hook_point: HookPoint,
    metadata: dict[str, Any],
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Return what was set, after writing the SAE in `source` to `target` with its thresholds.

    BatchTopK and Matryoshka get one threshold at which `k` features a token are active; JumpReLU
    keeps its learned ones and shifts them all by one number to the same end, where `k` is given.
    TopK keeps its gate, and the threshold that would do instead is recorded in the metadata.

    Args:
        source: as `SAE.save_inference_model` writes it.
        target: made if it is missing.
        config: architecture and `k`.
        resid: `(tokens, d_model)` without sinks; not the tokens that are measured later.
        hook_point: goes into the metadata.
        metadata: `model_name`, `median_norm` and whatever else describes the SAE.
        device: where it is computed.
    """
    sae = load_sae(SAERef(path=str(source))).to(device)
    tensors = read_tensors(source / "sae_weights.safetensors")
    cfg = json.loads((source / "cfg.json").read_text())
    report: dict[str, Any] = {}
    if config.architecture == "topk":
        report["threshold_instead"] = calibrated_threshold(sae, resid)
        metadata = metadata | {"calibrated_threshold": report["threshold_instead"]}
    elif sae.architecture == "jumprelu" and config.k is not None:
        learned = tensors["threshold"].float().to(device)
        base = learned if config.architecture == "jumprelu" else torch.zeros_like(learned)
        shift = shift_for_l0(lambda x: _pre(sae, x), base, resid, config.k)
        tensors["threshold"] = (base + shift).clamp(min=0.0).cpu()
        report |= {"threshold_trained": float(learned.mean()), "threshold_shift": shift}
    if "threshold" in tensors:
        report["threshold"] = float(tensors["threshold"].mean())
    target.mkdir(parents=True, exist_ok=True)
    cfg["device"] = "cpu"
    cfg["metadata"] |= {"hook_name": str(hook_point), "prepend_bos": False, **metadata}
    write_text(target / "cfg.json", json.dumps(cfg, indent=2) + "\n")
    path = target / "sae_weights.safetensors"
    write_tensors(path, tensors)
    return report | {"calibration_tokens": len(resid), "bytes": path.stat().st_size}


def _pre(sae: SAE, resid: Tensor) -> Tensor:
    if sae.W_enc is None or sae.b_enc is None:
        raise SAEError(f"{sae.source} has no encoder to calibrate")
    z = normalise(resid, sae.norm).z
    if sae.apply_b_dec_to_input:
        z = z - sae.b_dec
    return z @ sae.W_enc + sae.b_enc
