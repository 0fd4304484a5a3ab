"""From the trainer's dictionary to a folder that SAELens and this project read."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.hook_points import HookPoint
from interventions.train.files import write_tensors, write_text
from interventions.train.trainer import Dictionary

_CHUNK = 2048
_FORMAT = "6.0.0"  # of the config: without it sae_lens reads the file as version 5


@dataclasses.dataclass(frozen=True)
class Folded:
    """A JumpReLU SAE in residual units: an activation is the L2 length that is written.

    `acts = relu(p) * [p > threshold]`, `p = (resid - b_dec) @ W_enc + b_enc`,
    `recon = acts @ W_dec + b_dec`; shapes as in `Dictionary`, `threshold (d_sae,)`.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor

    def pre(self, resid: Tensor) -> Tensor:
        """Return pre-activations `(tokens, d_sae)`, fp32."""
        return (resid.float() - self.b_dec) @ self.W_enc.float() + self.b_enc

    def encode(self, resid: Tensor) -> Tensor:
        """Return activations `(tokens, d_sae)`, fp32."""
        pre = self.pre(resid)
        return pre.relu() * (pre > self.threshold)

    def decode(self, acts: Tensor) -> Tensor:
        """Return reconstructions `(tokens, d_model)`, fp32."""
        return acts @ self.W_dec.float() + self.b_dec


def fold(weights: Dictionary, dtype: torch.dtype) -> Folded:
    """Return the dictionary without scale and with unit decoder rows; threshold 0.

    With `x = s * resid`, decoder rows of norm n and everything folded, the encoder is
    multiplied by `s * n / s = n`: in residual units the scale of the encoder cancels.

    Args:
        weights: of the trainer.
        dtype: that `W_enc` and `W_dec` are stored in.
    """
    norms = weights.W_dec.norm(dim=-1)
    return Folded(
        W_enc=(weights.W_enc * norms).to(dtype),
        b_enc=weights.b_enc * norms / weights.scale,
        W_dec=(weights.W_dec / norms[:, None]).to(dtype),
        b_dec=weights.b_dec / weights.scale,
        threshold=torch.zeros_like(weights.b_enc),
    )


def calibrated(folded: Folded, resid: Tensor, k: int) -> Folded:
    """Return the SAE with the one threshold at which `k` features a token are active on average.

    Args:
        folded: threshold ignored.
        resid: `(tokens, d_model)` without sinks; not the tokens that are measured later.
        k: wanted mean L0.
    """
    theta = max(0.0, shift_for_l0(folded.pre, torch.zeros_like(folded.b_enc), resid, k))
    return dataclasses.replace(folded, threshold=torch.full_like(folded.b_enc, theta))


def shift_for_l0(
    pre: Callable[[Tensor], Tensor], threshold: Tensor, resid: Tensor, k: int
) -> float:
    """Return what to add to every threshold so that `k` features a token are active on average.

    A feature is active where its pre-activation is above 0 and above its threshold. Where fewer
    than `k` a token are above 0 at all, the result lets all of those through.

    Args:
        pre: from `(n, d_model)` to `(n, d_sae)`.
        threshold: `(d_sae,)`.
        resid: `(tokens, d_model)` without sinks.
        k: wanted mean L0.
    """
    # The result is the (tokens * k)-th largest margin; no token needs more than 16 k of them.
    keep = min(16 * k, len(threshold))
    tops = []
    for part in resid.split(_CHUNK):
        found = pre(part.to(threshold.device))
        margin = torch.where(found > 0, found - threshold, -torch.inf)
        tops.append(margin.topk(keep, dim=-1).values.cpu())
    values = torch.cat(tops).reshape(-1).sort(descending=True).values
    values = values[values > -torch.inf]
    if len(values) <= len(resid) * k:
        return -float(threshold.max())
    return float(values[len(resid) * k])


def save_saelens(
    folder: Path, folded: Folded, hook_point: HookPoint, metadata: dict[str, Any]
) -> Path:
    """Return the weights file after writing `cfg.json` and `sae_weights.safetensors`.

    Args:
        folder: made if it is missing.
        folded: what to write; `W_enc` and `W_dec` keep their dtype.
        hook_point: goes into the metadata.
        metadata: `model_name`, `median_norm` and whatever else describes the SAE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    d_model, d_sae = folded.W_enc.shape
    config = {
        "architecture": "jumprelu",
        "d_in": d_model,
        "d_sae": d_sae,
        "dtype": "float32",  # of the arithmetic; sae_lens casts the stored bf16 up to it
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _FORMAT,
            "hook_name": str(hook_point),
            "prepend_bos": False,
            **metadata,
        },
    }
    write_text(folder / "cfg.json", json.dumps(config, indent=2) + "\n")
    path = folder / "sae_weights.safetensors"
    write_tensors(path, {f.name: getattr(folded, f.name) for f in dataclasses.fields(folded)})
    return path
