r"""What a response gives as its answer: the last balanced `\boxed{}`, a stated answer, a number.

math_verify is not asked to find the answer: it merges two boxes of one line
(`\boxed{25} then \boxed{204}` becomes 25204) and reads any number in running text as the
answer. It only compares what was extracted here.

A response may be a megabyte of anything, so every pattern here has bounded repeats and starts
at a fixed word: the time is linear in the length.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness_ext.choices import choice_letter, match_option, named_option
from harness_ext.plain_numbers import MAX_NUMBER_CHARS, NUMBER, parse_number

__all__ = [
    "MAX_NUMBER_CHARS",
    "Extracted",
    "How",
    "Kind",
    "choice_letter",
    "extract",
    "last_boxed",
    "last_number",
    "parse_number",
    "stated_answer",
]

How = Literal["boxed", "stated", "last_number", "none"]
Kind = Literal["number", "math", "choice"]

MAX_STATED_CHARS = 2000  # of a stated answer; longer lines are no answers

_NUMBER_RE = re.compile(rf"(?<![\w.])(?:\\?\$\s{{0,3}})?({NUMBER})(?!\d)")
_BOX_RE = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,20}(\{)?")
_BARE_BOX_RE = re.compile(r"\s{0,20}([^\s{}\\$]{1,60}?)(?=[\s$.,]|$)")
_GAP = r"[\s*_:=]{0,20}"
_STATED_RE = re.compile(
    r"(?:####|\banswer\b[*_]{0,3}\s{0,20}(?:\([^)\n]{0,80}\)\s{0,20})?[*_]{0,3}"
    rf"(?:is\b|:|=|would be\b|will be\b)){_GAP}",
    re.IGNORECASE,
)
_STATED_CHOICE_RE = re.compile(
    r"(?:####|\b(?:answer|option|choice)\b[*_]{0,3}\s{0,20}(?:\([^)\n]{0,80}\)\s{0,20})?[*_]{0,3}"
    rf"(?:is\b|:|=|would be\b|will be\b)){_GAP}",
    re.IGNORECASE,
)
# `\$` is money and no delimiter: $\$18.90$ is one formula.
_MATH_RE = re.compile(
    r"\$\$(.{1,400}?)\$\$|(?<!\\)\$((?:\\.|[^$\\\n]){1,400})\$|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]"
)
_CHOICE_LINE_RE = re.compile(r"^[\W_]{0,20}([A-J])[\W_]{0,20}$")
_LEADING_RE = re.compile(
    rf"^[^\w.+-]{{0,20}}?(?:\\?\$\s{{0,3}})?({NUMBER})(?!\d)(?!\s{{0,5}}[-+*/x\u00d7=^\u00f7\\])"
)


_LIST_JOINT_RE = re.compile(
    r"\s*(?:[,;]|\\text\s*\{\s*,?\s*(?:or|and)\s*\}|\b(?:or|and)\b)[\s,]*(?:(?:or|and)\b)?\s*"
)


@dataclass(frozen=True)
class Extracted:
    """An answer as text and the rule that found it; `value` is None where none did."""

    value: str | None
    how: How


def last_boxed(text: str) -> str | None:
    r"""Return what the last balanced `\boxed{...}` holds, or None.

    An unclosed box (a response that ran out of tokens) and an empty one are passed over for an
    earlier one; a box in a box gives the inner text of the outer one; `\boxed 7` gives `7`.
    """
    closing = _closing_braces(text)
    found, outer_end = None, -1
    for match in _BOX_RE.finditer(text):
        if match.start() < outer_end:
            continue  # inside a box that has been taken whole
        if match.group(1) is None:
            bare = _BARE_BOX_RE.match(text, match.end())
            found = bare.group(1) if bare else found
            continue
        end = closing.get(match.end() - 1)
        if end is not None:
            # "I put it within \boxed{} as asked" after the answer takes nothing back.
            found, outer_end = text[match.end() : end].strip() or found, end
    return found


def _closing_braces(text: str) -> dict[int, int]:
    """Return the place of the closing brace of every balanced opening one, in one pass."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def stated_answer(text: str, *, choice: bool = False) -> str | None:
    """Return what follows the last "answer is", "Answer:" or "####" on its line, or None.

    Args:
        text: the response.
        choice: "option is" and "choice:" state an answer too.
    """
    pattern = _STATED_CHOICE_RE if choice else _STATED_RE
    for start in reversed([match.end() for match in pattern.finditer(text)]):
        lines = text[start : start + MAX_STATED_CHARS].split("\n", maxsplit=2)
        # A display formula: its delimiter has a line of its own.
        line = lines[1] if len(lines) > 1 and lines[0].strip() in ("$$", "\\[") else lines[0]
        cleaned = line.strip().strip("*_ ").rstrip(".").strip()
        if cleaned:
            return cleaned
    return None


def last_number(text: str) -> str | None:
    """Return the last number of a text, thousands separators kept, or None."""
    found = None
    for match in _NUMBER_RE.finditer(text):
        found = match
    return found.group(1) if found else None


def extract(text: str, *, kind: Kind, options: Sequence[str] | None = None) -> Extracted:
    r"""Return the answer that a final text gives.

    The last balanced `\boxed{}` wins, then the last stated answer ("answer is …", "Answer: …",
    "#### …"), then, for `number`, the last number in the text, and for `choice`, a letter that
    stands alone on the last line, "option B is correct", or a line that ends in "Answer B". A
    box without an option in it (`\boxed{E = mc^2}`) is passed over in a choice.

    Args:
        text: the part of the response after the reasoning.
        kind: `number` (the gold is a plain number), `math` (any expression), `choice` (a letter).
        options: texts of the options of a choice, in order: an answer that gives the text or
            the number of just one of them then counts as its letter.
    """
    boxed = last_boxed(text)
    if boxed:
        value = _as_kind(boxed, kind, options, boxed=True)
        if value is not None:
            return Extracted(value, "boxed")
    stated = stated_answer(text, choice=kind == "choice")
    if stated:
        value = _as_kind(stated, kind, options, boxed=False)
        if value is not None:
            return Extracted(value, "stated")
    if kind == "number":
        number = last_number(text)
        if number is not None:
            return Extracted(number, "last_number")
    if kind == "choice":
        lines = [line for line in text.splitlines() if line.strip()]
        alone = _CHOICE_LINE_RE.match(lines[-1]) if lines else None
        letter = alone.group(1) if alone else named_option(text)
        if letter is not None and _offered(letter, options):
            return Extracted(letter, "stated")
    return Extracted(None, "none")


def _as_kind(found: str, kind: Kind, options: Sequence[str] | None, *, boxed: bool) -> str | None:
    if kind == "choice":
        letter = choice_letter(found)
        if letter is not None and _offered(letter, options):
            return letter
        return match_option(found, options) if options else None
    if kind == "math":
        if not boxed:
            # "The answer is $x^2$, since …": the formula, not the sentence.
            formula = _MATH_RE.search(found)
            if formula:
                found = next(g for g in formula.groups() if g is not None)
        return found.strip().strip("$").strip() or None
    number = _number_of(found)
    # A box that holds no number is still the model's answer, and is compared as maths; a
    # sentence that merely holds the word "answer" is not.
    return number if number is not None or not boxed else found.strip() or None


def _offered(letter: str, options: Sequence[str] | None) -> bool:
    return not options or ord(letter) - ord("A") < len(options)


def _number_of(found: str) -> str | None:
    """Return the number that a boxed or stated text gives, or None."""
    if parse_number(found) is not None or _several_numbers(found):
        return found.strip()
    # "12 because …" gives 12, "3 + 4 = 7" gives 7.
    if leading := _LEADING_RE.match(found):
        return leading.group(1)
    tail = found.rsplit("=", 1)[-1]
    if parse_number(tail) is not None:
        return tail.strip()
    numbers = set(_NUMBER_RE.findall(tail))
    # One number among words ("about 12 apples") is that number; several are none.
    return numbers.pop() if len(numbers) == 1 and not re.search(r"[\\^*/+=]", tail) else None


def _several_numbers(found: str) -> bool:
    """Return whether a text is a list of different numbers: "5 or 6" is not the answer 5."""
    if len(found) > MAX_STATED_CHARS:
        return False
    pieces = [piece.strip(" $") for piece in _LIST_JOINT_RE.split(found)]
    # "12, 5 of which are red" is 12: what has a unit is no element of a list.
    values = [None if re.search(r"[A-Za-z]{2}", p) else parse_number(p) for p in pieces]
    return None not in values and len(set(values)) > 1
