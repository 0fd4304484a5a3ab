r"""Answers that look like the gold one and are wrong: what a wrong hint says.

A wrong answer keeps the gold one's type and format, so that nothing but its value gives it
away: a letter stays one of the options, `1,250` keeps its separator, `\frac{3}{4}` its
denominator, `(3, \frac{\pi}{2})` its shape. It is chosen by sha256 of (seed, question id,
template id) and by nothing else.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

from harness_ext.errors import HintError
from harness_ext.extract import Kind, parse_number
from harness_ext.verifier import compare

_FRACTION = re.compile(
    r"(?P<head>.*?)(?:(?P<cmd>\\[dt]?frac)\s*\{(?P<top>\d+)\}\s*\{(?P<low>\d+)\}"
    r"|(?P<cmd2>\\[dt]?frac)(?P<top2>\d)(?P<low2>\d)|(?P<top3>\d+)\s*/\s*(?P<low3>\d+))(?P<tail>.*)",
    re.DOTALL,
)
# `,\\!` is how LaTeX writes a thousands separator without a gap.
_LITERAL = re.compile(r"\d(?:\d|,(?:\\!)?\s*(?=\d{3}))*(?:\.(\d+))?|\.(\d+)")
_OPPOSITES = (
    ("even", "odd"),
    ("yes", "no"),
    ("true", "false"),
    ("east", "west"),
    ("north", "south"),
    ("left", "right"),
    ("increasing", "decreasing"),
    ("convergent", "divergent"),
    ("parabola", "hyperbola"),
    ("ellipse", "hyperbola"),
    ("circle", "ellipse"),
    ("always", "never"),
)


def rank(*parts: object) -> bytes:
    """Return the place of a candidate: the sha256 of its parts."""
    return hashlib.sha256("\x1f".join(str(p) for p in parts).encode()).digest()


def wrong_answer(
    *,
    qid: str,
    question: str,
    gold: str,
    kind: Kind,
    template_id: str,
    seed: int,
    choices: Sequence[str] | None = None,
    number_range: tuple[int, int] | None = None,
    avoid: str | None = None,
) -> str:
    """Return a wrong answer for a question; the same arguments always give the same one.

    Args:
        qid: question id.
        question: its text, in which a free-form wrong answer must not occur.
        gold: reference answer.
        kind: `number`, `math` or `choice`.
        template_id: id of the hint template.
        seed: task seed.
        choices: option letters, for `choice`.
        number_range: lowest and highest answer the benchmark allows, such as AIME's 0 to 999.
        avoid: what the model answers without a hint, where that is known; it is never chosen.

    Raises:
        HintError: Nothing is left to choose from.
    """
    if kind == "choice":
        return wrong_letter(
            qid=qid,
            gold=gold,
            choices=choices or (),
            template_id=template_id,
            seed=seed,
            avoid=avoid,
        )
    if _is_plain(gold):
        return wrong_number(
            qid=qid,
            question=question,
            gold=gold,
            template_id=template_id,
            seed=seed,
            number_range=number_range,
            avoid=avoid,
        )
    return wrong_expression(
        qid=qid, question=question, gold=gold, template_id=template_id, seed=seed, avoid=avoid
    )


def wrong_letter(
    *,
    qid: str,
    gold: str,
    choices: Sequence[str],
    template_id: str,
    seed: int,
    avoid: str | None = None,
) -> str:
    """Return an option letter that is neither gold nor the one to avoid.

    With two options the one to avoid may be all that is left; it is then taken.

    Raises:
        HintError: `gold` is no option, or the only one.
    """
    others = [c for c in choices if c != gold]
    if gold not in choices or not others:
        raise HintError(f"{qid}: gold {gold!r} with options {list(choices)} leaves no wrong option")
    free = [c for c in others if c != avoid] or others
    return min(free, key=lambda c: rank(seed, qid, template_id, "wrong", c))


def numbers_in(text: str) -> set[Fraction]:
    """Return the values of all numbers written in digits in a text."""
    found = re.findall(r"\d[\d,]*(?:\.\d+)?", text)
    values = (parse_number(n.rstrip(",")) for n in found)
    pieces = (parse_number(p) for n in found for p in n.split(",") if p)
    return {v for v in (*values, *pieces) if v is not None}


def _is_plain(gold: str) -> bool:
    return parse_number(gold) is not None and "/" not in gold and "frac" not in gold


def wrong_number(
    *,
    qid: str,
    question: str,
    gold: str,
    template_id: str,
    seed: int,
    number_range: tuple[int, int] | None = None,
    avoid: str | None = None,
) -> str:
    """Return a wrong answer that looks like the gold one, a plain number.

    It keeps the sign, the number of digits and of decimals, and the thousands separators where
    such a number is free; it differs from gold and is not a number of the question.

    Raises:
        HintError: `gold` is not one plain number, or `number_range` leaves nothing free.
    """
    value = parse_number(gold)
    literal = _LITERAL.search(gold)
    if value is None or literal is None or not _is_plain(gold):
        raise HintError(f"{qid}: gold {gold!r} is not a plain number, no wrong hint can be made")
    decimals = len(literal.group(1) or literal.group(2) or "")
    scale = 10**decimals
    units = int(abs(value) * scale)
    taken = {abs(v) for v in (*numbers_in(question), value, parse_number(avoid or "") or value)}
    lo, hi = _digit_range(units)
    near = max(10, units // 2)
    # First inside the same number of digits and near; wider only where that leaves nothing.
    windows = (
        (max(lo, units - near), min(hi, units + near)),
        (lo, hi if hi < 10_000 else min(hi, units + 10_000)),
        (0, units + 200),
    )
    for low, high in windows:
        free = [
            u
            for u in _sampled(range(low, high + 1), qid, template_id, seed)
            if (Fraction(u, scale)) not in taken and _allowed(u, scale, value, number_range)
        ]
        if free:
            best = min(free, key=lambda u: rank(seed, qid, template_id, "wrong", u))
            return _spell(best, decimals, gold, literal.group(0))
    raise HintError(
        f"{qid}: no wrong number beside gold {gold!r} within {number_range or 'its format'}"
    )


def _digit_range(units: int) -> tuple[int, int]:
    digits = len(str(units))
    # Nobody answers 0 to "how many are left", so 0 is offered only in place of 0.
    lowest = 10 ** (digits - 1) if units else 0
    return lowest, 10**digits - 1


def _sampled(window: range, qid: str, tid: str, seed: int) -> Sequence[int]:
    """Return the window, thinned by a hashed stride when hashing all of it would be slow."""
    limit = 2000
    if len(window) <= limit:
        return window
    start = int.from_bytes(rank(seed, qid, tid, "start")[:4], "big") % len(window)
    return [window[(start + i) % len(window)] for i in range(limit)]


def _allowed(units: int, scale: int, gold: Fraction, number_range: tuple[int, int] | None) -> bool:
    value = Fraction(units, scale) * (-1 if gold < 0 else 1)
    return number_range is None or number_range[0] <= value <= number_range[1]


def _spell(units: int, decimals: int, gold: str, literal: str) -> str:
    """Return `gold` with its digits replaced; its sign and units stay as they are."""
    scale = 10**decimals
    separator = re.search(r",(?:\\!)?\s*", literal)
    comma = "," if separator else ""
    text = f"{units // scale:{comma}d}"
    if separator:
        text = text.replace(",", separator.group())
    if decimals:
        text += f".{units % scale:0{decimals}d}"
    width = len(literal.split(".")[0])
    if literal.startswith("0") and width > 1 and not comma:
        text = text.zfill(width + (decimals + 1 if decimals else 0))
    if literal.startswith("."):
        text = text.removeprefix("0")
    return gold.replace(literal, text, 1)


@lru_cache(maxsize=4096)  # lm-eval asks for the prompts of a question many times
def wrong_expression(
    *,
    qid: str,
    question: str,
    gold: str,
    template_id: str,
    seed: int,
    avoid: str | None = None,
) -> str:
    r"""Return a wrong answer of the shape of a LaTeX or worded gold one.

    One place of the gold is changed: the numerator of a fraction (in lowest terms), else one
    whole number (`3\sqrt{13}` to `5\sqrt{13}`), else a sign, a letter (`\text{(C)}`), a word with
    an opposite, or a name of the question. It is not equal to gold by the checker that scores
    responses and does not stand in the question.

    Raises:
        HintError: No such change can be made.
    """
    plain = re.sub(r"\s+", "", question)
    avoided = re.sub(r"\s+", "", avoid or "")
    for source in (_fractions, _in_a_base, _integers, _signs, _words, _names, _multiples):
        candidates = [
            c
            for c in dict.fromkeys(source(gold, question))
            if (bare := re.sub(r"\s+", "", c)) not in plain and bare != avoided and _is_tidy(c)
        ]
        # Names stand in the question by nature; what they must not be is the gold one.
        if source is _names:
            candidates = [c for c in dict.fromkeys(source(gold, question)) if c != avoid]
        for candidate in sorted(candidates, key=lambda c: rank(seed, qid, template_id, "wrong", c)):
            if compare(gold, candidate) == "different":
                return candidate
    raise HintError(
        f"{qid}: no wrong answer of the shape of gold {gold!r} could be made; "
        "leave the question out of the data, or give it a plain answer"
    )


def _is_tidy(text: str) -> bool:
    r"""Return whether nobody would simplify it: no `\frac{2}{4}`, no `\sqrt{9}`."""
    roots = (int(n) for n in re.findall(r"\\sqrt\{?(\d+)", text))
    if any(math.isqrt(n) ** 2 == n for n in roots):
        return False
    mixed = re.findall(r"\d\s*\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", text)
    if any(int(top) >= int(low) for top, low in mixed):
        return False
    pairs = re.findall(r"frac\s*\{(\d+)\}\s*\{(\d+)\}|frac\s*(\d)\s*(\d)|(\d+)/(\d+)", text)
    numbers = ([int(n) for n in pair if n] for pair in pairs)
    return all(low > 1 and math.gcd(top, low) == 1 for top, low in numbers)


def _fractions(gold: str, question: str) -> Iterator[str]:
    """Yield the gold fraction with other numerators, in lowest terms."""
    match = _FRACTION.fullmatch(gold.strip())
    if match is None or re.search(r"\d", match["head"] + match["tail"]):
        return
    top, low = (
        int(match[a] or match[b] or match[c])
        for a, b, c in (("top", "top2", "top3"), ("low", "low2", "low3"))
    )
    news = [n for n in range(max(1, top - 12), top + 13) if n != top and math.gcd(n, low) == 1]
    # A proper fraction stays one where another exists (none beside 1/2).
    for new in [n for n in news if (n < low) == (top < low)] or news:
        if match["cmd"]:
            body = f"{match['cmd']}{{{new}}}{{{low}}}"
        elif match["cmd2"]:
            body = f"{match['cmd2']}{new}{low}" if new <= 9 else ""
        else:
            body = f"{new}/{low}"
        if body:
            yield match["head"] + body + match["tail"]


def _in_a_base(gold: str, question: str) -> Iterator[str]:
    """Yield a number in a base with one digit changed, never to one the base has not."""
    match = re.fullmatch(r"(\d+)(_\{?(\d+)\}?)", gold.replace(" ", ""))
    if match is None or not 2 <= int(match[3]) <= 10:
        return
    for place, digit in enumerate(match[1]):
        for new in range(0 if place else 1, int(match[3])):
            if new != int(digit):
                yield match[1][:place] + str(new) + match[1][place + 1 :] + match[2]


def _integers(gold: str, question: str) -> Iterator[str]:
    """Yield the gold with one of its whole numbers changed by little."""
    for match in re.finditer(r"(?<![\d.])\d+(?![\d.])", gold):
        if len(match.group()) > 9:
            continue
        old = int(match.group())
        # `\frac9{19}` takes one digit: `\frac12{19}` would be a half times 19.
        bare = re.search(r"(?:\\[a-z]+|\^|_|frac\s*\{[^{}]*\})\s*$", gold[: match.start()])
        for new in range(max(0 if old == 0 else 2, old - 4), old + 5):
            if new != old and (not bare or len(str(new)) == len(match.group())):
                yield gold[: match.start()] + str(new) + gold[match.end() :]


def _signs(gold: str, question: str) -> Iterator[str]:
    """Yield the gold with one plus or minus turned round."""
    if re.search(r"\\text|\\mathrm|\\mbox|[A-Za-z]{3}(?<!\\pi)", re.sub(r"\\[a-z]+", "", gold)):
        return
    for match in re.finditer(r"[-+]", gold):
        other = "+" if match.group() == "-" else "-"
        # A leading minus goes away altogether: nobody writes "+x".
        new = "" if match.start() == 0 else other
        yield gold[: match.start()] + new + gold[match.end() :]


def _words(gold: str, question: str) -> Iterator[str]:
    """Yield the gold with its option letter or a word that has an opposite replaced."""
    if letter := re.search(r"(?<![A-Za-z])([A-E])(?![A-Za-z])", gold):
        for new in "ABCDE":
            if new != letter.group():
                yield gold[: letter.start()] + new + gold[letter.end() :]
    for pair in _OPPOSITES:
        for old, new in (pair, pair[::-1]):
            if match := re.search(rf"(?<![A-Za-z]){old}(?![A-Za-z])", gold, re.IGNORECASE):
                word = new.capitalize() if match.group()[0].isupper() else new
                yield gold[: match.start()] + word + gold[match.end() :]


def _names(gold: str, question: str) -> Iterator[str]:
    """Yield the gold name replaced by the other names of the question."""
    match = re.search(r"(?<![\\A-Za-z])[A-Z][a-z]{2,}", gold)
    if match is None:
        return
    # A name stands somewhere in the middle of a sentence, or in the labels of a figure.
    inside = re.findall(r"(?<=[a-z,(\"$] )[A-Z][a-z]{2,}\b|(?<=\")[A-Z][a-z]{2,}(?=\")", question)
    for name in dict.fromkeys(inside):
        if name != match.group():
            yield gold[: match.start()] + name + gold[match.end() :]


def _multiples(gold: str, question: str) -> Iterator[str]:
    r"""Yield twice, three times … the gold expression (`\pi` to `2\pi`)."""
    if re.search(r"\\text|[A-Za-z]{3}", re.sub(r"\\[a-z]+", "", gold)):
        return
    single = re.fullmatch(r"\\?[A-Za-z]+", gold.strip())
    for factor in (2, 3, 4, 5):
        yield f"{factor}{gold}" if single else f"{factor}({gold})"
