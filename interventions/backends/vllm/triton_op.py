"""The operator's CUDA side: one Triton program a token.

A token that nobody steers costs one load of four bytes. There is no copy to the host and no
allocation, so the launch can be captured in a CUDA graph and replayed while tables change.
"""

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from interventions.backends.vllm.compiled import FLAG_BOS, NORMS, SCALARS
from interventions.errors import ReceiptError

# A kernel reads globals only if they are constants of this kind.
_A_CONST, _A_ACT, _R_CONST, _R_PROJ, _BETA, _MUL, _BETA_MAG, _THETA = map(tl.constexpr, range(8))
_ONLY_ACTIVE, _NORM, _WANTED, _SKIP_BOS, _READS = map(tl.constexpr, range(8, 13))
_N_SCALARS = tl.constexpr(len(SCALARS))
_LAYER_NORM = tl.constexpr(NORMS["layer_norm"])
_CONSTANT_NORM = tl.constexpr(NORMS["constant_norm_rescale"])
_BOS = tl.constexpr(FLAG_BOS)
_SLOT_MASK = tl.constexpr(0xFFFF)
_SLOT_BITS = tl.constexpr(16)
# As in `interventions.sae.norms`.
_LAYER_NORM_EPS = tl.constexpr(1e-5)
_SMALLEST_NORM = tl.constexpr(1e-20)


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
    """Edit `hidden` in place; see `op.edit_`, whose arguments these are.

    Raises:
        ReceiptError: more rows than `tokens` describes, or elements of a row that are not side by
            side.
    """
    rows, d_model = hidden.shape
    if rows > tokens.shape[0]:
        raise ReceiptError(
            f"a step has {rows} rows and {tokens.shape[0]} can be described; the rest would run"
            f" unsteered; lower max_num_batched_tokens"
        )
    stream = hidden if residual is None else residual
    if hidden.stride(1) != 1 or stream.stride(1) != 1:
        raise ReceiptError(
            f"elements of a row of the residual stream are {hidden.stride(1)} and"
            f" {stream.stride(1)} apart in memory; only 1 can be edited on this device"
        )
    if not rows:
        return
    kernel: Any = _edit_token
    with torch.cuda.device_of(hidden):
        kernel[(rows,)](
            hidden,
            stream,
            tokens,
            owners,
            n_edits,
            limit,
            scalars,
            e,
            w,
            counts,
            norms,
            hidden.stride(0),
            stream.stride(0),
            d_model,
            e.shape[1],
            residual is not None,
            triton.next_power_of_2(d_model),
            num_warps=n_warps(d_model),
        )


def n_warps(d_model: int) -> int:
    """Return the warps of a program: at most 16 elements of a row for each thread, if it can be."""
    return min(16, max(4, triton.next_power_of_2(d_model) // 512))


@triton.jit
def _edit_token(
    hidden,
    residual,
    tokens,
    owners,
    n_edits,
    limit,
    scalars,
    e,
    w,
    counts,
    norms,
    hidden_stride,
    residual_stride,
    d_model: tl.constexpr,
    max_edits: tl.constexpr,
    PAIR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    packed = tl.load(tokens + row)
    if packed == 0:
        return
    # Tables of many slots have more elements than int32 counts.
    slot = (packed & _SLOT_MASK).to(tl.int64)
    flags = packed >> _SLOT_BITS
    column = tl.arange(0, BLOCK)
    real = column < d_model
    place = hidden + row * hidden_stride + column
    x = tl.load(place, mask=real, other=0.0).to(tl.float32)
    if PAIR:
        x += tl.load(residual + row * residual_stride + column, mask=real, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(x * x, axis=0))
    tl.store(norms + row, length)
    n = tl.load(n_edits + slot)
    if n == 0:
        return
    calm = length <= tl.load(limit + slot)
    account = counts + tl.load(owners + row).to(tl.int64) * max_edits * 3

    mean = tl.sum(x, axis=0) / d_model
    centred = tl.where(real, x - mean, 0.0)
    std = tl.sqrt(tl.sum(centred * centred, axis=0) / (d_model - 1))
    root = tl.sqrt(d_model * 1.0)
    safe = tl.maximum(length, _SMALLEST_NORM)

    delta = tl.zeros([BLOCK], dtype=tl.float32)
    changed = 0
    for k in range(n):
        edit = slot * max_edits + k
        s = scalars + edit * _N_SCALARS
        wanted = (flags & tl.load(s + _WANTED).to(tl.int32)) != 0
        skipped = ((flags & _BOS) != 0) & (tl.load(s + _SKIP_BOS) != 0.0)
        if wanted & (skipped == 0):
            tl.atomic_add(account + k * 3, 1, sem="relaxed")
            if calm:
                norm = tl.load(s + _NORM).to(tl.int32)
                shift, scale, factor = 0.0, 1.0, 1.0
                if norm == _LAYER_NORM:
                    shift, scale, factor = mean, 1.0 / (std + _LAYER_NORM_EPS), std
                elif norm == _CONSTANT_NORM:
                    scale, factor = root / safe, safe / root
                act, holds = 0.0, True
                if tl.load(s + _READS) != 0.0:
                    encoder = tl.load(e + edit * d_model + column, mask=real, other=0.0)
                    pre = tl.sum(encoder * ((x - shift) * scale), axis=0)
                    size = tl.load(s + _BETA_MAG) + pre * tl.load(s + _MUL)
                    if pre + tl.load(s + _BETA) > tl.load(s + _THETA):
                        act = tl.maximum(size, 0.0)
                    if act != 0.0:
                        tl.atomic_add(account + k * 3 + 2, 1, sem="relaxed")
                    else:
                        holds = tl.load(s + _ONLY_ACTIVE) == 0.0
                if holds:
                    decoder = tl.load(w + edit * d_model + column, mask=real, other=0.0)
                    in_sae_units = tl.load(s + _A_CONST) + tl.load(s + _A_ACT) * act
                    coefficient = in_sae_units * factor + tl.load(s + _R_CONST)
                    r_proj = tl.load(s + _R_PROJ)
                    if r_proj != 0.0:
                        coefficient += r_proj * tl.sum(decoder * x, axis=0)
                    delta += coefficient * decoder
                    changed = 1
            else:
                tl.atomic_add(account + k * 3 + 1, 1, sem="relaxed")
    if changed != 0:
        # Read again rather than held in registers throughout.
        before = tl.load(place, mask=real, other=0.0).to(tl.float32)
        tl.store(place, (before + delta).to(hidden.dtype.element_ty), mask=real)
