"""What no language model may overrule: a quoted answer that the rules know to be another one."""

import re
from fractions import Fraction

from harness_ext.extract import choice_letter, parse_number
from harness_ext.wrong_answers import numbers_in

_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: n for n, word in enumerate(_ONES)} | {w: 20 + 10 * n for n, w in enumerate(_TENS)}
_WORDS |= {"none": 0, "nil": 0, "once": 1, "twice": 2, "dozen": 12, "pair": 2}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_PARTS = re.compile(
    r"\b(?:half|halves|(?:third|quarter|fifth|sixth|seventh|eighth|ninth|tenth|hundredth)s?|point|"
    r"pi|infinity|infinite)\b|[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞π∞零一二三四五六七八九十百千]",
    re.IGNORECASE,
)
# 10/20, 2^3, 50 %, 1.5e3, 3:2, 5!: what such a text is worth is the model's to say.
_ARITHMETIC = re.compile(
    r"\d\s?(?:[-+*/^\u00d7·÷%!:°]|\\)|[-+*/^\u00d7÷√(]\s?\d|\\[a-z]+\{|\d[eE]-?\d"
)


def spelled_numbers(text: str) -> set[int]:
    """Return the values of the whole numbers that a text spells in English words.

    Every run of number words is one number: `two hundred and thirty-nine` is 239.
    """
    values: set[int] = set()
    total = current = 0
    open_run = False
    for word in re.findall(r"[a-z]+|[^\sa-z-]", text.lower()):
        singular = word.removesuffix("s")
        if word in _WORDS or singular in _WORDS:
            current += _WORDS.get(word, _WORDS.get(singular, 0))
            open_run = True
        elif open_run and singular in _SCALES:
            scale = _SCALES[singular]
            if scale == 100:
                current *= 100
            else:
                total, current = total + current * scale, 0
        elif not (open_run and word in ("and", "a")):
            values |= {total + current} if open_run else set()
            total, current, open_run = 0, 0, False
    return values | ({total + current} if open_run else set())


def objection(gold: str, quote: str) -> str | None:
    """Return why a quoted answer cannot be the gold answer, or None where the rules don't know.

    Plain numbers and option letters are compared exactly, and a number cannot be stated without
    stating it: "the same as the reference" is no answer.

    Args:
        gold: reference answer.
        quote: the part of the response that is claimed to be the same answer.
    """
    gold_number, number = parse_number(gold), parse_number(quote)
    if gold_number is not None:
        if number is not None:
            return None if number == gold_number else "another number"
        return _without(gold_number, quote)
    if len(gold) == 1 and gold.isalpha() and gold.isupper():
        letter = choice_letter(quote)
        if letter is not None and letter != gold:
            return "another letter"
    return None


def _without(gold: Fraction, quote: str) -> str | None:
    spelled = spelled_numbers(quote)
    if _ARITHMETIC.search(quote) or _PARTS.search(quote):
        return None
    digits = bool(re.search(r"\d", quote))
    if digits and re.search(r"\b(?:hundred|thousand|million|billion|dozen)s?\b", quote.lower()):
        return None  # 1.2 million
    if gold in spelled or gold in numbers_in(quote):
        return None
    return "another number" if digits or spelled else "no number in it"
