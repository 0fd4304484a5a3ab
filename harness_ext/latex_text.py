r"""One spelling of the many in which models and data sets write the same formula.

`clean` makes text that math_verify reads (it knows `\sqrt{5}`, not `sqrt(5)`, `√5` or `5**2`);
`canonical` goes further and is only for comparing two texts as texts. Both are meant for answers
of a few hundred characters.
"""

import re

_UNICODE = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": "/",
    "\u03c0": r"\pi ", "\u03b8": r"\theta ", "\u03b1": r"\alpha ", "\u03b2": r"\beta ",
    "\u221e": r"\infty ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ",
    "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u00b1": r"\pm ",
    "\u00b0": r"^\circ ", "\u00b2": "^2", "\u00b3": "^3", "\u2205": r"\emptyset ",
    "\u211d": r"\mathbb{R}", "\u00bd": r"\frac{1}{2}", "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}", "\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'",
}  # fmt: skip
_UNICODE_TABLE = str.maketrans(_UNICODE)
_COMMANDS = {
    r"\\[dtc]frac(?![A-Za-z])": r"\\frac",
    r"\\(?:leqslant|leq|lt|geqslant|geq|gt|neq)(?![A-Za-z])": lambda m: _RELATIONS[m.group()],
    r"\\(?:varnothing|O)(?![A-Za-z])": r"\\emptyset",
    r"\\(?:textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname|textnormal)\*?"
    r"(?=\s*\{)": r"\\text",
    r"\\[lr]brace(?![A-Za-z])": lambda m: r"\{" if m.group() == r"\lbrace" else r"\}",
    r"\\(?:langle)(?![A-Za-z])": "(",
    r"\\(?:rangle)(?![A-Za-z])": ")",
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|bigg|Bigg|displaystyle|limits|mathopen|mathclose)"
    r"(?![A-Za-z])\.?": "",
    r"\\(?:begin|end)\{(?:bmatrix|Bmatrix|vmatrix|smallmatrix|matrix)\}": lambda m: _matrix(
        m.group()
    ),
    r"\\text\{\s*(?:degrees?|deg)\s*\}|\\degree(?![A-Za-z])": r"^\\circ",
    r"\^\s*\{\s*\\circ\s*\}": r"^\\circ",
    r"\\sfrac(?![A-Za-z])": r"\\frac",
    r"\\dots[bcimo]?(?![A-Za-z])|\\cdots(?![A-Za-z])": r"\\ldots",
    # Spaces; between digits they stood for a thousands separator that parse_number has read.
    r"(?<=\d),?\\!\s*(?=\d)": "",
    r"(?<=\d)\{,\}(?=\d)": "",
    r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\\hspace\{[^{}]*\}|\\phantom\{[^{}]*\}": " ",
}
_RELATIONS = {
    r"\leqslant": r"\le", r"\leq": r"\le", r"\lt": "<", r"\geqslant": r"\ge", r"\geq": r"\ge",
    r"\gt": ">", r"\neq": r"\ne",
}  # fmt: skip
_COMMAND_RES = [(re.compile(pattern), put) for pattern, put in _COMMANDS.items()]
_ROW_END = "\x1e"
_FUNCTION_NAMES = "arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln|exp"


def _matrix(command: str) -> str:
    # A determinant is a number and not the matrix: it keeps its name.
    return command if "vmatrix" in command else re.sub(r"\{.*\}", "{pmatrix}", command)


def clean(text: str) -> str:
    r"""Return the text as LaTeX that math_verify reads, without delimiters and layout.

    `$…$`, `\left`, spacing and font commands go; `\dfrac12` becomes `\frac{1}{2}`, `sqrt(5)` and
    `√5` become `\sqrt{5}`, `x**2` becomes `x^2`, typographic signs become commands.
    """
    s = re.sub(r"\s+", " ", text.translate(_UNICODE_TABLE)).strip()
    s = _outer_delimiters(s)
    # Row ends are put aside: `\\\\ 5` holds the space command `\\ ` as well.
    s = re.sub(r"\\\\(?=[A-Za-z])", r"\\", s) if "\\begin" not in s else s
    s = re.sub(r"\\\\(?:\[[^\]]{0,9}\])?", _ROW_END if "\\begin" in s else " ", s)
    for pattern, put in _COMMAND_RES:
        s = pattern.sub(put, s)
    s = s.replace("**", "^").replace("\\$", "").replace("$", "")
    s = re.sub(r"(?<![\\A-Za-z])(?:pi)(?![A-Za-z])", r"\\pi ", s)
    s = re.sub(r"(?<![\\A-Za-z])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty ", s)
    s = re.sub(rf"(?<![\\A-Za-z])({_FUNCTION_NAMES})(?=[(\s\d^])", r"\\\1", s)
    # math_verify takes `i` for the imaginary unit only where it stands by itself.
    s = re.sub(r"(?<=\d)i(?![A-Za-z])", " i", s)
    s = _square_roots(s)
    s = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", s)
    s = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", s)
    s = re.sub(r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}", s)
    s = re.sub(r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r" \\cdot ", s)
    s = s.replace(_ROW_END, r" \\ ")
    return re.sub(r"\s+", " ", s).strip().rstrip(".;,").strip()


def _outer_delimiters(s: str) -> str:
    for _ in range(3):
        s = s.strip().strip("`").strip().rstrip(".").strip()
        for opening, closing in (
            ("$$", "$$"),
            ("$", "$"),
            ("\\(", "\\)"),
            ("\\[", "\\]"),
            ("**", "**"),
        ):
            inner = s[len(opening) : len(s) - len(closing)]
            if len(s) > len(opening + closing) and s.startswith(opening) and s.endswith(closing):
                if opening in inner:
                    continue  # "$a$ and $b$" is two formulas
                s = inner.strip()
                break
        else:
            break
    return s


def _square_roots(s: str) -> str:
    s = s.replace("\u221a", r"\sqrt ")
    s = re.sub(r"(?<![\\A-Za-z])sqrt(?=\s*[({\d])", r"\\sqrt", s)
    for _ in range(s.count(r"\sqrt")):
        match = re.search(r"\\sqrt\s*\(", s)
        if match is None:
            break
        end = closing_bracket(s, match.end() - 1)
        if end is None:
            break
        s = f"{s[: match.start()]}\\sqrt{{{s[match.end() : end]}}}{s[end + 1 :]}"
    return re.sub(r"\\sqrt\s*(\d+|[A-Za-z])", _braced_root, s)


def _braced_root(match: re.Match[str]) -> str:
    # TeX takes one token (\sqrt51 is the root of 5, times 1), people write √51 for the root of 51.
    return rf"\sqrt{{{match.group(1)}}}"


def closing_bracket(text: str, start: int) -> int | None:
    """Return the place of the bracket that closes the one at `start`, or None.

    Kinds are not told apart: `(3,4]` closes.
    """
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "({[") - (text[i] in ")}]")
        if depth == 0:
            return i
    return None


def canonical(text: str) -> str:
    r"""Return the text for a comparison letter by letter: no spaces, no fonts, no spare braces."""
    s = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", clean(text))
    s = re.sub(r"\\(?:cdot|times)(?![A-Za-z])", "*", s)
    s = re.sub(r"\s+", "", s)
    s = re.sub(r"([\^_])\{(\w)\}", r"\1\2", s)
    return re.sub(r"(?<=[\d})])\*(?=[A-Za-z\\(])", "", s)


def words(text: str) -> str | None:
    r"""Return a text answer in small letters without its article, or None if it is a formula.

    `\text{Evelyn}`, `Evelyn.`, `"the east"` are texts; `p - q`, `PQ` and `\pi` are not.
    """
    s = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", clean(text))
    s = re.sub(r"\s+", " ", s).strip().strip("\"'*_.").strip()
    if r"\text" not in clean(text) and not re.search(r"[^\W\d_]{3}", s):
        return None  # n, PQ: variables, whose case counts
    if not re.fullmatch(
        r"[^\W\d_][^\W_]*(?:['-][^\W\d_]+)*(?:[ ,]{1,2}[^\W_]+(?:['-][^\W\d_]+)*)*", s
    ):
        return None
    return re.sub(r"^(?:the|an?) (?=.)", "", s.casefold())
