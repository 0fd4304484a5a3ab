"""Whether an answer equals the gold answer, and what became of a response.

Numbers are compared exactly, option letters as letters, everything else by math_verify behind
limits: its time limit is an alarm that works in the main thread only, and an expression such as
2003^(2002^2001) would keep it busy until that alarm. In other threads the limits stand alone.
"""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from harness_ext.errors import DataError
from harness_ext.extract import Extracted, How, Kind, choice_letter, extract, parse_number

Status = Literal["answered", "no_answer", "truncated", "parse_error", "limit"]
Comparison = Literal["equal", "different", "parse_error", "limit"]

MAX_CHARS = 400
MAX_DEPTH = 12
MAX_DIGITS = 60
MAX_EXPONENT = 999
TIMEOUT_S = 5


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


def over_limit(text: str) -> str | None:
    """Return why an expression is too large to hand to a computer algebra system, or None."""
    if len(text) > MAX_CHARS:
        return f"{len(text)} characters, limit {MAX_CHARS}"
    depth = deepest = 0
    for char in text:
        depth += (char in "({[") - (char in ")}]")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"brackets nested {deepest} deep, limit {MAX_DEPTH}"
    digits = max((len(d) for d in re.findall(r"\d+", text)), default=0)
    if digits > MAX_DIGITS:
        return f"a number of {digits} digits, limit {MAX_DIGITS}"
    return _powers(text)


def _powers(text: str) -> str | None:
    compact = re.sub(r"\s+|\\left|\\right|\\circ", "", text.replace("**", "^"))
    for match in re.finditer(r"\^", compact):
        exponent = _group(compact, match.end())
        if "^" in exponent or compact[match.end() + len(exponent) :].startswith("^"):
            return "a power in an exponent"
        if any(int(d) > MAX_EXPONENT for d in re.findall(r"\d+", exponent)):
            return f"an exponent over {MAX_EXPONENT}"
        # (a^b)^c multiplies exponents: only its first power is bounded by the line above.
        if compact[match.end() + len(exponent) :].startswith((")^", "}^", "]^")):
            return "a power of a power"
    if re.search(r"!\s*\)*!|\d{4,}\s*\)*!", compact):
        return "a large factorial"
    return None


def _group(text: str, start: int) -> str:
    """Return the exponent that starts at `start`: a bracketed group, or one sign and number."""
    if start < len(text) and text[start] in "({[":
        depth = 0
        for i in range(start, len(text)):
            depth += (text[i] in "({[") - (text[i] in ")}]")
            if depth == 0:
                return text[start : i + 1]
        return text[start:]
    match = re.match(r"[-+]?(?:\d+|\\?\w)", text[start:])
    return match.group() if match else ""


def compare(gold: str, answer: str) -> Comparison:
    """Return whether `answer` is the same answer as `gold`.

    Args:
        gold: the reference; the comparison is not symmetric for equations (math_verify).
        answer: an extracted answer.

    Raises:
        DataError: `gold` is empty or cannot be read as maths: an empty reference would count
            every answer as wrong.
    """
    if not gold.strip():
        raise DataError("the gold answer is empty; every question needs one")
    return _compare(gold.strip(), answer.strip(), _in_main_thread())


@lru_cache(maxsize=65536)
def _compare(gold: str, answer: str, timed: bool) -> Comparison:
    if not answer:
        return "parse_error"
    if gold == answer:
        return "equal"
    gold_number, number = parse_number(gold), parse_number(answer)
    if gold_number is not None and number is not None:
        return "equal" if gold_number == number else "different"
    if re.fullmatch(r"[A-J]", gold):
        letter = choice_letter(answer)
        return "parse_error" if letter is None else ("equal" if letter == gold else "different")
    if over_limit(answer):
        return "limit"
    return _math_verify(gold, answer, timed)


def _math_verify(gold: str, answer: str, timed: bool) -> Comparison:
    # Imported here: sympy costs a second, and benchmarks with numeric answers never need it.
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    limit = TIMEOUT_S if timed else None
    with _own_alarm(timed):
        try:
            # Without delimiters `\left(3, \frac{\pi}{2}\right)` would be read as 3.
            gold_parsed = parse(f"${gold}$", parsing_timeout=limit)  # type: ignore[arg-type]
            parsed = parse(f"${answer}$", parsing_timeout=limit, raise_on_error=True)  # type: ignore[arg-type]
        except TimeoutException:
            return "limit"
        except Exception:  # sympy raises its own zoo on malformed LaTeX: a counted status
            return "parse_error"
        if not gold_parsed:
            raise DataError(f"the gold answer {gold!r} cannot be read as maths; correct the data")
        # math_verify falls back to the text itself: fine for a gold that is a word.
        gold_is_maths = any(not isinstance(g, str) for g in gold_parsed)
        if not parsed or (gold_is_maths and all(isinstance(x, str) for x in parsed)):
            return "parse_error"
        try:
            same = verify(gold_parsed, parsed, timeout_seconds=limit, raise_on_error=True)
        except TimeoutException:
            return "limit"
        except Exception:  # see above
            return "parse_error"
    return "equal" if same else "different"


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _own_alarm(timed: bool) -> Iterator[None]:
    """Give back the alarm of the program that calls us: math_verify clears it."""
    if not timed or not hasattr(signal, "setitimer"):
        yield
        return
    handler = signal.getsignal(signal.SIGALRM)
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def same_answer(a: str | None, b: str | None) -> bool:
    """Return whether two answers are equal; an answer that is missing equals nothing."""
    if a is None or b is None or not a.strip():
        return False
    try:
        return compare(a, b) == "equal"
    except DataError:
        # Neither of them need be a gold answer: one that is not maths equals only itself.
        return False


def score(final: str, gold: str, *, kind: Kind, truncated: bool) -> Scored:
    """Return what a final text counts as.

    Args:
        final: the text after the reasoning, '' if the reasoning never ended.
        gold: reference answer.
        kind: what an answer of this benchmark is.
        truncated: the response used up its budget. It then has no answer and is wrong, even if
            a number stands in it: a cut response was not finished.

    Raises:
        DataError: The gold answer is empty or unreadable.
    """
    found: Extracted = extract(final, kind=kind)
    if truncated:
        return Scored("truncated", None, False, found.how)
    if found.value is None:
        return Scored("no_answer", None, False, "none")
    result = compare(gold, found.value)
    if result in ("parse_error", "limit"):
        return Scored(result, found.value, False, found.how)
    return Scored("answered", found.value, result == "equal", found.how)


def lenient_correct(text: str, gold: str, *, kind: Kind) -> bool:
    """Return whether the whole response, cut or not, gives the gold answer by the same rules.

    Raises:
        DataError: The gold answer is empty or unreadable.
    """
    found = extract(text, kind=kind)
    return found.value is not None and compare(gold, found.value) == "equal"
