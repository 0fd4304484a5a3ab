"""When a row of a batch has ended, and what of its text counts.

Stop strings hold for the answer only: a reasoning trace that restates the question, or has a
blank line, is never cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from harness_ext.generation import FinishReason, split_reasoning


@dataclass(frozen=True)
class Delimiters:
    """Texts that open and close a reasoning span; `end` '' for a model that never reasons."""

    start: str = "<think>"
    end: str = "</think>"

    def left_open(self, text: str) -> bool:
        """Return whether `text` ends inside a reasoning span."""
        return bool(self.start) and text.rfind(self.start) > text.rfind(self.end)


def cut_at_stops(text: str, until: Sequence[str], delimiters: Delimiters, opened: bool) -> str:
    """Return `text` with its answer cut at the first stop string; reasoning stays whole.

    Args:
        text: the whole response.
        until: stop strings.
        delimiters: of the model's reasoning.
        opened: whether the prompt left a reasoning span open.
    """
    reasons = opened or delimiters.left_open(text)
    reasoning, final = split_reasoning(text, think_end=delimiters.end, opened=reasons)
    for stop in until:
        final = final.partition(stop)[0] if stop else final
    closing = delimiters.end if delimiters.end and delimiters.end in text else ""
    return reasoning + closing + final


class TextStopper:
    """Looks for stop strings in the answer of one response, as its tokens come."""

    def __init__(
        self, tokenizer: Any, until: Sequence[str], delimiters: Delimiters, opened: bool
    ) -> None:
        """Prepare for one response.

        Args:
            tokenizer: decodes the newest tokens.
            until: stop strings.
            delimiters: of the model's reasoning.
            opened: whether the prompt left a reasoning span open.
        """
        self._tokenizer, self._delimiters = tokenizer, delimiters
        self._until = [stop for stop in until if stop]
        self._inside = self._opened = opened
        # A text of n bytes spans at most n tokens; the slack covers a cut character before it.
        watched = (*self._until, delimiters.start, delimiters.end)
        self.tail = max(len(text.encode()) for text in watched) + 4
        self.end = 0

    def feed(self, ids: Sequence[int]) -> bool:
        """Return whether a stop string has come; `end` is then the number of tokens with it.

        Args:
            ids: all tokens so far; those that were seen already are not looked at again. None of
                them: the response begins anew.
        """
        if not ids:
            self.end, self._inside = 0, self._opened
        while self.end < len(ids):
            self.end += 1
            if self.hits(ids[max(0, self.end - self.tail) : self.end]):
                return True
        return False

    def hits(self, ids: Sequence[int]) -> bool:
        """Return whether the newest token completes a stop string of the answer.

        Args:
            ids: the newest tokens, `tail` of them; each token has to come last once, in order.
        """
        if not self._until:
            return False
        text = self._tokenizer.decode(ids)
        if self._delimiters.end and self._delimiters.end in text:
            self._inside = False
            text = text.rpartition(self._delimiters.end)[2]
        if self._delimiters.left_open(text):
            self._inside = True
        return not self._inside and any(stop in text for stop in self._until)


class RowStopper(StoppingCriteria):
    """Ends each row by itself: at end-of-text, at a stop string of its answer, at its budget."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt_width: int,
        eos_ids: Sequence[int],
        until: Sequence[str],
        delimiters: Delimiters,
        opened: Sequence[bool],
        budgets: Sequence[int],
        on_finish: Callable[[Tensor, int], None],
    ) -> None:
        """Prepare for one batch.

        Args:
            tokenizer: decodes the newest tokens to look for stop strings.
            prompt_width: columns of the padded prompt.
            eos_ids: ids that end a text.
            until: stop strings.
            delimiters: of the model's reasoning.
            opened: per row, whether the prompt left a reasoning span open.
            budgets: per row, the most tokens it may generate.
            on_finish: told `(done, column)` after every step.
        """
        self._width = prompt_width
        self._texts = [TextStopper(tokenizer, until, delimiters, one) for one in opened]
        self._eos = torch.tensor(sorted(eos_ids), dtype=torch.long)
        self._budgets = torch.tensor(budgets)
        self._on_finish = on_finish
        self._done = torch.zeros(len(opened), dtype=torch.bool)
        self._watching = any(until)
        self.n_tokens = [0] * len(opened)
        self.reasons: list[FinishReason] = ["length"] * len(opened)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return the bool tensor `(batch,)` of rows that have ended."""
        n_new = input_ids.shape[1] - self._width
        newest = input_ids[:, -1].cpu()
        ended = torch.isin(newest, self._eos)
        for row in (~self._done & ~ended).nonzero().flatten().tolist() if self._watching else []:
            text = self._texts[row]
            ended[row] = text.hits(input_ids[row, self._width :][-text.tail :].tolist())
        newly = ~self._done & (ended | (n_new >= self._budgets))
        for row in newly.nonzero().flatten().tolist():
            self.n_tokens[row] = n_new
            self.reasons[row] = "stop" if ended[row] else "length"
        self._done |= newly
        done = self._done.to(input_ids.device)
        self._on_finish(done, input_ids.shape[1] - 1)
        return done
