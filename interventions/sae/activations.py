"""Feature activations at run time: the hot path of every backend."""

import torch
from torch import Tensor

from interventions.errors import SAEError
from interventions.sae.core import FeatureDirections
from interventions.sae.norms import normalise

_CHUNK_ELEMENTS = 1 << 25
"""Pre-activations held at once by architectures that need all of them: 128 MiB of fp32."""


def feature_acts(resid: Tensor, dirs: FeatureDirections) -> tuple[Tensor, Tensor | None]:
    """Return the activations of `dirs`' features, and the factor that multiplies `w` on writing.

    Args:
        resid: `(..., d_model)` unedited residual stream, any float dtype.
        dirs: features of one SAE, on the residual's device.

    Returns:
        Activations, fp32 `(..., n)` in SAE units, exactly those of the SAE's own encoder; and the
        factor `c`, fp32 `(...)`, or None where it is 1 (no input normalisation).

    Raises:
        SAEError: the SAE has no activation at a single token.
    """
    if not dirs.gateable:
        raise SAEError(f"activations of {dirs.source} cannot be computed: {dirs.why_not}")
    normed = normalise(resid, dirs.norm)
    if dirs.full is not None:
        return _from_full(normed.z, dirs), normed.factor
    pre = normed.z @ dirs.e.T
    return gate(pre, dirs.mul, dirs.beta, dirs.beta_mag, dirs.theta), normed.factor


def gate(pre: Tensor, mul: Tensor, beta: Tensor, beta_mag: Tensor, theta: Tensor) -> Tensor:
    """Return the activations of features whose gate reads nothing but themselves.

    Args:
        pre: `(..., n)` products `z · e`.
        mul: `(n,)` or `(..., n)`; this and the rest as in `FeatureDirections`.
        beta: the same shape.
        beta_mag: the same shape.
        theta: the same shape.
    """
    return torch.addcmul(beta_mag, pre, mul).relu_() * (pre + beta > theta)


def norm_factor(resid: Tensor, dirs: FeatureDirections) -> Tensor | None:
    """Return the factor `c` alone, fp32 `(...)`, or None where it is 1.

    Args:
        resid: `(..., d_model)` unedited residual stream.
        dirs: features of one SAE.
    """
    return None if dirs.norm == "none" else normalise(resid, dirs.norm).factor


def _from_full(z: Tensor, dirs: FeatureDirections) -> Tensor:
    assert dirs.full is not None
    flat = z.reshape(-1, z.shape[-1])
    rows = max(1, _CHUNK_ELEMENTS // dirs.full.d_sae)
    parts = [dirs.full.encode_normed(part)[:, dirs.index] for part in flat.split(rows)]
    return torch.cat(parts).reshape(*z.shape[:-1], len(dirs.index))
