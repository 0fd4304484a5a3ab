"""From the tokens of a row to the response that a task sees."""

from collections.abc import Sequence
from typing import Any

from harness_ext.generation import FinishReason, Generation, split_reasoning
from harness_ext.stopping import Delimiters, cut_at_stops


def build_response(
    tokenizer: Any,
    ids: Sequence[int],
    *,
    until: Sequence[str],
    delimiters: Delimiters,
    opened: bool,
    finish_reason: FinishReason,
    seed: int | None,
    intervention: str,
) -> Generation:
    """Return the response of a row: its whole text, split and counted.

    Args:
        tokenizer: the model's.
        ids: generated token ids, end-of-text included.
        until: stop strings, which hold for the answer only.
        delimiters: of the model's reasoning.
        opened: whether the prompt left a reasoning span open.
        finish_reason: why the row ended.
        seed: of the response, or None for greedy decoding.
        intervention: fingerprint, or 'none'.
    """
    whole = decode(tokenizer, ids, delimiters)
    text = cut_at_stops(whole, until, delimiters, opened)
    opened = opened or delimiters.left_open(text)
    reasoning, final = split_reasoning(text, think_end=delimiters.end, opened=opened)
    return Generation(
        text,
        n_tokens=len(ids),
        n_reasoning_tokens=_reasoning_tokens(tokenizer, ids, delimiters, text, opened),
        finish_reason=finish_reason,
        seed=seed,
        reasoning=reasoning,
        final=final,
        intervention=intervention,
    )


def decode(tokenizer: Any, ids: Sequence[int], delimiters: Delimiters) -> str:
    """Return the text of `ids` without special tokens, but with the reasoning delimiters.

    Some tokenizers hold the delimiters as special tokens. Dropping them would drop the border
    between the reasoning and the answer.
    """
    kept = {
        tokenizer.convert_tokens_to_ids(text): text
        for text in (delimiters.start, delimiters.end)
        if text in tokenizer.all_special_tokens
    }
    parts: list[str] = []
    run: list[int] = []
    for token in ids:
        if token in kept:
            parts += [tokenizer.decode(run, skip_special_tokens=True), kept[token]]
            run = []
        else:
            run.append(token)
    return "".join([*parts, tokenizer.decode(run, skip_special_tokens=True)])


def _reasoning_tokens(
    tokenizer: Any, ids: Sequence[int], delimiters: Delimiters, text: str, opened: bool
) -> int:
    """Return the number of tokens up to and including the last closing delimiter."""
    if delimiters.end not in text:
        return len(ids) if opened else 0
    # The shortest prefix whose text holds every closing delimiter: a delimiter of several tokens
    # is merged with its neighbours differently from one place to another.
    wanted = text.count(delimiters.end)
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if decode(tokenizer, ids[:middle], delimiters).count(delimiters.end) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low
