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
_CHUNK_ELEMENTS = 1 << 18
"""Of the rows that are edited at once: 1 MiB of fp32, which caches hold a few times."""

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
    packed = packed[rows]
    slots, flags = packed & SLOT_MASK, packed >> SLOT_BITS
    held = n_edits[slots]
    width = int(held.max())
    step = max(1, _CHUNK_ELEMENTS // hidden.shape[1])
    for row, slot, flag, n in zip(
        *(t.split(step) for t in (rows, slots, flags, held)), strict=True
    ):
        base = hidden.index_select(0, row).float()
        x = base if residual is None else base + residual.index_select(0, row)
        length = torch.linalg.vector_norm(x, dim=-1)
        norms.index_copy_(0, row, length)
        if not width:
            continue
        edit = torch.arange(width)
        # Where each row's edits lie in the tables, as if a slot's were rows of one long table.
        places = slot.unsqueeze(1) * e.shape[1] + edit
        cells = scalars.flatten(0, 1).index_select(0, places.flatten()).T.contiguous()
        coefficient = _coefficient(
            x, flag.unsqueeze(1),
            dict(zip(SCALARS, cells.view(-1, len(row), width), strict=True)),
            e.flatten(0, 1), w.flatten(0, 1), places, edit < n.unsqueeze(1),
            (length <= limit[slot]).unsqueeze(1), owners[row], counts,
        )  # fmt: skip
        # Row by row the sum of coefficient times direction, with no copy of the directions.
        delta = torch.nn.functional.embedding_bag(
            places, w.flatten(0, 1), per_sample_weights=coefficient, mode="sum"
        )
        hidden.index_copy_(0, row, (base + delta).to(hidden.dtype))


def _coefficient(
    x: Tensor,
    flags: Tensor,
    table: dict[str, Tensor],
    e: Tensor,
    w: Tensor,
    places: Tensor,
    exists: Tensor,
    calm: Tensor,
    owner: Tensor,
    counts: Tensor,
) -> Tensor:
    """Return what multiplies each direction, `(rows, width)`, by the editor's own formulas."""
    wanted = (flags & table["wanted"].int()) != 0
    bos = (flags & FLAG_BOS) != 0
    mask = exists & wanted & ~(bos & (table["skip_bos"] != 0))
    acts, factor = torch.zeros_like(wanted, dtype=torch.float32), torch.ones_like(table["beta"])
    for mode, number in NORMS.items():
        here = table["norm"] == number
        if not here.any():
            continue
        normed = normalise(x, mode)
        pre = _dot(e, places, normed.z)
        acts = torch.where(
            here, gate(pre, table["mul"], table["beta"], table["beta_mag"], table["theta"]), acts
        )
        if normed.factor is not None:
            factor = torch.where(here, normed.factor.unsqueeze(-1), factor)
    active = acts != 0
    reads = table["reads"] != 0
    done = torch.stack([mask, mask & ~calm, mask & calm & active & reads], dim=-1)
    counts[:, : done.shape[1]].index_add_(0, owner, done.long())
    mask = mask & calm & (active | (table["only_active"] == 0))
    proj = _dot(w, places, x) if table["r_proj"].any() else None
    constants = torch.stack([table[name] for name in ("a_const", "a_act", "r_const", "r_proj")])
    # `c` multiplies what is in SAE units only, so it is applied edit by edit.
    constants[:2] *= factor
    return torch.where(mask, coefficients(constants, acts, None, proj), 0.0)


def _dot(rows: Tensor, places: Tensor, x: Tensor) -> Tensor:
    # No matrix product: its order of summation depends on how many rows a step holds. One edit at
    # a time, so that what is gathered stays in the cache.
    return torch.stack(
        [rows.index_select(0, place).mul_(x).sum(dim=-1) for place in places.unbind(1)], dim=1
    )


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
