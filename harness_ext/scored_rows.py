"""Where the context ends in the rows that lm-eval sends to be scored.

lm-eval pads rows on the right with id 0, passes no mask and no lengths, and 0 is a real token of
most tokenizers. So the rows that were asked for are remembered, and looked up.
"""

from collections.abc import Sequence
from typing import Any

from interventions.editor import EditCounts
from interventions.errors import SpecError
from interventions.plan import Plan


class ScoredRows:
    """The token rows of one call, each with the length of its context."""

    def __init__(self, requests: Sequence[Any], max_length: int, label: str) -> None:
        """Remember the requests.

        Args:
            requests: lm-eval's triples of any key, context ids and continuation ids.
            max_length: tokens that the model takes.
            label: name of the model, for messages.

        Raises:
            SpecError: a row that does not fit; lm-eval would truncate it.
        """
        self._contexts: dict[tuple[int, ...], set[int]] = {}
        for _, context, continuation in requests:
            n_tokens = len(context) + len(continuation)
            # The last token is only predicted, never fed.
            if n_tokens > max_length + 1:
                raise SpecError(
                    f"context and continuation of {n_tokens} tokens do not fit max_length"
                    f" {max_length} of {label}; they are never truncated, raise max_length"
                )
            fed = tuple((list(context) + list(continuation))[:-1])
            self._contexts.setdefault(fed, set()).add(len(context))
        self._lengths = {len(fed) for fed in self._contexts}
        self._counts: dict[tuple[int, ...], tuple[EditCounts, ...]] = {}

    def keep_counts(
        self,
        contexts: Sequence[Sequence[int]],
        fed: Sequence[Sequence[int]],
        counts: Sequence[tuple[EditCounts, ...]],
    ) -> None:
        """Remember what the rows of a batch counted, by edit."""
        for context, rest, row in zip(contexts, fed, counts, strict=True):
            self._counts[(*context, *rest)] = row

    def counts(self, fed: Sequence[int]) -> tuple[EditCounts, ...]:
        """Return what the row `fed` counted; it may have been run with zeros after it."""
        row = tuple(fed)
        while row not in self._counts and len(row) <= max(self._lengths):
            row += (0,)
        return self._counts[row]

    def bounds(self, row: Sequence[int]) -> tuple[int | None, int]:
        """Return `(context length, length)` of a padded row.

        The context length is None where the row could be several requests that differ in it.

        Raises:
            SpecError: nobody asked for this row.
        """
        contexts: set[int] = set()
        length = 0
        end = len(row)
        while True:
            if end in self._lengths and tuple(row[:end]) in self._contexts:
                length = length or end
                contexts |= self._contexts[tuple(row[:end])]
            if not end or row[end - 1] != 0:
                break
            end -= 1
        if not length:
            raise SpecError("a row that nobody asked to score reached the model")
        return (next(iter(contexts)) if len(contexts) == 1 else None), length


def refuse_unknown_context(plan: Plan) -> None:
    """Return nothing if the plan steers a row alike wherever its context ends.

    Raises:
        SpecError: the positions of an edit depend on it.
    """
    selectors = (s for layer in plan.layers for s in layer.selectors)
    if any(s.positions not in ("all", "thinking") for s in selectors):
        raise SpecError(
            "two requests score the same tokens with different contexts; positions that"
            " depend on the prompt's length are ambiguous here, use `positions: all`"
        )
