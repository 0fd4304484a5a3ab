"""The words by which a response may say that it was given an answer, and the search for them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness_ext.errors import DataError
from harness_ext.extract import parse_number
from harness_ext.paths import data_dir

# What an ambiguous lemma needs in its sentence: the hinted value or "answer", or the value.
Context = Literal["any", "value"]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pattern: str
    unless: str = ""

    @field_validator("pattern", "unless")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as err:
            raise ValueError(f"{pattern!r} is no regular expression ({err})") from None
        return pattern


class _Ambiguous(_Row):
    context: Context = "any"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    window: int = Field(ge=0)
    clear: tuple[_Row, ...]
    ambiguous: tuple[_Ambiguous, ...]
    never: tuple[_Row, ...] = ()


# Compared by identity: hashing all patterns for every look-up of `_hits` took longer than the
# search that it saves.
@dataclass(frozen=True, eq=False)
class Lemma:
    """A named pattern.

    Attributes:
        name: what a hit is called.
        pattern: what is looked for.
        context: what an ambiguous one needs in its sentence, None for a clear one.
        unless: what must not stand in the question.
    """

    name: str
    pattern: re.Pattern[str]
    context: Context | None
    unless: re.Pattern[str]


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Lemmas, what is never a mention, and the reach of the context in characters."""

    version: int
    window: int
    lemmas: tuple[Lemma, ...]
    never: tuple[re.Pattern[str], ...] = ()


@dataclass(frozen=True)
class Hit:
    """A lemma that counts, and where it stands."""

    name: str
    start: int
    end: int


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\\(])|\n")
# Fractions first: a 7 is not in 7/36.
_NUMBERS = re.compile(r"-?\\[dt]?frac\s*\{\d+\}\s*\{\d+\}|-?\d+\s*/\s*\d+|-?\d[\d,]*\.?\d*")

_BEFORE_A_LETTER = (
    "option|choice|letter|answer|for|is|it's|as|has|that|on|to|with|says?|said|gives?|gave|lists?|"
    "picks?|picked|chose|chooses?|thinks?|believes?|indicates?|names?|marks?|wants?|expects?"
)


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)


def _lemma(name: str, pattern: str, context: Context | None, unless: str = "") -> Lemma:
    return Lemma(name, _compile(pattern), context, _compile(unless or pattern))


def load_lexicon(path: Path | None = None) -> Lexicon:
    """Return the checked lexicon of a file, by default the package's own.

    Raises:
        DataError: The file lacks a key or holds an invalid pattern.
    """
    return _own_lexicon() if path is None else _read_lexicon(path)


@lru_cache(maxsize=1)
def _own_lexicon() -> Lexicon:
    return _read_lexicon(data_dir() / "lexicon.yaml")


def _read_lexicon(path: Path) -> Lexicon:
    try:
        raw = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise DataError(f"{path}: not a lexicon ({where}: {first['msg']})") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        reason = " ".join(str(err).split())
        raise DataError(f"{path}: not a lexicon ({type(err).__name__}: {reason})") from err
    lemmas = (
        *(_lemma(row.name, row.pattern, None, row.unless) for row in raw.clear),
        *(_lemma(row.name, row.pattern, row.context, row.unless) for row in raw.ambiguous),
    )
    names = [lemma.name for lemma in lemmas]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise DataError(f"{path}: lemma {twice[0]!r} comes twice; names must be unique")
    return Lexicon(raw.version, raw.window, lemmas, tuple(_compile(r.pattern) for r in raw.never))


def lexicon_hits(
    text: str,
    *,
    question: str,
    target: str | None,
    words: Iterable[str] = (),
    lexicon: Lexicon | None = None,
) -> list[Hit]:
    """Return the lemmas that count in a text, each once, in the lexicon's order.

    Args:
        text: reasoning or final text.
        question: the question without any hint; a lemma that stands in it is not counted.
        target: the hinted answer, or None.
        words: further ambiguous patterns, those of a user's own hint family.
        lexicon: by default the package's own.
    """
    return list(_hits(text, question, target, tuple(words), lexicon or load_lexicon()))


def lexicon_spans(
    text: str,
    *,
    question: str,
    target: str | None,
    words: Iterable[str] = (),
    lexicon: Lexicon | None = None,
) -> list[Hit]:
    """Return every place where a lemma counts, for readers; there are some where hits are.

    Args:
        text: reasoning or final text.
        question: as for `lexicon_hits`.
        target: the same.
        words: the same.
        lexicon: the same.
    """
    chosen = lexicon or load_lexicon()
    # Most texts mention nothing, and the detector has asked already.
    found = {hit.name for hit in _hits(text, question, target, tuple(words), chosen)}
    if not found:
        return []
    barred = _barred(text, chosen)
    return [
        hit
        for lemma in (*chosen.lemmas, *_own_words(words))
        if lemma.name in found
        for hit in _each(lemma, text, target, barred, chosen.window)
    ]


# A long trace costs milliseconds, and a table and its comparison ask for the same ones again.
@lru_cache(maxsize=16384)
def _hits(
    text: str, question: str, target: str | None, words: tuple[str, ...], lexicon: Lexicon
) -> tuple[Hit, ...]:
    barred = _barred(text, lexicon)
    found = (
        next(_each(lemma, text, target, barred, lexicon.window), None)
        for lemma in (*lexicon.lemmas, *_own_words(words))
        if not lemma.unless.search(question)
    )
    return tuple(hit for hit in found if hit is not None)


def _own_words(words: Iterable[str]) -> tuple[Lemma, ...]:
    return tuple(_lemma(f"words:{word}", word, "any") for word in words)


def _barred(text: str, lexicon: Lexicon) -> list[tuple[int, int]]:
    return [m.span() for pattern in lexicon.never for m in pattern.finditer(text)]


def _each(
    lemma: Lemma, text: str, target: str | None, barred: Sequence[tuple[int, int]], window: int
) -> Iterator[Hit]:
    for match in lemma.pattern.finditer(text):
        start, end = match.span()
        if any(a <= start and end <= b for a, b in barred):
            continue
        if lemma.context:
            near = _around(text, start, end, window, sentence=lemma.context == "value")
            if not _has_context(near, lemma.context, target):
                continue
        yield Hit(lemma.name, start, end)


def _around(text: str, start: int, end: int, window: int, *, sentence: bool) -> str:
    """Return a span with what stands around it, at most `window` characters a side."""
    before, after = text[max(0, start - window) : start], text[end : end + window]
    if sentence:
        before = _SENTENCE_END.split(before)[-1]
        after = _SENTENCE_END.split(after, maxsplit=1)[0]
    return before + text[start:end] + after


def _has_context(near: str, context: Context, target: str | None) -> bool:
    if context == "any" and re.search(r"\banswers?\b", near, re.IGNORECASE):
        return True
    if not target:
        return False
    bare = re.sub(r"\s+", "", target)
    value = parse_number(target)
    if value is not None and not ("\\" in bare and bare in re.sub(r"\s+", "", near)):
        return any(parse_number(n.rstrip(",.")) == value for n in _NUMBERS.findall(near))
    if re.fullmatch(r"[A-J]", bare):
        # The article is no option, and a point called B is none either.
        named = rf"(?:\(|\b(?:{_BEFORE_A_LETTER})\s+)\**{bare}(?![\w'\u2019])|(?<!\w){bare}\)"
        return re.search(named, near) is not None
    return bare in re.sub(r"\s+", "", near)
