"""Documents and rows of tokens, in an order that depends on the configuration alone."""

import hashlib
import random
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interventions.errors import TextError
from interventions.text.config import TextConfig, TextSource
from interventions.text.records import records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENCODED_TOGETHER = 64
MIN_ROW = 8
"""Shorter rows are left out: the first tokens of a row see almost nothing."""


@dataclass(frozen=True, eq=False)
class Document:
    """One document.

    Attributes:
        ids: `(n,)` int64.
        source: index of its source in the configuration.
        index: its number in the source, from 0.
    """

    ids: Tensor
    source: int
    index: int


@dataclass(frozen=True, eq=False)
class Row:
    """Tokens that the model reads together.

    Attributes:
        ids: `(n,)` int64, at most `context`.
        document: `(n,)` int64, running number of the document that each token belongs to; -1 for
            tokens that belong to none, such as BOS.
    """

    ids: Tensor
    document: Tensor


def documents(
    config: TextConfig, tokenizer: "PreTrainedTokenizerBase", once: Set[bytes] = frozenset()
) -> Iterator[Document]:
    """Yield documents, sources mixed so that their shares of tokens keep to the weights.

    The next document comes from the source that is furthest behind its share. A source that has
    ended is left out from then on.

    Args:
        config: sources.
        tokenizer: of the model.
        once: `fingerprint` of documents that later epochs leave out; may grow meanwhile.

    Raises:
        TextError: a source cannot be read, or gives no token.
    """
    streams: dict[int, Iterator[Document]] = {
        number: _source_documents(config, number, tokenizer, once)
        for number in range(len(config.sources))
    }
    spent = dict.fromkeys(streams, 0.0)
    while streams:
        number = min(streams, key=lambda n: (spent[n], n))
        document = next(streams[number], None)
        if document is None:
            del streams[number]
            if spent[number] == 0:
                raise TextError(
                    f"{config.sources[number].label} gives no text: it has no record, or the"
                    f" columns that are read are empty in all; name others, or another source"
                )
            continue
        spent[number] += len(document.ids) / config.sources[number].weight
        yield document


def rows(
    config: TextConfig, tokenizer: "PreTrainedTokenizerBase", *, once: int = 0
) -> Iterator[Row]:
    """Yield rows until there are `config.tokens` tokens, or no more text.

    Two calls give the same rows, so that a reader that was stopped skips what it has had.

    Args:
        config: sources and sizes.
        tokenizer: of the model.
        once: tokens at the beginning whose documents come in the first epoch alone.

    Raises:
        TextError: a source cannot be read, or there is not one row in all of them.
    """
    total = count = 0
    for row in _rows(config, tokenizer, once):
        ids, document = row.ids, row.document
        if config.tokens is not None:
            left = config.tokens - total
            if left < min(MIN_ROW, config.tokens):
                return
            ids, document = ids[:left], document[:left]
        total += len(ids)
        count += 1
        yield Row(ids, document)
    if not count:
        raise TextError(
            f"no row of at least {MIN_ROW} tokens in {', '.join(s.label for s in config.sources)}"
        )


def _rows(config: TextConfig, tokenizer: "PreTrainedTokenizerBase", once: int) -> Iterator[Row]:
    bos = _special(tokenizer, "bos") if config.bos else []
    width = config.context - len(bos)
    front = torch.tensor(bos, dtype=torch.long)
    nobody = torch.full_like(front, -1)
    waiting: list[tuple[Tensor, Tensor]] = []
    length = given = 0
    early: set[bytes] = set()
    for number, document in enumerate(documents(config, tokenizer, early)):
        if given < once:
            early.add(fingerprint(document.ids))
        owner = torch.full_like(document.ids, number)
        if config.pack == "document":
            for part, whose in zip(document.ids.split(width), owner.split(width), strict=True):
                if len(part) >= MIN_ROW:
                    given += len(front) + len(part)
                    yield Row(torch.cat([front, part]), torch.cat([nobody, whose]))
            continue
        waiting.append((document.ids, owner))
        length += len(document.ids)
        if length < width:
            continue
        ids, owners = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        whole = length // width * width
        for part, whose in zip(ids[:whole].split(width), owners[:whole].split(width), strict=True):
            given += config.context
            yield Row(torch.cat([front, part]), torch.cat([nobody, whose]))
        waiting, length = [(ids[whole:], owners[whole:])], length - whole


def fingerprint(ids: Tensor) -> bytes:
    """Return what two documents share only if they have the same tokens."""
    return hashlib.sha256(ids.numpy().tobytes()).digest()


def _source_documents(
    config: TextConfig, number: int, tokenizer: "PreTrainedTokenizerBase", once: Set[bytes]
) -> Iterator[Document]:
    source = config.sources[number]
    index = 0
    for epoch in range(config.epochs):
        found: Iterator[Any] = iter(records(source))
        if config.shuffle:
            found = _shuffled(found, config.shuffle, f"{config.seed}-{number}-{epoch}")
        for some in _batches(found, _ENCODED_TOGETHER):
            for ids in _encode(config, source, some, tokenizer):
                document = Document(torch.tensor(ids, dtype=torch.long), number, index)
                index += 1
                if ids and not (epoch and fingerprint(document.ids) in once):
                    yield document


def _encode(
    config: TextConfig,
    source: TextSource,
    some: Sequence[Any],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[list[int]]:
    if source.tokens is not None:
        size = len(tokenizer)
        try:
            taken = [[int(i) for i in record[source.tokens]] for record in some]
        except (TypeError, ValueError) as error:
            raise TextError(
                f"{source.label}: column '{source.tokens}' holds no list of token ids ({error});"
                f" name another one, or `text`"
            ) from error
        for ids in taken:
            if ids and not (min(ids) >= 0 and max(ids) < size):
                raise TextError(
                    f"{source.label}: token id {max(ids, key=abs)} is outside 0..{size - 1}; the"
                    f" data set was made with another tokenizer"
                )
        return taken
    if source.messages is not None or source.prompt is not None:
        return [_chat(source, record, tokenizer) for record in some]
    if source.template is not None:
        try:
            texts = [source.template.format(**record) for record in some]
        except (TypeError, ValueError) as error:
            raise TextError(f"{source.label}: `template` does not fit a record: {error}") from error
    else:
        texts = [record[source.columns[0]] for record in some]
    for text in texts:
        if not isinstance(text, str):
            raise TextError(
                f"{source.label}: column '{source.columns[0]}' holds a {type(text).__name__}, not"
                f" text; name another one"
            )
    # Special tokens that the text spells out become tokens, as templates of chats need.
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    end = _special(tokenizer, "eos") if config.eos else []
    return [[*ids, *end] if ids else [] for ids in encoded]


def _chat(source: TextSource, record: Any, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    if not tokenizer.chat_template:
        raise TextError(
            f"{source.label} holds conversations and the tokenizer has no chat template; give"
            f" `template` in place of `messages` or `prompt`"
        )
    if source.messages is not None:
        messages = record[source.messages]
        # A chat template makes nothing, or an error of its own, of turns in another form.
        turns = messages if isinstance(messages, list) else [messages]
        for turn in turns:
            if not isinstance(turn, dict) or "role" not in turn:
                found = ", ".join(map(str, turn)) if isinstance(turn, dict) else type(turn).__name__
                raise TextError(
                    f"{source.label}: column '{source.messages}' holds turns of {found}; a"
                    f" conversation is a list of `role` and `content`"
                )
    else:
        messages = [
            {"role": "user", "content": record[source.prompt]},
            {"role": "assistant", "content": record[source.response]},
        ]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _special(tokenizer: "PreTrainedTokenizerBase", which: str) -> list[int]:
    token: Any = getattr(tokenizer, f"{which}_token_id")
    if token is None:
        return []
    return [int(token[0] if isinstance(token, list) else token)]


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _shuffled(items: Iterator[Any], size: int, seed: str) -> Iterator[Any]:
    """Yield the items in an order that a buffer of `size` allows."""
    draw = random.Random(seed)
    buffer: list[Any] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = draw.randrange(size)
        yield buffer[place]
        buffer[place] = item
    draw.shuffle(buffer)
    yield from buffer
