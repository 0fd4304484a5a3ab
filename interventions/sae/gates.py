"""Activation functions that look at every feature of a token at once.

`standard`, `jumprelu` and `gated` decide each feature alone and need none of this.
"""

import torch
from torch import Tensor


def topk(pre: Tensor, k: int) -> Tensor:
    """Return the `k` largest pre-activations of a token, rectified; the rest are 0.

    Args:
        pre: `(..., d_sae)` pre-activations.
        k: features kept a token.

    Source: `TopK.forward` of sae_lens 6.54.
    """
    values, indices = torch.topk(pre, k=k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter_(-1, indices, values.relu())


def abstopk(pre: Tensor, k: int) -> Tensor:
    """Return the `k` pre-activations of largest magnitude with their sign; the rest are 0.

    Args:
        pre: `(..., d_sae)` pre-activations.
        k: features kept a token.

    Source: `AbsTopK.forward` of sae_lens 6.54.
    """
    indices = torch.topk(pre.abs(), k=k, dim=-1, sorted=False).indices
    return torch.zeros_like(pre).scatter_(-1, indices, pre.gather(-1, indices))


def groupmax(pre: Tensor, k: int) -> Tensor:
    """Return the largest pre-activation of each of `k` equal groups, rectified; the rest are 0.

    Args:
        pre: `(..., d_sae)` pre-activations; `d_sae` is a multiple of `k`.
        k: number of groups.

    Source: `FusedEncoder.forward` of EleutherAI's sparsify, `activation="groupmax"`.
    """
    grouped = pre.relu().unflatten(-1, (k, -1))
    values, indices = grouped.max(dim=-1, keepdim=True)
    return torch.zeros_like(grouped).scatter_(-1, indices, values).flatten(-2)


def matching_pursuit(
    z: Tensor,
    w_dec: Tensor,
    *,
    residual_threshold: float,
    max_iterations: int | None,
    stop_on_duplicate_support: bool,
) -> Tensor:
    """Return the activations that greedy matching pursuit finds, `(..., d_sae)`.

    Args:
        z: `(..., d_model)` normalised residual, `b_dec` already subtracted where it is used.
        w_dec: `(d_sae, d_model)`.
        residual_threshold: a token is done when its remainder is shorter than this; 0 is never.
        max_iterations: None is `d_model`.
        stop_on_duplicate_support: a token is done when a step adds no new feature.

    Source: `_encode_matching_pursuit` of sae_lens 6.54.
    """
    remainder = z.reshape(-1, z.shape[-1]).clone()
    acts = z.new_zeros(remainder.shape[0], w_dec.shape[0])
    support = torch.zeros_like(acts, dtype=torch.bool)
    done = support[:, 0].clone()
    for _ in range(max_iterations or z.shape[-1]):
        best = (remainder @ w_dec.T).relu().argmax(dim=1)
        rows = w_dec[best]
        values = (remainder * rows).sum(dim=-1).relu() * ~done
        acts.scatter_add_(1, best.unsqueeze(1), values.unsqueeze(1))
        remainder = remainder - values.unsqueeze(1) * rows
        if stop_on_duplicate_support:
            now = acts != 0
            done = done | (now == support).all(dim=1)
            support = now
        if residual_threshold > 0:
            done = done | (remainder.norm(dim=-1) < residual_threshold)
        if bool(done.all()):
            break
    return acts.reshape(*z.shape[:-1], w_dec.shape[0])
