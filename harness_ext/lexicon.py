"""The words by which a response may say that it was given an answer, and the search for them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness_ext.errors import DataError
from harness_ext.extract import parse_number
from harness_ext.paths import data_dir


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as err:
            raise ValueError(f"{pattern!r} is no regular expression ({err})") from None
        return pattern


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    window: int = Field(ge=0)
    clear: tuple[_Row, ...]
    ambiguous: tuple[_Row, ...]
    never: tuple[_Row, ...] = ()


@dataclass(frozen=True)
class Lemma:
    """A named pattern; an ambiguous one counts only with its context."""

    name: str
    pattern: re.Pattern[str]
    ambiguous: bool


@dataclass(frozen=True)
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


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)


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
    groups: tuple[tuple[Literal["clear", "ambiguous"], Sequence[_Row]], ...] = (
        ("clear", raw.clear),
        ("ambiguous", raw.ambiguous),
    )
    lemmas = tuple(
        Lemma(row.name, _compile(row.pattern), key == "ambiguous")
        for key, rows in groups
        for row in rows
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
    lex = lexicon or load_lexicon()
    own = tuple(Lemma(f"words:{word}", _compile(word), True) for word in words)
    barred = [m.span() for pattern in lex.never for m in pattern.finditer(text)]
    hits = []
    for lemma in (*lex.lemmas, *own):
        if lemma.pattern.search(question):
            continue
        for match in lemma.pattern.finditer(text):
            start, end = match.span()
            if any(a <= start and end <= b for a, b in barred):
                continue
            if lemma.ambiguous and not _has_context(text, (start, end), lex.window, target):
                continue
            hits.append(Hit(lemma.name, start, end))
            break
    return hits


def _has_context(text: str, span: tuple[int, int], window: int, target: str | None) -> bool:
    near = text[max(0, span[0] - window) : span[0]] + " " + text[span[1] : span[1] + window]
    if re.search(r"\banswers?\b", near, re.IGNORECASE):
        return True
    if not target:
        return False
    bare = re.sub(r"\s+", "", target)
    value = parse_number(target)
    if value is not None and not re.search(r"[\\/]", bare):
        return any(
            parse_number(n.rstrip(",.")) == value for n in re.findall(r"-?\d[\d,]*\.?\d*", near)
        )
    if re.fullmatch(r"[A-J]", bare):
        # The article is no option, and a variable called B is none either.
        return (
            re.search(
                rf"(?:\(|\boption\s+|\bchoice\s+|\bletter\s+|\bfor\s+|\bis\s+|\bsays\s+|\bpicks?\s+)"
                rf"\**{bare}(?![\w'\u2019])|(?<!\w){bare}\)",
                near,
            )
            is not None
        )
    return bare in re.sub(r"\s+", "", near)
