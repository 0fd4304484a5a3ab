"""The operator that edits the residual stream inside a compiled graph.

`sae_steered::edit_` adds to `hidden` what the edits of each token's slot ask for, and counts what
it did. It is a pure function of tensors that never move, so that a compiled or captured graph
stays right: an engine changes what is steered by writing into them.

CPU: torch. CUDA: one Triton program a token (`triton_op`).
"""

import functools
from typing import Any

import torch
from torch import Tensor

from interventions.backends.vllm.compiled import FLAG_BOS, NORMS, SCALARS
from interventions.errors import HookPointError, ReceiptError
from interventions.ops import coefficients
from interventions.sae.activations import gate
from interventions.sae.norms import normalise

SLOT_BITS = 16
SLOT_MASK = (1 << SLOT_BITS) - 1

_SCHEMA = (
    "edit_(Tensor(a!) hidden, Tensor? residual, Tensor tokens, Tensor owners, Tensor n_edits,"
    " Tensor limit, Tensor scalars, Tensor e, Tensor w, Tensor(b!) counts, Tensor(c!) norms) -> ()"
)
_CHUNK_ELEMENTS = 1 << 20
"""Gathered directions at once: 4 MiB of fp32, which caches hold."""

_library = torch.library.Library("sae_steered", "FRAGMENT")
_library.define(_SCHEMA)


def edit_(
    hidden: Tensor,
    residual: Tensor | None,
    tokens: Tensor,
    owners: Tensor,
    n_edits: Tensor,
    limit: Tensor,
    scalars: Tensor,
    e: Tensor,
    w: Tensor,
    counts: Tensor,
    norms: Tensor,
) -> None:
    """Edit `hidden` in place; rows of slot 0 keep their bits.

    Args:
        hidden: `(rows, d_model)`; what is added to it is added to the residual stream.
        residual: `(rows, d_model)` the rest of the stream, or None where `hidden` is all of it.
        tokens: `(max_rows,)` int32, a row's slot in the low 16 bits and its flags above.
        owners: `(max_rows,)` int32, a row's account in `counts`; read where its slot is not 0.
        n_edits: `(slots,)` int32.
        limit: `(slots,)` fp32, the norm guard's bound.
        scalars: `(slots, max_edits, len(SCALARS))` fp32.
        e: `(slots, max_edits, d_model)` fp32, encoder rows.
        w: `(slots, max_edits, d_model)` fp32, decoder rows.
        counts: `(accounts, max_edits, 3)` int64: rows selected, of these guarded, of the rest
            fired.
        norms: `(max_rows,)` fp32; receives the length of the stream at rows of steered slots.

    Raises:
        ReceiptError: more rows than `tokens` describes.
    """
    if hidden.shape[0] > tokens.shape[0]:
        raise ReceiptError(
            f"a step has {hidden.shape[0]} rows and {tokens.shape[0]} can be described; the rest"
            f" would run unsteered; lower max_num_batched_tokens"
        )
    packed = tokens[: hidden.shape[0]]
    rows = packed.nonzero().squeeze(1)
    if not len(rows):
        return
    slots, flags = packed[rows] & SLOT_MASK, packed[rows] >> SLOT_BITS
    width = int(n_edits[slots].max())
    step = max(1, _CHUNK_ELEMENTS // (max(1, width) * hidden.shape[1]))
    for chunk in torch.arange(len(rows)).split(step):
        row, slot = rows[chunk], slots[chunk]
        x = hidden[row].float()
        if residual is not None:
            x = x + residual[row].float()
        length = torch.linalg.vector_norm(x, dim=-1)
        norms[row] = length
        if not width:
            continue
        table: dict[str, Tensor] = dict(zip(SCALARS, scalars[slot, :width].unbind(-1), strict=True))
        exists = torch.arange(width) < n_edits[slot].unsqueeze(1)
        delta = _delta(
            x, flags[chunk], table, e[slot, :width], w[slot, :width], exists,
            (length <= limit[slot]).unsqueeze(1), owners[row].long(), counts,
        )  # fmt: skip
        hidden[row] = (hidden[row].float() + delta).to(hidden.dtype)


def _delta(
    x: Tensor,
    flags: Tensor,
    table: dict[str, Tensor],
    e: Tensor,
    w: Tensor,
    exists: Tensor,
    calm: Tensor,
    owner: Tensor,
    counts: Tensor,
) -> Tensor:
    """Return what is added to each row of `x`, by the editor's own formulas."""
    flags = flags.unsqueeze(1)
    wanted = (flags & table["wanted"].int()) != 0
    bos = (flags & FLAG_BOS) != 0
    mask = exists & wanted & ~(bos & (table["skip_bos"] != 0))
    acts, factor = torch.zeros_like(wanted, dtype=torch.float32), torch.ones_like(table["beta"])
    for mode, number in NORMS.items():
        here = table["norm"] == number
        if not here.any():
            continue
        normed = normalise(x, mode)
        pre = _dot(e, normed.z)
        acts = torch.where(
            here, gate(pre, table["mul"], table["beta"], table["beta_mag"], table["theta"]), acts
        )
        if normed.factor is not None:
            factor = torch.where(here, normed.factor.unsqueeze(-1), factor)
    active = acts != 0
    reads = table["reads"] != 0
    done = torch.stack([mask, mask & ~calm, mask & calm & active & reads], dim=-1)
    counts.index_add_(0, owner, _padded(done.long(), counts.shape[1]))
    mask = mask & calm & (active | (table["only_active"] == 0))
    proj = _dot(w, x) if table["r_proj"].any() else None
    constants = torch.stack([table[name] for name in ("a_const", "a_act", "r_const", "r_proj")])
    # `c` multiplies what is in SAE units only, so it is applied edit by edit.
    constants[:2] *= factor
    coefficient = torch.where(mask, coefficients(constants, acts, None, proj), 0.0)
    return (coefficient.unsqueeze(-1) * w).sum(dim=1)


def _dot(rows: Tensor, x: Tensor) -> Tensor:
    # No matrix product: its order of summation depends on how many rows a step holds.
    return (rows * x.unsqueeze(1)).sum(dim=-1)


def _padded(done: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(done, (0, 0, 0, width - done.shape[1]))


def _fake(*args: Tensor | None) -> None:
    return None


@functools.cache
def _kernel() -> Any:
    try:
        from interventions.backends.vllm import triton_op
    except ImportError as error:
        # What runs on the CPU asks the device which rows to edit; a CUDA graph cannot do that.
        raise HookPointError(
            f"steering on a GPU needs triton, which cannot be imported ({error}); install the"
            f" version that torch {torch.__version__} names, or start vLLM on the CPU"
        ) from error
    return triton_op.edit_


def _edit_cuda(*args: Any) -> None:
    _kernel()(*args)


_library.impl("edit_", edit_, "CPU")
_library.impl("edit_", _edit_cuda, "CUDA")
torch.library.register_fake("sae_steered::edit_", _fake, lib=_library)
