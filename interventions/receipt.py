"""What a run really edited, held against what its prompts and outputs say it had to edit.

The expected numbers come from the finished token lists, by code that shares nothing with the
masks that the hooks use.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from interventions.editor import EditCounts
from interventions.errors import ReceiptError
from interventions.plan import Plan
from interventions.positions import Selector


@dataclass(frozen=True)
class TokenFacts:
    """Special token ids of a tokenizer; None where it has none."""

    bos: int | None = None
    think_start: int | None = None
    think_end: int | None = None


def expected_tokens(
    selector: Selector, prompt: Sequence[int], generated: Sequence[int], tokens: TokenFacts
) -> int:
    """Return how many tokens of one row `selector` names.

    Args:
        selector: positions of an edit.
        prompt: token ids of the prompt, without padding.
        generated: token ids that followed and were fed to the model: without the last one, which
            ends a generation and is never fed.
        tokens: ids of BOS and of the reasoning delimiters.
    """
    whole = [*prompt, *generated]
    n_prompt = len(prompt)
    named = {
        "all": range(len(whole)),
        "prompt": range(n_prompt),
        "generated": range(n_prompt, len(whole)),
        "last_prompt": range(max(0, n_prompt - 1), n_prompt),
        "thinking": [],
    }[selector.positions]
    if selector.positions == "thinking":
        named, inside = [], False
        for index, token in enumerate(whole):
            if token == tokens.think_start:
                inside = True
            elif token == tokens.think_end:
                inside = False
            elif inside:
                named.append(index)
    skipped = selector.skip_bos and bool(whole) and whole[0] == tokens.bos and 0 in named
    return len(named) - int(skipped)


@dataclass
class Receipt:
    """Counts of a run, per edit, in the order of the plan's hook points.

    Attributes:
        counts: what the editor counted on the device.
        expected: what the token lists demand.
        rows: model inputs that were checked.
        resumed: of these, the ones that were checked when they ran, in an earlier or other process.
    """

    counts: list[EditCounts] = field(default_factory=list)
    expected: list[int] = field(default_factory=list)
    rows: int = 0
    resumed: int = 0

    def add(self, counts: list[EditCounts], expected: list[int], rows: int) -> None:
        """Add a batch.

        Raises:
            ReceiptError: the batch edited another number of tokens than it had to.
        """
        seen = [count.selected for count in counts]
        if seen != expected:
            raise ReceiptError(
                f"the hooks edited {seen} tokens (by edit) where prompts and outputs of {rows} rows"
                f" demand {expected}; the result would not be what the spec says, so it is dropped"
            )
        if not self.counts:
            self.counts, self.expected = list(counts), list(expected)
        else:
            self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
            self.expected = [a + b for a, b in zip(self.expected, expected, strict=True)]
        self.rows += rows

    def add_rows(
        self, counts: Sequence[Sequence[EditCounts]], expected: Sequence[Sequence[int]]
    ) -> None:
        """Add a batch whose rows were counted one by one.

        Args:
            counts: by row, then by edit.
            expected: by row, then by edit.

        Raises:
            ReceiptError: the batch, or a row of it, edited another number of tokens than it had to.
        """
        totals = [functools.reduce(operator.add, edit) for edit in zip(*counts, strict=True)]
        self.add(totals, [sum(edit) for edit in zip(*expected, strict=True)], len(expected))
        for row, (seen, demanded) in enumerate(zip(counts, expected, strict=True), 1):
            if [count.selected for count in seen] != list(demanded):
                raise ReceiptError(
                    f"row {row} of {len(expected)}: the hooks edited"
                    f" {[count.selected for count in seen]} tokens (by edit) where its prompt and"
                    f" output demand {list(demanded)}; the result is dropped"
                )

    def resume(self, counts: Sequence[EditCounts]) -> None:
        """Add a row that was checked when it ran, in an earlier run or by another process.

        Args:
            counts: by edit.

        Raises:
            ReceiptError: the row has another number of edits.
        """
        if self.rows and len(counts) != len(self.counts):
            raise ReceiptError(
                f"a stored response counts {len(counts)} edits and this run has"
                f" {len(self.counts)}; it was made by another intervention"
            )
        self.add(list(counts), [count.selected for count in counts], 1)
        self.resumed += 1

    def check_effect(self, plan: Plan) -> None:
        """Return nothing if every edit touched at least one token.

        Raises:
            ReceiptError: an edit touched none: its positions never occurred, or the norm guard
                left all of them alone.
        """
        if not self.rows:
            return
        edits = [(layer, edit) for layer in plan.layers for edit in layer.selectors]
        for number, ((layer, selector), count) in enumerate(
            zip(edits, self.counts, strict=True), 1
        ):
            if count.selected == 0:
                why = f"positions '{selector.positions}' never occurred in {self.rows} inputs"
            elif count.selected == count.guarded:
                why = (
                    f"the norm guard (limit {layer.norm_limit:.4g}) left all {count.guarded} alone"
                )
            else:
                continue
            raise ReceiptError(
                f"edit {number} at {layer.hook_point} steered no token: {why}; the run is unsteered"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a results file; `resumed` is in it if any row was."""
        return {
            "rows": self.rows,
            **({"resumed": self.resumed} if self.resumed else {}),
            "edits": [
                {
                    "expected": expected,
                    "selected": count.selected,
                    "guarded": count.guarded,
                    "edited": count.selected - count.guarded,
                    "fired": count.fired,
                }
                for count, expected in zip(self.counts, self.expected, strict=True)
            ],
        }
