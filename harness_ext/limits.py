"""Why an expression is too large to compare, found by reading it and not by evaluating it.

These limits end the usual attacks and accidents (towers of powers, a megabyte of brackets) in
microseconds. What they let through still runs under the limits of `math_process`.
"""

import re

MAX_CHARS = 400
MAX_DEPTH = 12
MAX_DIGITS = 60
MAX_EXPONENT = 999
MAX_FACTORIAL_DIGITS = 4


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
        if _tower(exponent) or compact[match.end() + len(exponent) :].startswith("^"):
            return "a power in an exponent"
        if any(int(d) > MAX_EXPONENT for d in re.findall(r"\d+", exponent)):
            return f"an exponent over {MAX_EXPONENT}"
        # (a^b)^c multiplies exponents: only its first power is bounded by the line above.
        if compact[match.end() + len(exponent) :].startswith((")^", "}^", "]^")):
            return "a power of a power"
    if re.search(rf"!\s*[)}}]*!|\d{{{MAX_FACTORIAL_DIGITS + 1},}}\s*[)}}]*!", compact):
        return "a large factorial"
    return None


def _tower(exponent: str) -> bool:
    """Return whether an exponent holds a power of numbers that gets large.

    `e^{-x^2}`, `2^{2^n}` and `2^{3^2}` are harmless: a symbol is not multiplied out.
    """
    for match in re.finditer(r"([\w)\]}])\^", exponent):
        inner = _group(exponent, match.end())
        if match.group(1).isalpha() or re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", inner)):
            continue
        base = re.search(r"(?<![\w)\]}])\d{1,3}$", exponent[: match.start() + 1])
        power = re.fullmatch(r"\{?(\d)\}?", inner)
        if not (base and power) or int(base.group()) ** int(power.group(1)) > MAX_EXPONENT:
            return True
    return False


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
