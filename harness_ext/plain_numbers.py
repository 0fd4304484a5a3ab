r"""The value of a text that is one number and nothing else, exactly.

Most answers of every benchmark are plain numbers. Reading them here is exact (no floats), needs
no computer algebra, and settles what such a system has no opinion on: units, money, leading
zeros, thousands separators, mixed numbers.
"""

import re
from fractions import Fraction

MAX_NUMBER_CHARS = 100  # with its units; what is longer is no plain number
MAX_POWER_OF_TEN = 99

NUMBER = r"[-\u2212+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-\u2212+]?\.\d+"
_INTEGER_RE = re.compile(r"-?\d{1,60}")
_SIMPLE_RE = re.compile(rf"({NUMBER})(?:\s*/\s*(\d+))?")
_FRAC_RE = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_MIXED_RE = re.compile(r"(\d+)\s*(\\[dtc]?frac.+|(?<=\s)\d+\s*/\s*\d+)")
_REPEATING_RE = re.compile(r"(\d*)\.(\d*)\\overline\s*\{?(\d+)\}?")
_POWER_RE = re.compile(
    rf"({NUMBER})(?:\s*(?:\\times|\\cdot|\u00d7|x|\*)\s*10\s*\^\s*\{{?([-+]?\d+)\}}?"
    r"|[eE]([-+]?\d+))"
)
_DEGREE = r"(?:\^?\s*\{?\s*\\circ\s*\}?|°|\\degree)"
_UNIT_TEXT_RE = re.compile(
    r"\s*\\(?:text|mathrm|textbf|mathbf|mbox|textrm)\s*\{([^{}]*)\}(?:\s*\^\s*\{?[23]\}?)?\.?$"
)
# "12 apples": words after a space. A single letter may be a variable ("2 x"), so of those
# only the usual units count.
_UNIT_WORDS_RE = re.compile(
    r"(?<=[\d}])\s+((?!(?:or|and|to|plus|minus|times|mod)\b)(?:[A-Za-z]{2,}|[mgshL]\b)"
    r"[A-Za-z .\u00b2\u00b3/-]*)(?:\^\s*\{?[23]\}?)?$"
)
_UNIT_GLUED_RE = re.compile(
    r"(?<=\d)(?:km/h|kmph|mph|km|cm|mm|kg|mg|ml|ft|lbs?|hrs?|mins?|secs?|usd)"
    r"(?:\s*\^?\s*\{?[23]\}?|[\u00b2\u00b3])?$",
    re.IGNORECASE,
)
_MONEY_RE = re.compile(
    r"^([-\u2212+]?)\s*(?:\\?\$|€|£|₹|\\pounds|\\euro|(?:Rs|INR|USD|US)\b\.?)\s*"
)
_PERCENT_RE = re.compile(r"\s*(?:\\?%|\\?\bper\s?cent(?:age)?\b|\\text\s*\{\s*per\s?cent\s*\})$")
_FACTORS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_VALUES = {word: i for i, word in enumerate(re.findall(r"\w+", _WORDS))}


def is_percent(text: str) -> bool:
    """Return whether a short text ends in a percent sign or the word."""
    return len(text) <= MAX_NUMBER_CHARS and bool(_PERCENT_RE.search(text.rstrip(" $.")))


def parse_number(text: str) -> Fraction | None:
    r"""Return the value of a text that is one number and nothing else, or None.

    Currency signs, thousands separators, a percent sign (its number, not a hundredth of it:
    `10\%` is 10), degrees, LaTeX spacing, `\text{ units}`, trailing words of units, leading zeros
    and a trailing dot are allowed, and "5 million" is five million. `1/2`, `\frac{1}{2}`,
    `\frac12`, `1\frac{4}{5}` (mixed), `1.5 \times 10^{3}`, `0.\overline{3}` and the words zero
    to twenty are numbers; an equation or a product with a variable is not.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    if _INTEGER_RE.fullmatch(text):
        return Fraction(int(text))
    s, factor = _without_units(_without_markup(text))
    sign = 1
    if s[:1] in "+-" and s:
        sign, s = (-1 if s[0] == "-" else 1), s[1:].strip()
    value = _value(s.strip())
    return None if value is None else sign * factor * value


def decimal_places(text: str) -> int | None:
    """Return how many decimals a plain decimal number is written with, or None if it is none."""
    match = re.fullmatch(r"[-+]?[\d,]*\.(\d+)", _without_units(_without_markup(text))[0])
    return len(match.group(1)) if match else None


def _without_markup(text: str) -> str:
    s = text.strip().strip("`*").strip()
    s = re.sub(r"^\\[(\[]\s*|\s*\\[)\]]$", "", s) if s.startswith(("\\(", "\\[")) else s
    if len(s) > 1 and s.startswith("$") and s.endswith("$"):
        s = s.strip("$").strip()
    s = s.replace("{,}", ",").replace("\u2212", "-").replace("\u2013", "-")
    # How LaTeX writes a thousands separator, with or without the comma.
    s = re.sub(r"(?<=\d),?\s*\\[!,;: ]\s*(?=\d{3}(?!\d))", ",", s)
    s = re.sub(r"\\[,;:! ]|~|\\left|\\right|\\displaystyle", " ", s)
    s = re.sub(r"\s+", " ", s).strip().rstrip(".").strip()
    s = s[6:-1].strip() if re.fullmatch(r"\\text\{[^{}]*\}", s) else s
    return s[1:-1].strip() if re.fullmatch(r"[({][^(){}\[\],]*[)}]", s) else s


def _without_units(s: str) -> tuple[str, int]:
    """Return the text without money sign, percent, degrees and units, and a power of ten."""
    s = _MONEY_RE.sub(r"\1", s)
    s = _PERCENT_RE.sub("", s)
    factor = 1
    if unit := _UNIT_TEXT_RE.search(s) or _UNIT_WORDS_RE.search(s):
        words = unit.group(1).lower().split()
        if words and words[0] in _FACTORS:
            factor = 10 ** _FACTORS[words[0]]
        # "\text{5}" alone is the number itself, not a unit.
        s = s[: unit.start()] if s[: unit.start()].strip() else s
    s = _UNIT_GLUED_RE.sub("", s)
    s = re.sub(rf"\s*{_DEGREE}\s*(?:[CF]\b)?$", "", s)
    s = re.sub(r"(?:\\?\$|€|£)$", "", s)
    return s.strip().rstrip(".").strip(), factor


def _value(s: str) -> Fraction | None:
    """Return the value of an unsigned number without units."""
    if simple := _SIMPLE_RE.fullmatch(s):
        if s[:1] in "+-":
            return None  # a second sign
        top, bottom = simple.groups()
        if bottom is not None and int(bottom) == 0:
            return None
        return Fraction(top.replace(",", "")) / int(bottom or 1)
    if frac := _FRAC_RE.fullmatch(s):
        top, bottom = (frac.group(1) or frac.group(2)), (frac.group(3) or frac.group(4))
        return None if int(bottom) == 0 else Fraction(int(top), int(bottom))
    if mixed := _MIXED_RE.fullmatch(s):
        part = _value(mixed.group(2).strip())
        # A proper fraction only: 3\frac{7}{2} is a product.
        return int(mixed.group(1)) + part if part is not None and 0 < part < 1 else None
    if repeating := _REPEATING_RE.fullmatch(s):
        whole, fixed, period = repeating.groups()
        nines = 10 ** len(period) - 1
        tail = Fraction(int(fixed or 0) * nines + int(period), nines * 10 ** len(fixed))
        return int(whole or 0) + tail
    if power := _POWER_RE.fullmatch(s):
        exponent = int(power.group(2) or power.group(3))
        if abs(exponent) > MAX_POWER_OF_TEN:
            return None
        base = _value(power.group(1))
        return None if base is None else base * Fraction(10) ** exponent
    if re.fullmatch(r"\d{1,3}(?: \d{3})+", s):
        return Fraction(s.replace(" ", ""))
    return Fraction(_VALUES[s.lower()]) if s.lower() in _VALUES else None
