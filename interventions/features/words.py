"""Groups of words, and the tokens around them in rows of text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interventions.errors import FeatureError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASON_WORDS = Path(__file__).with_name("reason_words.yaml")
"""The 34 strings in 10 groups of the ReasonScore paper."""


@dataclass(frozen=True)
class WordGroups:
    """Words to look for, as token ids.

    Attributes:
        strings: group to its strings, as they were given.
        ids: group to the distinct id sequences of its strings.
    """

    strings: Mapping[str, tuple[str, ...]]
    ids: Mapping[str, tuple[tuple[int, ...], ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The groups, in their order."""
        return tuple(self.ids)


def read_words(path: Path = REASON_WORDS) -> dict[str, tuple[str, ...]]:
    """Return groups of strings from a YAML or JSON file.

    A mapping gives the groups. A plain list is grouped as the published script does: strings that
    are equal but for leading space and case are one group.

    Args:
        path: `{group: [string, ...], ...}` or `[string, ...]`.

    Raises:
        FeatureError: the file cannot be read, or holds something else.
    """
    import yaml

    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        where = str(error).replace("\n", " ")
        raise FeatureError(f"word list {path} cannot be read: {where}") from error
    if isinstance(found, list) and all(isinstance(word, str) for word in found):
        groups: dict[str, list[str]] = {}
        for word in found:
            groups.setdefault(word.lstrip().lower(), []).append(word)
        found = groups
    if not isinstance(found, dict) or not found:
        raise FeatureError(
            f"word list {path} holds no groups; write `name: [string, ...]` lines, or a list"
        )
    for name, words in found.items():
        if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
            raise FeatureError(
                f"word list {path}: group '{name}' is {words!r}; give a list of strings (quote"
                f' words such as "no", which YAML takes for a switch)'
            )
    return {str(name): tuple(words) for name, words in found.items()}


def word_groups(
    strings: Mapping[str, Sequence[str]], tokenizer: "PreTrainedTokenizerBase"
) -> WordGroups:
    """Return the token ids of groups of strings.

    Raises:
        FeatureError: a string has no token, or two groups share a string.
    """
    ids: dict[str, tuple[tuple[int, ...], ...]] = {}
    owner: dict[tuple[int, ...], str] = {}
    for name, words in strings.items():
        found = []
        for word in words:
            tokens = tuple(tokenizer(word, add_special_tokens=False)["input_ids"])
            if not tokens:
                raise FeatureError(f"{word!r} of group '{name}' has no token; remove it")
            if owner.setdefault(tokens, name) != name:
                raise FeatureError(
                    f"{word!r} is the same tokens in the groups '{owner[tokens]}' and '{name}';"
                    f" keep it in one"
                )
            if tokens not in found:
                found.append(tokens)
        ids[name] = tuple(found)
    return WordGroups({name: tuple(words) for name, words in strings.items()}, ids)


def matches(
    tokens: Int[Tensor, "batch pos"],
    segment: Int[Tensor, "batch pos"],
    sequence: Sequence[int],
) -> Bool[Tensor, "batch pos"]:
    """Return every token that belongs to an occurrence of `sequence`.

    Args:
        tokens: ids.
        segment: tokens of different segments are never one occurrence.
        sequence: ids to find.
    """
    width, length = len(sequence), tokens.shape[1]
    found = torch.zeros_like(tokens, dtype=torch.bool)
    if width > length:
        return found
    last = length - width + 1
    start = segment[:, :last] == segment[:, width - 1 :]
    for offset, token in enumerate(sequence):
        start &= tokens[:, offset : offset + last] == token
    for offset in range(width):
        found[:, offset : offset + last] |= start
    return found


def widened(
    found: Bool[Tensor, "batch pos"],
    segment: Int[Tensor, "batch pos"],
    before: int,
    after: int,
) -> Bool[Tensor, "batch pos"]:
    """Return `found` with the `before` and `after` tokens around each, within its segment."""
    wide, length = found.clone(), found.shape[1]
    for shift in range(1, min(before, length - 1) + 1):
        wide[:, :-shift] |= found[:, shift:] & (segment[:, :-shift] == segment[:, shift:])
    for shift in range(1, min(after, length - 1) + 1):
        wide[:, shift:] |= found[:, :-shift] & (segment[:, shift:] == segment[:, :-shift])
    return wide


def around_words(
    groups: WordGroups,
    tokens: Int[Tensor, "batch pos"],
    segment: Int[Tensor, "batch pos"],
    window: tuple[int, int],
) -> tuple[Bool[Tensor, "groups batch pos"], Int[Tensor, " groups"]]:
    """Return which tokens are near a word of each group, and how many tokens of words there are.

    Args:
        groups: the words.
        tokens: ids.
        segment: windows and words end where it changes; give padding another value than text.
        window: tokens before and after each token of a word.
    """
    near, hits = [], []
    for sequences in groups.ids.values():
        found = torch.zeros_like(tokens, dtype=torch.bool)
        for sequence in sequences:
            found |= matches(tokens, segment, sequence)
        hits.append(found.sum())
        near.append(widened(found, segment, *window))
    return torch.stack(near), torch.stack(hits)
