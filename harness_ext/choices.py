r"""Which option of a multiple-choice question a short text names.

math_verify's own rule takes the article "A" for an answer and does not see `\boxed{\text{B}}`;
others take any capital out of a formula (`\Delta E`). Here a letter counts where nothing but
punctuation, or a word such as "because", follows it.
"""

import re
from collections.abc import Sequence

from harness_ext.plain_numbers import parse_number

LETTERS = "ABCDEFGHIJ"
MAX_OPTION_CHARS = 2000

_WRAPPER_RE = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|textrm|textit|bf|rm)\b\s*")
_DELIMITER_RE = re.compile(r"\\[()\[\]]")
_SPACING_RE = re.compile(r"\\[,;:! ]|~|\\q?quad")
_LETTER_RE = re.compile(
    r"^[\W_]{0,8}(?:(?:option|choice|answer)\s{0,4}[\W_]{0,4})?"
    r"([A-Ja-j])(?![A-Za-z0-9_'\u2019^])",
    re.IGNORECASE,
)
# What may stand behind the letter: nothing, punctuation, or a word that goes on about it.
_BEHIND_RE = re.compile(r"\s*(?:$|[).:},;*\]\u2014\u2013]|-\s|(?:because|since|as|which|is)\b)")
# Another letter and nothing else: "A, B" and "(A); (C)" choose nothing.
_SECOND_RE = re.compile(
    r"[\s).*\]}]*[,;]\s*(?:(?:and|or)\s+)?[\s(*\[{$]*[A-J](?![A-Za-z0-9_'\u2019])"
    r"(?=[\s).*\]}$]*(?:$|[,;]|and\b|or\b))"
)
_GAP = r"[\W_]{0,5}"
_NAMED_RES = (
    # "option B is correct"
    re.compile(
        rf"(?i:option|choice)\s{{1,4}}\W{{0,4}}([A-J]){_GAP}(?i:is\s{{1,4}}(?:the\s{{1,4}})?"
        r"(?:correct|right|best|answer))"
    ),
    # "D is the correct choice"
    re.compile(
        r"(?<![A-Za-z0-9])([A-J])[)*]{0,3}\s{1,4}(?i:is\s{1,4}(?:the\s{1,4}|our\s{1,4})?"
        r"(?:(?:correct|right|best|final)\s{1,4})?(?:answer|choice|option)\b)"
    ),
    # "Answer D" at the end of a line
    re.compile(
        rf"(?i:answer|\bans|option|choice){_GAP}(?:(?i:choice|option|is){_GAP})?"
        r"(?<![A-Za-z])([A-J])[\W_]{0,6}$",
        re.MULTILINE,
    ),
)


def choice_letter(text: str) -> str | None:
    r"""Return the option letter (A to J) that a short text names, or None.

    `B`, `(B)`, `b)`, `B) 12`, `\text{B}`, `\textbf{(B)}\ 12`, `**B**`, `Option B`, "B because …"
    name one; "A man has …", "I think", `\Delta E`, "BC" and "A, B" do not.
    """
    s = _WRAPPER_RE.sub("", _DELIMITER_RE.sub(" ", text[:200]))
    s = _SPACING_RE.sub(" ", s).strip().strip("$").strip()
    match = _LETTER_RE.match(s)
    if not match or "\\" in s[: match.start(1)]:
        return None
    letter, rest = match.group(1), re.sub(r"^\s*\$", "", s[match.end() :])
    if not _BEHIND_RE.match(rest) or _SECOND_RE.match(rest):
        return None
    # A small letter is an option only by itself or in brackets: "a) …", not "a, then b".
    if letter.islower() and not re.match(r"\s*(?:$|[)}\]*.$]+\s*|\))", rest):
        return None
    if letter == "I" and re.match(r"\s+\w", rest):
        return None
    return letter.upper()


def named_option(text: str) -> str | None:
    """Return the letter of the last "option B is correct" or line ending "Answer D", or None."""
    last = [m for pattern in _NAMED_RES for m in [*pattern.finditer(text)][-1:]]
    return max(last, key=lambda m: m.end(1)).group(1) if last else None


def match_option(text: str, options: Sequence[str]) -> str | None:
    r"""Return the letter of the one option whose text or number `text` is, or None.

    Args:
        text: a short answer, such as `12` or `\text{mitosis}`.
        options: texts of the options in order, with or without their own label ("B) 12").
    """
    if not text.strip() or len(text) > MAX_OPTION_CHARS:
        return None
    mine, number = _plain(text), parse_number(text)
    same = []
    for letter, option in zip(LETTERS, options, strict=False):
        body = re.sub(rf"^\s*\(?{letter}\s*[).:]\s*", "", option[:MAX_OPTION_CHARS])
        value = parse_number(body)
        if _plain(body) == mine or (number is not None and value == number):
            same.append(letter)
    # Two options that read alike ("10" and "10%") leave it open which one is meant.
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    s = _SPACING_RE.sub("", _WRAPPER_RE.sub("", text))
    s = re.sub(r"\\left|\\right|[\s$*`]", "", s).replace("\\dfrac", "\\frac")
    s = s[1:-1] if re.fullmatch(r"\{[^{}]*\}", s) else s  # what \text{…} leaves
    return s.replace("\u2013", "-").replace("\u2212", "-").rstrip(".").casefold()
