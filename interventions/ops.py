"""The maths of an edit: every operator is four constants a feature.

With `x` the unedited residual, `w = W_dec[f]`, `a` the feature's activation, `c` the factor that
undoes the SAE's input normalisation at that token (1 where there is none):

    delta = (c · (A + B·a) + R + P·(x·w)) · w

All edits of a hook point read the same `x` and their deltas are summed, so their order does not
matter. Arithmetic is fp32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.errors import SpecError
from interventions.spec import Op, Unit


@dataclass(frozen=True)
class EditConstants:
    """The constants `A`, `B`, `R`, `P` of one edit (see the module's docstring)."""

    a_const: float = 0.0
    a_act: float = 0.0
    r_const: float = 0.0
    r_proj: float = 0.0


def edit_constants(op: Op, value: float, *, unit: Unit, w_norm: float) -> EditConstants:
    """Return the constants of an operator.

    Args:
        op: the operator; see `interventions.spec.EditSpec`.
        value: in `unit`; the multiplier for `scale`; ignored by `ablate`. For `project` it is the
            component along unit `W_dec[f]`, in units of the residual stream, whatever `unit` is.
        unit: `sae` or `residual`.
        w_norm: L2 norm of `W_dec[f]`.

    Raises:
        SpecError: the direction has no length.
    """
    if not w_norm > 0:
        raise SpecError("the feature's decoder direction has norm 0; it cannot be steered")
    in_sae = unit == "sae"
    sae_part, resid_part = (value, 0.0) if in_sae else (0.0, value / w_norm)
    if op == "add":
        return EditConstants(a_const=sae_part, r_const=resid_part)
    if op == "clamp":
        return EditConstants(a_const=sae_part, a_act=-1.0, r_const=resid_part)
    if op == "ablate":
        return EditConstants(a_act=-1.0)
    if op == "scale":
        return EditConstants(a_act=value - 1.0)
    return EditConstants(r_const=value / w_norm, r_proj=-1.0 / w_norm**2)


def coefficients(
    constants: Tensor, acts: Tensor | None, norm_factor: Tensor | None, proj: Tensor | None
) -> Tensor:
    """Return what multiplies `W_dec[f]`, fp32 `(..., n_edits)` or `(n_edits,)`.

    Args:
        constants: `(4, n_edits)` fp32, rows `A, B, R, P`.
        acts: `(..., n_edits)` feature activations, or None where every `B` is 0.
        norm_factor: `(...)` the factor `c`, or None where it is 1.
        proj: `(..., n_edits)` the products `x·w`, or None where every `P` is 0.
    """
    a_const, a_act, r_const, r_proj = constants
    in_sae_units = a_const if acts is None else torch.addcmul(a_const, a_act, acts)
    if norm_factor is not None:
        in_sae_units = in_sae_units * norm_factor.unsqueeze(-1)
    total = in_sae_units + r_const
    return total if proj is None else torch.addcmul(total, r_proj, proj)
