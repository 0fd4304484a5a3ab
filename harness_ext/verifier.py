"""Whether an answer equals the gold answer, and what became of a response.

Plain numbers are compared exactly, option letters as letters, text answers as words, lists, sets,
points, intervals and matrices element by element, and single expressions by math_verify in a
process that can be killed. `docs/verifier.md` lists the rules with their reasons.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from harness_ext import math_process
from harness_ext.choices import choice_letter
from harness_ext.errors import DataError
from harness_ext.extract import Extracted, How, Kind, extract
from harness_ext.forms import MAX_ITEMS, Form, assigned, form_of
from harness_ext.latex_text import canonical, clean, words
from harness_ext.limits import over_limit
from harness_ext.plain_numbers import decimal_places, is_percent, parse_number

__all__ = [
    "Comparison",
    "Scored",
    "Status",
    "compare",
    "lenient_correct",
    "over_limit",
    "same_answer",
    "score",
]

Status = Literal["answered", "no_answer", "truncated", "parse_error", "limit"]
Comparison = Literal["equal", "different", "parse_error", "limit"]

MAX_GOLD_CHARS = 2000
ROUNDED_PLACES = 6  # math_verify's precision for decimals against exact values

_TEXT_RE = re.compile(r"\\text\s*\{[^{}]*\}(?:\s*\\text\s*\{[^{}]*\})*\.?")
_SYMBOL_RE = re.compile(r"\\[A-Za-z]+|([A-Za-z])(?!_)")
_TIME_RE = re.compile(r"\d{1,2}:\d\d(?::\d\d)?(?:[ap]\.?m\.?)?", re.IGNORECASE)
_BASE_RE = re.compile(r"([0-9A-Za-z]+)_(?:\{(\d+)\}|(\d+))")
_UNITS_RE = re.compile(
    r"(?<=[\w})])\s*(?:\\text\s*\{[^{}]*\}(?:\s*\^\s*\{?[23]\}?)?|\^\s*\\circ"
    r"|\s(?:(?:square|cubic|sq|cu)\.? )?(?:units?|cm|mm|km|m|kg|inch(?:es)?|in|f(?:ee|oo)?t|yards?|"
    r"miles?|met(?:er|re)s?|cent(?:s|imet(?:er|re)s?)|dollars?|degrees?|radians?|hours?|minutes?|"
    r"seconds?)(?:\s*\^\s*\{?[23]\}?)?)\s*$"
)


@dataclass(frozen=True)
class Scored:
    """What a response counts as.

    Attributes:
        status: what became of the response.
        answer: the extracted answer, None where there is none.
        correct: whether it equals gold; False unless `status` is `answered`.
        how: the rule that found the answer.
    """

    status: Status
    answer: str | None
    correct: bool
    how: How


def compare(gold: str, answer: str) -> Comparison:
    """Return whether `answer` is the same answer as `gold`.

    Works in any thread and process, and ends within seconds whatever the answer is.

    Args:
        gold: the reference: a number, an option letter, LaTeX with or without delimiters, or
            words. The comparison is not symmetric: `5` is right for `x = 5`, and a set that
            leaves out the order is wrong for a point.
        answer: an extracted answer.

    Raises:
        DataError: `gold` is empty or longer than any answer: such a reference would count every
            answer as wrong.
        VerifierError: math_verify cannot be started.
    """
    if not gold.strip():
        raise DataError("the gold answer is empty; every question needs one")
    if len(gold) > MAX_GOLD_CHARS:
        raise DataError(
            f"the gold answer has {len(gold)} characters, limit {MAX_GOLD_CHARS}; "
            "give the answer only, not its solution"
        )
    return _compare(gold.strip(), answer.strip())


@lru_cache(maxsize=65536)
def _compare(gold: str, answer: str) -> Comparison:
    if not answer:
        return "parse_error"
    if gold == answer:
        return "equal"
    by_value = _numbers(gold, answer)
    if by_value is not None:
        return by_value
    if letter := _gold_letter(gold):
        named = choice_letter(answer)
        return "parse_error" if named is None else ("equal" if named == letter else "different")
    if over_limit(answer):
        return "limit"
    gold_text, text = clean(gold), clean(answer)
    if not text:
        return "parse_error"

    if canonical(gold) == canonical(answer):
        return "equal"
    gold_words = words(gold)
    if gold_words is not None and words(answer) == gold_words:
        return "equal"
    if gold_words is not None and _TEXT_RE.fullmatch(gold_text):
        return "different"
    return _forms(form_of(gold), form_of(answer))


def _gold_letter(gold: str) -> str | None:
    r"""Return the letter of `B`, `(B)` or `\text{(B)}`, or None."""
    match = re.fullmatch(r"\\text\{\s*\(?([A-J])\)?\s*\}|\(([A-J])\)|([A-J])", gold)
    return next((g for g in match.groups() if g), None) if match else None


def _numbers(gold: str, answer: str) -> Comparison | None:
    """Return the comparison of two plain numbers, or None where one of them is none."""
    (gold_symbol, gold), (symbol, answer) = assigned(gold), assigned(answer)
    expected, value = parse_number(gold), parse_number(answer)
    if expected is None or value is None:
        return None
    if gold_symbol and symbol and gold_symbol != symbol:
        return "different"
    if expected == value:
        return "equal"
    if is_percent(gold) != is_percent(answer):
        # 10% is 10 where the question asks for a percentage, and 0.1 everywhere.
        hundredth = expected / 100 == value if is_percent(gold) else expected == value / 100
        return "equal" if hundredth else "different"
    return "equal" if _rounds_to(expected, gold, value, answer) else "different"


def _rounds_to(expected: Fraction, gold: str, value: Fraction, answer: str) -> bool:
    """Return whether a decimal is the other, endless, value cut or rounded at its last place."""
    for exact, decimal, text in ((expected, value, answer), (value, expected, gold)):
        rest = exact.denominator
        for factor in (2, 5):
            while rest % factor == 0:
                rest //= factor
        places = decimal_places(text)
        if rest > 1 and places is not None and places >= ROUNDED_PLACES:
            return abs(exact - decimal) * 10**places <= 1 and abs(exact) * 10**places >= 1000
    return False


def _forms(gold: Form, answer: Form) -> Comparison:
    if max(len(gold.items), len(answer.items)) > MAX_ITEMS:
        return "limit"
    if gold.shape == answer.shape == "scalar":
        return _scalars(gold.text, answer.text)
    shapes = (gold.shape, answer.shape)
    free = {"list", "set"}
    if gold.shape in free and answer.shape in free:
        return _any_order(gold.items, answer.items)
    if shapes == ("union", "union"):
        return (
            "different" if _other_variable(gold, answer) else _any_order(gold.items, answer.items)
        )
    if shapes == ("tuple", "tuple"):
        # Of three and more elements there is no interval: "[1, 2, 3]" is a way to write a point.
        brackets = gold.brackets != answer.brackets and len(gold.items) == 2
        if brackets or _other_variable(gold, answer):
            return "different"
        return _in_order(gold.items, answer.items)
    if shapes == ("matrix", "matrix"):
        return _in_order(gold.items, answer.items)
    if "matrix" in shapes and "tuple" in shapes:
        return _in_order(_vector(gold), _vector(answer))
    if shapes in (("tuple", "list"), ("list", "tuple")):
        points = gold if gold.shape == "tuple" else answer
        plain = points.brackets == "()" or len(points.items) > 2
        return _in_order(gold.items, answer.items) if plain else "different"
    return "different"


def _other_variable(gold: Form, answer: Form) -> bool:
    return None not in (gold.variable, answer.variable) and gold.variable != answer.variable


def _vector(form: Form) -> tuple[Form, ...]:
    """Return the elements of a point, or of a matrix with one row or one column."""
    if form.shape == "tuple":
        return form.items
    if len(form.items) == 1:
        return form.items[0].items
    column = tuple(row.items[0] for row in form.items if len(row.items) == 1)
    return column if len(column) == len(form.items) else form.items


def _in_order(gold: tuple[Form, ...], answer: tuple[Form, ...]) -> Comparison:
    if len(gold) != len(answer):
        return "different"
    results = [_forms(g, a) for g, a in zip(gold, answer, strict=True)]
    if "limit" in results:
        return "limit"
    return "equal" if all(r == "equal" for r in results) else "different"


def _any_order(gold: tuple[Form, ...], answer: tuple[Form, ...]) -> Comparison:
    if len(gold) != len(answer):
        return "different"
    left = list(answer)
    for expected in gold:
        for i, found in enumerate(left):
            result = _forms(expected, found)
            if result == "limit":
                return "limit"
            if result == "equal":
                del left[i]
                break
        else:
            return "different"
    return "equal"


@lru_cache(maxsize=65536)
def _scalars(gold: str, answer: str) -> Comparison:
    r"""Return the comparison of two cleaned expressions that are no lists."""
    if not answer:
        return "parse_error"
    by_value = _numbers(gold, answer)
    if by_value is not None:
        return by_value
    if canonical(gold) == canonical(answer):
        return "equal"
    if _TIME_RE.fullmatch(canonical(gold)):
        # math_verify would divide: 2:30 and 1:15 are both a fifteenth.
        return "different"
    if base := _BASE_RE.fullmatch(canonical(gold)):
        return _digits(base, canonical(answer))
    gold, answer = _without_units(gold), _without_units(answer)
    by_value = _numbers(gold, answer)
    if by_value is not None:
        return by_value
    if canonical(gold) == canonical(answer):
        return "equal"
    verdict = math_process.compare(*_with_case(_radians(gold), _radians(answer)))
    if verdict == "gold_unreadable":
        # A reference that is no formula (12:30, a name) is compared as text, and that was above.
        return "different"
    return "parse_error" if verdict == "answer_unreadable" else verdict


def _digits(base: re.Match[str], answer: str) -> Comparison:
    """Return the comparison with a number in another base: its digits, the base if given."""
    other = _BASE_RE.fullmatch(answer)
    expected = base.group(2) or base.group(3)
    if other and (other.group(2) or other.group(3)) != expected:
        return "different"
    digits = other.group(1) if other else answer
    return "equal" if digits.lstrip("0") == base.group(1).lstrip("0") else "different"


def _without_units(text: str) -> str:
    return _UNITS_RE.sub("", text).strip()


def _with_case(gold: str, answer: str) -> tuple[str, str]:
    """Return both texts with R as R_0 where one of them has R and r.

    math_verify reads capital letters as small ones: kind to an answer with n for N, but then
    R - r would be 0.
    """
    letters = [set(_SYMBOL_RE.sub(r"\1", text)) for text in (gold, answer)]
    both = {c for found in letters for c in found if c.isupper() and c.lower() in found}
    if not both:
        return gold, answer

    def mark(match: re.Match[str]) -> str:
        return f"{match[0]}_{{0}}" if match[1] in both else match[0]

    return _SYMBOL_RE.sub(mark, gold), _SYMBOL_RE.sub(mark, answer)


def _radians(text: str) -> str:
    r"""Return the text with `30^\circ` inside a function as radians."""
    return re.sub(r"(\d+(?:\.\d+)?)\s*\^\s*\\circ", r"\\frac{\1\\pi}{180}", text)


def same_answer(a: str | None, b: str | None) -> bool:
    """Return whether two answers are equal; an answer that is missing equals nothing."""
    if a is None or b is None or not a.strip() or len(a) > MAX_GOLD_CHARS:
        return False
    return compare(a, b) == "equal"


def score(
    final: str,
    gold: str,
    *,
    kind: Kind,
    truncated: bool,
    options: Sequence[str] | None = None,
) -> Scored:
    """Return what a final text counts as.

    Args:
        final: the text after the reasoning, '' if the reasoning never ended.
        gold: reference answer.
        kind: what an answer of this benchmark is.
        truncated: the response used up its budget. It then has no answer and is wrong, even if
            a number stands in it: a cut response was not finished.
        options: texts of the options of a choice, in order; with them an answer may give the
            text of an option in place of its letter.

    Raises:
        DataError: The gold answer is empty or far too long.
        VerifierError: math_verify cannot be started.
    """
    found: Extracted = extract(final, kind=kind, options=options)
    if truncated:
        return Scored("truncated", None, False, found.how)
    if found.value is None:
        return Scored("no_answer", None, False, "none")
    result = compare(gold, found.value)
    if result in ("parse_error", "limit"):
        return Scored(result, found.value, False, found.how)
    return Scored("answered", found.value, result == "equal", found.how)


def lenient_correct(
    text: str, gold: str, *, kind: Kind, options: Sequence[str] | None = None
) -> bool:
    """Return whether the whole response, cut or not, gives the gold answer by the same rules.

    Raises:
        DataError: The gold answer is empty or far too long.
        VerifierError: math_verify cannot be started.
    """
    found = extract(text, kind=kind, options=options)
    return found.value is not None and compare(gold, found.value) == "equal"
