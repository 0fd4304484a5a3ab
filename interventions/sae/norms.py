"""Input normalisation of SAEs, as pure functions of the residual stream."""

import math
from typing import Literal, NamedTuple

from torch import Tensor

NormMode = Literal["none", "layer_norm", "constant_norm_rescale"]

_LAYER_NORM_EPS = 1e-5
_SMALLEST_NORM = 1e-20


class Normed(NamedTuple):
    """A normalised residual and what undoes the normalisation: `x = z · factor + mean`.

    Attributes:
        z: `(..., d_model)` fp32, what the encoder sees.
        factor: `(...)` the factor `c` that multiplies `W_dec`, or None where it is 1.
        mean: `(...)` the mean that was subtracted, or None where it is 0.
    """

    z: Tensor
    factor: Tensor | None
    mean: Tensor | None


def normalise(resid: Tensor, mode: NormMode) -> Normed:
    """Return the residual as the SAE's encoder sees it, in fp32.

    `layer_norm` subtracts the token's mean and divides by its unbiased standard deviation plus
    1e-5, but is undone with the bare standard deviation; `constant_norm_rescale` gives every
    token the length `sqrt(d_model)`.

    Args:
        resid: `(..., d_model)`, any float dtype.
        mode: the SAE's normalisation.

    Source: `SAE._setup_activation_normalization` of sae_lens 6.54.
    """
    x = resid.float()
    if mode == "none":
        return Normed(x, None, None)
    if mode == "layer_norm":
        mean = x.mean(dim=-1)
        centred = x - mean.unsqueeze(-1)
        std = centred.std(dim=-1)
        return Normed(centred / (std + _LAYER_NORM_EPS).unsqueeze(-1), std, mean)
    # The floor only matters for an all-zero row, which a padded batch may hold: 0/0 is NaN, and
    # a NaN survives every mask that multiplies.
    norm = x.norm(dim=-1).clamp_min(_SMALLEST_NORM)
    root = math.sqrt(x.shape[-1])
    return Normed(x * (root / norm).unsqueeze(-1), norm / root, None)


def denormalise(recon: Tensor, normed: Normed) -> Tensor:
    """Return a reconstruction in units of the residual stream.

    Args:
        recon: `(..., d_model)` in normalised units.
        normed: what `normalise` gave for the same tokens.
    """
    if normed.factor is not None:
        recon = recon * normed.factor.unsqueeze(-1)
    if normed.mean is not None:
        recon = recon + normed.mean.unsqueeze(-1)
    return recon
