"""Which tokens of a batch an edit touches.

A batch is described by three column numbers a row, so that left-padded generation and
right-padded scoring are the same thing: `start` (first real token), `prompt_end` (first token
that is not prompt) and `end` (one past the last real token).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.spec import Positions


@dataclass(frozen=True)
class Rows:
    """Column bounds of each row of a batch, int64 `(batch,)` tensors on one device."""

    start: Tensor
    prompt_end: Tensor
    end: Tensor


@dataclass(frozen=True)
class Selector:
    """What an edit asks for: a kind of position, and whether a leading BOS is left alone."""

    positions: Positions
    skip_bos: bool


def thinking_step(
    ids: Tensor, inside: Tensor, think_start: int, think_end: int
) -> tuple[Tensor, Tensor]:
    """Return `(mask, inside_after)` for a chunk of tokens.

    A token is thinking when it lies strictly between the delimiters: the opening token, the
    closing token and everything outside are not.

    Args:
        ids: `(batch, pos)` token ids of the chunk.
        inside: `(batch,)` bool, whether the text before the chunk left a span open.
        think_start: id of the opening delimiter.
        think_end: id of the closing delimiter.
    """
    column = torch.arange(ids.shape[1], device=ids.device)
    opened = torch.where(ids == think_start, column, -1).cummax(dim=1).values
    closed = torch.where(ids == think_end, column, -1).cummax(dim=1).values
    untouched = (opened < 0) & (closed < 0)
    after = torch.where(untouched, inside.unsqueeze(1), opened > closed)
    return after & (ids != think_start), after[:, -1]


def select(
    selector: Selector,
    *,
    first_column: int,
    ids: Tensor,
    rows: Rows,
    bos_token_id: int | None,
    thinking: Tensor | None,
) -> Tensor:
    """Return the bool mask `(batch, pos)` of the tokens that `selector` names in a chunk.

    Args:
        selector: what to select.
        first_column: column of the chunk's first token.
        ids: `(batch, pos)` token ids of the chunk.
        rows: bounds of each row.
        bos_token_id: the tokenizer's BOS, or None if it has none.
        thinking: `(batch, pos)` mask of `thinking_step`; needed for `thinking` only.
    """
    column = torch.arange(first_column, first_column + ids.shape[1], device=ids.device)
    start, prompt_end = rows.start.unsqueeze(1), rows.prompt_end.unsqueeze(1)
    mask = (column >= start) & (column < rows.end.unsqueeze(1))
    if selector.positions == "prompt":
        mask &= column < prompt_end
    elif selector.positions == "generated":
        mask &= column >= prompt_end
    elif selector.positions == "last_prompt":
        mask &= column == prompt_end - 1
    elif selector.positions == "thinking":
        if thinking is None:
            raise ValueError("positions 'thinking' need the mask of thinking_step")
        mask &= thinking
    if selector.skip_bos and bos_token_id is not None:
        mask &= ~((column == start) & (ids == bos_token_id))
    return mask
