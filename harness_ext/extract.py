r"""What a response gives as its answer: the last balanced `\boxed{}`, a stated answer, a number.

math_verify is not asked to find the answer: it merges two boxes of one line
(`\boxed{25} then \boxed{204}` becomes 25204) and reads any number in running text as the
answer. It only compares what was extracted here.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

How = Literal["boxed", "stated", "last_number", "none"]
Kind = Literal["number", "math", "choice"]

MAX_NUMBER_CHARS = 100  # with its units; what is longer is no plain number

_NUMBER = r"[-\u2212+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-\u2212+]?\.\d+"
_NUMBER_RE = re.compile(rf"(?<![\w.])(?:\\?\$\s*)?({_NUMBER})(?!\d)")
_BOX_RE = re.compile(r"\\(?:boxed|fbox)\s*(\{)?")
_STATED_RE = re.compile(
    r"(?:####\s*|(?:final\s+)?\banswer\b\s*(?:\([^)]*\)\s*)?(?:is|:|=|would be|will be)\s*:?\s*)"
    r"([^\n]+)",
    re.IGNORECASE,
)
_CHOICE_RE = re.compile(r"^\W*(?:\\(?:text|mathrm|textbf|mathbf)\s*\{)?\W*([A-J])\b(?!['\u2019])")
_CHOICE_LINE_RE = re.compile(r"^\W*([A-J])\W*$")
_UNIT_RE = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{[^{}]*\}")
_SIMPLE_RE = re.compile(rf"^({_NUMBER})(?:\s*/\s*(\d+))?$")
_LEADING_RE = re.compile(rf"^\W*?(?:\\?\$\s*)?({_NUMBER})(?!\d)(?!\s*[-+*/x\u00d7=^\u00f7\\])")
_FRAC_RE = re.compile(r"^([-\u2212+]?)\\[dt]?frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?$")


@dataclass(frozen=True)
class Extracted:
    """An answer as text and the rule that found it; `value` is None where none did."""

    value: str | None
    how: How


def last_boxed(text: str) -> str | None:
    r"""Return what the last balanced `\boxed{...}` holds, or None.

    An unclosed box (a response that ran out of tokens) is passed over for an earlier one; a box
    in a box gives the inner text of the outer one; `\boxed 7` gives `7`.
    """
    closing = _closing_braces(text)
    found, outer_end = None, -1
    for match in _BOX_RE.finditer(text):
        if match.start() < outer_end:
            continue  # inside a box that has been taken whole
        if match.group(1) is None:
            bare = re.compile(r"\s*(\S+?)(?=[\s$.,]|$)").match(text, match.end())
            found = bare.group(1) if bare else found
            continue
        end = closing.get(match.end() - 1)
        if end is not None:
            found, outer_end = text[match.end() : end].strip(), end
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


def stated_answer(text: str) -> str | None:
    """Return what follows the last "answer is", "Answer:" or "####" on its line, or None."""
    matches = _STATED_RE.findall(text)
    for found in reversed(matches):
        cleaned = found.strip().strip("*_ ").rstrip(".")
        if cleaned:
            return cleaned
    return None


def last_number(text: str) -> str | None:
    """Return the last number of a text, thousands separators kept, or None."""
    numbers = _NUMBER_RE.findall(text)
    return numbers[-1] if numbers else None


def parse_number(text: str) -> Fraction | None:
    r"""Return the value of a text that is one number and nothing else, or None.

    Currency signs, thousands separators, a percent sign (its number, not a hundredth of it:
    `10\%` is 10), LaTeX spacing, `\text{ units}`, one trailing word of units, leading zeros and
    a trailing dot are allowed. `1/2` and `\frac{1}{2}` are numbers; an equation is not.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    s = text.strip().strip("`*").strip()
    s = re.sub(r"^\\?[(\[]\s*|\s*\\[)\]]$", "", s) if s.startswith(("\\(", "\\[")) else s
    s = _UNIT_RE.sub("", s)
    s = s.replace("{,}", ",")  # how LaTeX writes a thousands separator
    s = re.sub(r"\\[,;:! ]|~|\\left|\\right", "", s).replace("\\$", "").replace("$", "")
    s = s.replace("\\%", "").replace("%", "").replace("\u2212", "-").strip()
    s = re.sub(r"\s*\^?\s*\\circ$|°$", "", s)
    s = re.sub(r"(?<=\d)\s+[A-Za-z][A-Za-z .²³/-]*$", "", s)  # "12 apples"
    s = s.strip().rstrip(".").replace(",", "") if re.search(r"\d,\d{3}(?!\d)", s) else s
    s = s.strip().rstrip(".").strip()
    if frac := _FRAC_RE.match(s):
        sign, top, bottom = frac.groups()
        return None if int(bottom) == 0 else Fraction(int(f"{sign}{top}"), int(bottom))
    simple = _SIMPLE_RE.match(s)
    if not simple:
        return None
    top, bottom = simple.groups()
    if bottom is not None and int(bottom) == 0:
        return None
    return Fraction(top.replace(",", "")) / int(bottom or 1)


def choice_letter(text: str) -> str | None:
    r"""Return the option letter (A to J) that a short text names, or None.

    `B`, `(B)`, `B) 12`, `\text{B}`, `**B**` name one; "A man has …" does not, because the
    article counts as a letter only where punctuation or nothing follows it.
    """
    s = text.strip().strip("$").strip()
    match = _CHOICE_RE.match(s)
    if not match:
        return None
    rest = s[match.end() :]
    return match.group(1) if not rest.strip() or re.match(r"\s*[).:},*$]", rest) else None


def extract(text: str, *, kind: Kind) -> Extracted:
    r"""Return the answer that a final text gives.

    The last balanced `\boxed{}` wins, then the last stated answer ("answer is …", "Answer: …",
    "#### …"), then, for `number`, the last number in the text, and for `choice`, a letter that
    stands alone on the last line.

    Args:
        text: the part of the response after the reasoning.
        kind: `number` (the gold is a plain number), `math` (any expression), `choice` (a letter).
    """
    boxed = last_boxed(text)
    if boxed:
        value = _as_kind(boxed, kind, boxed=True)
        if value is not None:
            return Extracted(value, "boxed")
    stated = stated_answer(text)
    if stated:
        value = _as_kind(stated, kind, boxed=False)
        if value is not None:
            return Extracted(value, "stated")
    if kind == "number":
        number = last_number(text)
        if number is not None:
            return Extracted(number, "last_number")
    if kind == "choice":
        lines = [line for line in text.splitlines() if line.strip()]
        alone = _CHOICE_LINE_RE.match(lines[-1]) if lines else None
        if alone:
            return Extracted(alone.group(1), "stated")
    return Extracted(None, "none")


def _as_kind(found: str, kind: Kind, *, boxed: bool) -> str | None:
    if kind == "choice":
        return choice_letter(found)
    if kind == "math":
        return found.strip().strip("$").strip() or None
    number = _number_of(found)
    # A box that holds no number is still the model's answer, and is compared as maths; a
    # sentence that merely holds the word "answer" is not.
    return number if number is not None or not boxed else found.strip() or None


def _number_of(found: str) -> str | None:
    """Return the number that a boxed or stated text gives, or None."""
    if parse_number(found) is not None:
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
