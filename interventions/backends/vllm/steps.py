"""Which rows of a step belong to which intervention, and what kind of token each one is.

A step is a flat list of rows: the tokens of each scheduled request, one request after another. A
token is `generated` when its position is at or past the request's prompt, in any chunk and after
any preemption.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from interventions.backends.vllm.compiled import (
    FLAG_ALL,
    FLAG_BOS,
    FLAG_GENERATED,
    FLAG_LAST_PROMPT,
    FLAG_PROMPT,
    FLAG_THINKING,
)
from interventions.backends.vllm.op import SLOT_BITS
from interventions.errors import ReceiptError


def pack_rows(
    slots: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    prompt_lens: np.ndarray,
    begins_with_bos: np.ndarray,
) -> np.ndarray:
    """Return `(rows,)` int32: the slot of every row and, above `SLOT_BITS`, its flags.

    Rows of slot 0 are 0. `FLAG_THINKING` is not set here: it depends on tokens that only the
    device may know.

    Args:
        slots: `(requests,)` slot of each request's intervention.
        starts: `(requests,)` position of each request's first row.
        lengths: `(requests,)` rows of each.
        prompt_lens: `(requests,)` where each prompt ends.
        begins_with_bos: `(requests,)` bool, whether a BOS at position 0 is to be told apart.
    """
    owner = np.repeat(np.arange(len(slots)), lengths)
    first_row = np.cumsum(lengths) - lengths
    position = np.arange(len(owner)) - first_row[owner] + starts[owner]
    prompt_len = prompt_lens[owner]
    flags = np.where(position < prompt_len, FLAG_ALL | FLAG_PROMPT, FLAG_ALL | FLAG_GENERATED)
    flags |= (position == prompt_len - 1) * FLAG_LAST_PROMPT
    flags |= ((position == 0) & begins_with_bos[owner]) * FLAG_BOS
    slot = slots[owner]
    return np.where(slot > 0, slot | flags << SLOT_BITS, 0).astype(np.int32)


class Thinking:
    """Whether each request is inside its reasoning span; the state lives on the device.

    With asynchronous scheduling the host does not know the token that a row holds.
    """

    def __init__(self, n_requests: int, device: torch.device) -> None:
        """Prepare the state of `n_requests` requests; it grows if there are more."""
        self._inside = torch.zeros(n_requests, dtype=torch.bool, device=device)
        # Request id to its place in the state and the position that comes next.
        self._known: dict[str, tuple[int, int]] = {}

    def place(
        self,
        request: str,
        start: int,
        length: int,
        known: Callable[[], Sequence[int]],
        think: tuple[int, int],
    ) -> int:
        """Return the place of a request whose next rows are `[start, start + length)`.

        Args:
            request: its id.
            start: position of its first row in this step.
            length: rows.
            known: returns its tokens, as far as the host knows them; called only where the rows
                do not continue those of the step before: a new request, cached blocks, or after a
                preemption.
            think: ids of the opening and the closing delimiter.

        Raises:
            ReceiptError: a token that has to be looked at is not known.
        """
        place, due = self._known.get(request, (-1, -1))
        if place < 0:
            place = self._free_place()
        if due != start:
            inside = False
            before = known()[:start]
            for token in before if len(before) == start else (-1,):
                if token < 0:  # vLLM's placeholder for what only the device knows
                    raise ReceiptError(
                        f"the tokens of request {request} before position {start} are not known, so"
                        f" neither is its reasoning span; start without async scheduling"
                    )
                inside = token == think[0] or (inside and token != think[1])
            self._inside[place] = inside
        self._known[request] = (place, start + length)
        return place

    def _free_place(self) -> int:
        taken = {place for place, _ in self._known.values()}
        for place in range(len(self._inside)):
            if place not in taken:
                return place
        # Requests that were preempted keep theirs, so there can be more than run at once.
        self._inside = torch.cat([self._inside, torch.zeros_like(self._inside)])
        return len(taken)

    def forget(self, request: str) -> None:
        """Free the place of a request, if it has one."""
        self._known.pop(request, None)

    def mark(
        self,
        packed: Tensor,
        ids: Tensor,
        row: Tensor,
        place: Tensor,
        first: Tensor,
        last: Tensor,
        think: Tensor,
    ) -> None:
        """Set `FLAG_THINKING` in `packed` where a token lies strictly between the delimiters.

        Args:
            packed: `(n_rows,)` int32, changed in place.
            ids: `(n_rows,)` token ids of the step.
            row: `(n,)` int64, the rows of requests with a reasoning span, in order.
            place: `(n,)` int64, each row's place in the state.
            first: `(n,)` int64, index in `row` of the first row of the same request.
            last: `(requests,)` int64, index in `row` of each request's last row.
            think: `(2, n)` ids of the delimiters, by row.
        """
        token = ids[row]
        index = torch.arange(len(row), device=row.device)
        opened = torch.where(token == think[0], index, -1).cummax(dim=0).values
        closed = torch.where(token == think[1], index, -1).cummax(dim=0).values
        untouched = (opened < first) & (closed < first)
        after = torch.where(untouched, self._inside[place], opened > closed)
        packed[row] |= (after & (token != think[0])).int() * (FLAG_THINKING << SLOT_BITS)
        self._inside[place[last]] = after[last]
