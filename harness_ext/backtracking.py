"""Sentences in which a model takes back what it wrote, and like ones in which it does not.

A positive is a sentence of a response that holds a phrase of `data/backtracking.yaml`. Its negative
is the sentence of the same question, without such a phrase, that is closest to it in length and not
taken yet. So the two sets have equally many sentences, of the same questions and of like lengths,
and differ in what is said.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from harness_ext.errors import DataError
from harness_ext.paths import data_dir
from harness_ext.records import Record

MIN_CHARS = 12
"""Shorter sentences ("Yes.", "So:") are neither positives nor negatives."""
MAX_RATIO = 1.6
"""Of the lengths of a positive and its negative."""
_LEAD = r"^[\W_]*(?:(?:so|but|and|oh|ah|hmm+|um+|okay|ok|well|yes|no)\b[\W_]*){0,3}"
_END = re.compile(r"(?<=[.!?])[)\"'\u201d]*\s+|\n+")


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pattern: str
    where: Literal["start", "any"] = "any"

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        _checked(pattern)
        # Flags for the whole and references by number are right alone and wrong within another.
        return _checked(pattern, within=_whole(pattern, "start"))

    def compiled(self) -> re.Pattern[str]:
        """Return the pattern at its place in a sentence; its group `phrase` is what was asked."""
        return re.compile(_whole(self.pattern, self.where), re.IGNORECASE)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    phrases: tuple[_Row, ...]
    never: tuple[str, ...] = ()

    @field_validator("never")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_checked, patterns))


def _whole(pattern: str, where: str) -> str:
    return rf"{_LEAD if where == 'start' else ''}(?<!\w)(?P<phrase>{pattern})(?!\w)"


def _checked(pattern: str, *, within: str | None = None) -> str:
    try:
        re.compile(within or pattern)
    except re.error as err:
        raise ValueError(f"{pattern!r} is no regular expression ({err})") from None
    return pattern


@dataclass(frozen=True)
class Phrases:
    """What counts as backtracking: names and patterns, and what is never one."""

    version: int
    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    never: tuple[re.Pattern[str], ...] = ()

    def find(self, sentence: str) -> str | None:
        """Return the name of the first phrase that a sentence holds, or None."""
        barred = [match.span() for pattern in self.never for match in pattern.finditer(sentence)]
        for name, pattern in self.patterns:
            for match in pattern.finditer(sentence):
                if not any(a <= match.start("phrase") < b for a, b in barred):
                    return name
        return None


@dataclass(frozen=True)
class Sentence:
    """A sentence of a response.

    Attributes:
        record: the response.
        channel: `reasoning` or `final`.
        start, end: characters in that text.
        phrase: name of the phrase that makes it a positive, None for a negative.
    """

    record: Record
    channel: Literal["reasoning", "final"]
    start: int
    end: int
    phrase: str | None

    @property
    def text(self) -> str:
        """The sentence."""
        return getattr(self.record, self.channel)[self.start : self.end]

    @property
    def group(self) -> str:
        """The question."""
        return f"{self.record.task}:{self.record.qid}"

    def row(self) -> dict[str, Any]:
        """Return text, label (1: backtracking) and where it came from, as plain data."""
        keep = ("task", "qid", "arm", "hint_id", "hint_sign", "sample", "intervention")
        about = {key: getattr(self.record, key) for key in keep}
        place = {"channel": self.channel, "start": self.start, "end": self.end}
        label = int(self.phrase is not None)
        return {"text": self.text, "label": label, "phrase": self.phrase, **about, **place}


def load_phrases(path: Path | None = None) -> Phrases:
    """Return the phrases of a file, by default the package's own.

    Raises:
        DataError: the file cannot be read or breaks the schema.
    """
    return _own_phrases() if path is None else _read(path)


@lru_cache(maxsize=1)
def _own_phrases() -> Phrases:
    return _read(data_dir() / "backtracking.yaml")


def _read(path: Path) -> Phrases:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        file = _File.model_validate(raw)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(err).split())})") from err
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise DataError(f"{path}: {where}: {first['msg']}") from None
    if not file.phrases:
        raise DataError(f"{path}: no phrases; list at least one")
    patterns = tuple((row.name, row.compiled()) for row in file.phrases)
    never = tuple(re.compile(pattern, re.IGNORECASE) for pattern in file.never)
    return Phrases(file.version, patterns, never)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return where the sentences of a text stand, without the white space around them."""
    ends = [(match.start(), match.end()) for match in _END.finditer(text)]
    starts = [0, *(after for _, after in ends)]
    stops = [*(before for before, _ in ends), len(text)]
    found = []
    for a, b in zip(starts, stops, strict=True):
        piece = text[a:b]
        a += len(piece) - len(piece.lstrip())
        b -= len(piece) - len(piece.rstrip())
        if a < b:
            found.append((a, b))
    return found


def find_sentences(records: Iterable[Record], phrases: Phrases) -> list[Sentence]:
    """Return the sentences of all responses that are long enough, with their phrases."""
    found = []
    for record in records:
        for channel, text in (("reasoning", record.reasoning), ("final", record.final)):
            for start, end in sentence_spans(text):
                if end - start >= MIN_CHARS:
                    phrase = phrases.find(text[start:end])
                    found.append(Sentence(record, channel, start, end, phrase))  # type: ignore[arg-type]
    return found


@dataclass(frozen=True)
class Balanced:
    """Positives with their negatives, and what could not be used.

    Attributes:
        pairs: each a positive and its negative.
        unmatched: positives whose question has no negative of like length left.
        over: positives over `per_question`.
        phrases: how often each phrase is among the pairs.
    """

    pairs: tuple[tuple[Sentence, Sentence], ...]
    unmatched: int
    over: int
    phrases: dict[str, int]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the data set, positives and negatives by turns."""
        return [sentence.row() for pair in self.pairs for sentence in pair]


def balance(
    sentences: Sequence[Sentence],
    *,
    seed: int = 0,
    per_question: int | None = None,
    limit: int | None = None,
) -> Balanced:
    """Return positives and, for each, a negative of the same question and of like length.

    The order in which positives choose is random, and a function of the seed.

    Args:
        sentences: of `find_sentences`.
        seed: of the order.
        per_question: positives of a question at most, so that one long response cannot fill the
            data set.
        limit: pairs at most.

    Raises:
        DataError: there is no positive, or none has a negative.
    """
    positives = [s for s in sentences if s.phrase is not None]
    if not positives:
        raise DataError(
            f"none of {len(sentences)} sentences holds a phrase of backtracking; give responses of"
            f" a model that reasons, or phrases of your own"
        )
    negatives: dict[str, list[Sentence]] = {}
    for sentence in sentences:
        if sentence.phrase is None:
            negatives.setdefault(sentence.group, []).append(sentence)
    random.Random(seed).shuffle(positives)
    used: dict[str, int] = {}
    pairs: list[tuple[Sentence, Sentence]] = []
    unmatched = over = 0
    for positive in positives:
        if limit is not None and len(pairs) >= limit:
            break
        if per_question is not None and used.get(positive.group, 0) >= per_question:
            over += 1
            continue
        size = positive.end - positive.start
        mates = negatives.get(positive.group, [])
        mate = min(mates, key=lambda s: abs(s.end - s.start - size), default=None)
        if mate is None or not 1 / MAX_RATIO <= (mate.end - mate.start) / size <= MAX_RATIO:
            unmatched += 1
            continue
        mates.remove(mate)
        used[positive.group] = used.get(positive.group, 0) + 1
        pairs.append((positive, mate))
    if not pairs:
        raise DataError(
            f"none of {len(positives)} sentences with a phrase has one without, of the same"
            f" question and of like length; give more or longer responses"
        )
    counts: dict[str, int] = {}
    for positive, _ in pairs:
        counts[str(positive.phrase)] = counts.get(str(positive.phrase), 0) + 1
    return Balanced(tuple(pairs), unmatched, over, counts)
