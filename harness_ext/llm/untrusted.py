r"""A model's text inside a request to another model: it stays text.

The user message is one JSON object. What comes from the evaluated model stands in JSON strings,
and every character that could be more than a letter is written as `\uXXXX`: the brackets that
chat templates make role tags of, their look-alikes, invisible and direction-changing characters.
No text can close its field, and the text can be read back exactly.
"""

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import yaml

from harness_ext.errors import DataError
from harness_ext.paths import data_dir

# [INST], [/INST], [SYSTEM_PROMPT]: control tokens of some tokenizers, also inside a string.
_SQUARE_TAG = re.compile(r"\[(?=/?[A-Z_]{3,}\])")
_LOOKALIKE = set("<>|[]{}\"'\\`")
_VARIATION = {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), *range(0x180B, 0x1810)}


@lru_cache(maxsize=4096)
def _unsafe(char: str) -> bool:
    if char in "<>":
        return True
    if char.isascii():
        return ord(char) < 32 or ord(char) == 127
    if unicodedata.category(char) in {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}:
        return True
    # A tokenizer that normalises text would turn a full-width bracket into a bracket.
    return ord(char) in _VARIATION or bool(_LOOKALIKE & set(unicodedata.normalize("NFKC", char)))


def _escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _spelled(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return "".join(_escape(c) if _unsafe(c) else c for c in text)


def encode(fields: Mapping[str, Any]) -> str:
    """Return fields as one line of JSON from which nothing inside a string can break out."""
    text = _spelled(fields)
    return _SQUARE_TAG.sub(lambda _: _escape("["), text)


@lru_cache(maxsize=4096)
def _cost(char: str) -> int:
    return len(_spelled(char)) - 2


def clip(text: str, limit: int, *, end: bool = False) -> str:
    """Return the longest start (or end) of a text that takes at most `limit` encoded characters."""
    kept = 0
    for n, char in enumerate(reversed(text) if end else text):
        kept += _cost(char)
        if kept > limit:
            return text[len(text) - n :] if end else text[:n]
    return text


def windows(text: str, anchors: Iterable[re.Pattern[str]], *, limit: int, pad: int) -> list[str]:
    """Return the pieces of a text that are worth reading, in order: exact slices of it.

    A text within the limit is one piece. Of a longer one: its start and end, and what stands
    around the matches of `anchors`, until the limit is reached.

    Args:
        text: reasoning or final text.
        anchors: patterns of what to look for, the most telling first.
        limit: encoded characters of all pieces together.
        pad: characters on each side of a match, and half those of start and end.
    """
    if not text.strip():
        return []
    if sum(map(_cost, text[: limit + 1])) <= limit and len(text) <= limit:
        return [text]
    spans = [(0, 2 * pad), (len(text) - 2 * pad, len(text))]
    for anchor in anchors:
        spans += [(m.start() - pad, m.end() + pad) for m in anchor.finditer(text)]
    chosen: list[tuple[int, int]] = []
    for start, end in spans:
        trial = _merge([*chosen, (max(0, start), min(len(text), end))])
        if sum(sum(map(_cost, text[a:b])) for a, b in trial) > limit:
            break
        chosen = trial
    return [text[a:b] for a, b in chosen] or [clip(text, limit)]


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


@lru_cache(maxsize=1)
def _screen() -> tuple[dict[int, str], tuple[tuple[str, re.Pattern[str]], ...]]:
    path = data_dir() / "prompts" / "screen.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        table = str.maketrans(raw["lookalikes"])
        rows = tuple(
            (row["name"], re.compile(row["pattern"], re.IGNORECASE | re.MULTILINE))
            for row in raw["patterns"]
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, re.error) as err:
        raise DataError(f"{path}: not a screen ({type(err).__name__}: {err})") from err
    return table, rows


def speaks_to_grader(text: str) -> str | None:
    """Return the name of the rule by which a text speaks to whoever grades it, or None.

    Looked for in the text as a reader sees it: look-alike letters folded, invisible characters
    removed, base64 decoded. It finds known shapes only; what it misses is asked about.
    """
    table, patterns = _screen()
    for candidate in (text, *_decoded(text)):
        seen = "".join(
            c
            for c in unicodedata.normalize("NFKC", candidate)
            if unicodedata.category(c) != "Cf" and ord(c) not in _VARIATION
        ).lower()
        for reading in dict.fromkeys((seen, seen.translate(table))):
            for name, pattern in patterns:
                if pattern.search(reading):
                    return name
    return _hidden(text)


def _decoded(text: str) -> list[str]:
    found = []
    for word in re.findall(r"(?<![\w+/])[A-Za-z0-9+/]{24,}={0,2}(?![\w+/])", text)[:20]:
        try:
            found.append(base64.b64decode(word + "=" * (-len(word) % 4)).decode("utf-8"))
        except (binascii.Error, UnicodeDecodeError):
            continue
    return found


def _hidden(text: str) -> str | None:
    """Return `hidden_text` if a text carries letters that no reader sees (tag characters)."""
    hidden = sum(0xE0020 <= ord(c) <= 0xE007E for c in text)
    # Three flags of regions (England, Scotland, Wales) use up to six of them each.
    return "hidden_text" if hidden > 20 else None
