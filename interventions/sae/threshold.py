"""TopK SAEs with one threshold in place of the comparison with all other features.

A TopK gate needs the pre-activations of every feature at every token. With the threshold at which
`k` features a token are active on average, a feature's gate needs nothing but itself; that is how
SAELens stores BatchTopK SAEs, too. It is another SAE, with another content hash: at a single
token it may keep more or fewer than `k` features.
"""

import dataclasses
import hashlib

import torch
from torch import Tensor

from interventions.errors import SAEError
from interventions.sae.core import SAE
from interventions.sae.norms import normalise

_CHUNK = 2048


def with_threshold(sae: SAE, threshold: float) -> SAE:
    """Return a TopK SAE as a JumpReLU SAE with one threshold for all features.

    Args:
        sae: of architecture `topk`.
        threshold: in SAE units; a feature is active above it.

    Raises:
        SAEError: another architecture.
    """
    require_topk(sae)
    digest = hashlib.sha256(f"{sae.content_hash} threshold {threshold!r}".encode())
    return dataclasses.replace(
        sae,
        architecture="jumprelu",
        k=None,
        threshold=torch.full((sae.d_sae,), float(threshold), device=sae.W_dec.device),
        content_hash=digest.hexdigest(),
    )


def calibrated_threshold(sae: SAE, resid: Tensor) -> float:
    """Return the threshold at which `k` features a token are active on average.

    Args:
        sae: of architecture `topk`.
        resid: `(tokens, d_model)` residual stream, without attention sinks, on any device.

    Raises:
        SAEError: another architecture, or no token.
    """
    require_topk(sae)
    if not len(resid):
        raise SAEError("no token to calibrate a threshold on; give a longer text")
    assert sae.k is not None
    assert sae.W_enc is not None
    assert sae.b_enc is not None
    keep = min(16 * sae.k, sae.d_sae)  # no token needs more of them
    tops = []
    for part in resid.split(_CHUNK):
        z = normalise(part.to(sae.W_dec.device), sae.norm).z
        if sae.apply_b_dec_to_input:
            z = z - sae.b_dec
        tops.append((z @ sae.W_enc + sae.b_enc).topk(keep, dim=-1).values.cpu())
    values = torch.cat(tops).reshape(-1).sort(descending=True).values
    return float(values[min(len(resid) * sae.k, len(values) - 1)].clamp(min=0.0))


def agreement(sae: SAE, threshold: float, resid: Tensor) -> dict[str, float]:
    """Return how far the threshold's features are those of the TopK gate.

    Args:
        sae: of architecture `topk`.
        threshold: in SAE units.
        resid: `(tokens, d_model)`, not the tokens it was calibrated on; on any device.

    Returns:
        `l0`: mean active features with the threshold; `k`: with the gate, at most; `precision`:
        share of the threshold's features that the gate keeps; `recall`: the reverse.
    """
    other = with_threshold(sae, threshold)
    both = ours = theirs = 0
    for part in resid.split(_CHUNK):
        part = part.to(sae.W_dec.device)
        kept, active = sae.encode(part) != 0, other.encode(part) != 0
        both += int((kept & active).sum())
        ours, theirs = ours + int(active.sum()), theirs + int(kept.sum())
    return {
        "l0": ours / len(resid),
        "k": float(sae.k or 0),
        "precision": both / max(ours, 1),
        "recall": both / max(theirs, 1),
    }


def require_topk(sae: SAE) -> None:
    """Return nothing if the SAE has a TopK gate.

    Raises:
        SAEError: another architecture.
    """
    if sae.architecture != "topk":
        raise SAEError(
            f"{sae.source} is a {sae.architecture} SAE; `threshold` goes with topk SAEs, remove it"
        )
