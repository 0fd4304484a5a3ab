r"""The shape of an answer: one expression, or a list, set, tuple, interval, union or matrix.

Shapes are taken apart here and compared element by element, because their rules are a matter of
what the question asked for and not of algebra: the order of a list is free and that of a point
is not, `(2, 3]` and `[2, 3]` differ, `x = 1 \text{ or } x = 2` is the list 1, 2.
"""

import re
from dataclasses import dataclass
from typing import Literal

from harness_ext.latex_text import clean, closing_bracket

Shape = Literal["scalar", "list", "set", "tuple", "union", "matrix"]

MAX_ITEMS = 64

_SYMBOL = r"(?:[A-Za-z]|\\[a-zA-Z]+)(?:_(?:\w|\{\w{1,8}\}))?(?:\([A-Za-z](?:, ?[A-Za-z])*\))?'?"
_ASSIGNED_RE = re.compile(
    rf"^({_SYMBOL}|\({_SYMBOL}(?:\s*,\s*{_SYMBOL})*\))\s*(?:=|\\in(?![a-z]))\s*(.+)$"
)
_AND_RE = re.compile(
    r"\s*,?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}|\\(?:l?or|vee|l?and)(?![A-Za-z])"
    r"|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*"
)
_RELATION_RE = re.compile(r"\s*(\\le|\\ge|<|>)(?![A-Za-z])\s*")
_VARIABLE_RE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda|phi)\s*")
_ALIASES = {
    r"\mathbb{R}": r"(-\infty, \infty)",
    r"\text{all real numbers}": r"(-\infty, \infty)",
    r"\emptyset": r"\{\}",
}


@dataclass(frozen=True)
class Form:
    """A shape and its elements.

    Attributes:
        shape: `scalar` has its text in `text`; the others have `items`.
        text: the expression of a scalar, cleaned.
        items: the elements; of a matrix the rows, each a `tuple`.
        brackets: of a tuple, "()", "[]", "(]" or "[)": a point or an interval.
        variable: what an inequality is about; None for an interval written with brackets.
    """

    shape: Shape
    text: str = ""
    items: "tuple[Form, ...]" = ()
    brackets: str = ""
    variable: str | None = None


def form_of(text: str) -> Form:
    """Return the shape of an answer."""
    return _form(clean(text), top=True)


def assigned(text: str) -> tuple[str | None, str]:
    """Return the symbol and the value of `x = 5`, `(x, y) = (1, 2)` or `x ∈ A`.

    The symbol is None where the text is no assignment; the value is then the text itself.
    """
    match = _ASSIGNED_RE.match(text)
    if not match or re.search(r"(?<![<>!])=", match.group(2)):
        return None, text
    return re.sub(r"\s+", "", match.group(1)), match.group(2).strip()


def _form(s: str, *, top: bool = False) -> Form:
    s = _ALIASES.get(s, s)
    symbol, value = assigned(s)
    if symbol is not None and (r"\in" in s[: len(s) - len(value)] or _is_structure(value)):
        s = _ALIASES.get(value, value)
    if top:
        s = _AND_RE.sub(", ", s)
        pieces = split_top(s, ",;")
        if len(pieces) > 1:
            return _several(pieces)
    if r"\cup" in s:
        pieces = split_top(s, r"\cup")
        if len(pieces) > 1:
            return Form("union", items=tuple(_form(p) for p in pieces))
    if interval := _inequality(s):
        return interval
    if s.startswith(r"\begin{pmatrix}") and s.endswith(r"\end{pmatrix}"):
        return _matrix(s)
    if s.startswith(r"\{") and s.endswith(r"\}") and closing_bracket(s, 1) == len(s) - 1:
        inner = s[2:-2].strip()
        if "|" not in inner and r"\mid" not in inner and ":" not in inner:
            inner = _AND_RE.sub(", ", inner)
            return Form("set", items=_elements(split_top(inner, ",;")) if inner else ())
    if s[:1] in ("(", "[") and closing_bracket(s, 0) == len(s) - 1 and s[-1] in ")]":
        pieces = split_top(s[1:-1], ",")
        if len(pieces) > 1:
            return Form("tuple", items=tuple(_form(p) for p in pieces), brackets=s[0] + s[-1])
        if s[0] == "(" and s[-1] == ")":
            return _form(s[1:-1].strip())
    both = _plus_minus(s)
    if len(both) > 1:
        return Form("list", items=tuple(Form("scalar", b) for b in both))
    return Form("scalar", s)


def _is_structure(value: str) -> bool:
    return value.startswith((r"\{", "(", "[", r"\begin")) or r"\cup" in value


def _several(pieces: list[str]) -> Form:
    """Return the list, or the union if every piece is an inequality or an interval."""
    forms = [_form(p) for p in pieces]
    if all(f.variable is not None for f in forms):
        return Form("union", items=tuple(forms), variable=forms[0].variable)
    return Form("list", items=_elements(pieces))


def _elements(pieces: list[str]) -> tuple[Form, ...]:
    """Return the forms of list elements, `a ± b` as two of them."""
    found: list[Form] = []
    for piece in pieces:
        form = _form(piece)
        found.extend(form.items if form.shape == "list" else (form,))
    return tuple(found)


def split_top(text: str, separators: str) -> list[str]:
    r"""Return the parts of a text between separators that stand outside of all brackets.

    Args:
        text: cleaned LaTeX.
        separators: characters, or one command such as `\cup`.
    """
    command = separators.startswith("\\")
    depth, start, parts, i = 0, 0, [], 0
    environments = 0
    while i < len(text):
        if text.startswith(r"\begin{", i):
            environments += 1
        elif text.startswith(r"\end{", i):
            environments -= 1
        depth += (text[i] in "({[") - (text[i] in ")}]")
        width = len(separators) if command else 1
        hit = text.startswith(separators, i) if command else text[i] in separators
        if hit and depth == 0 and environments == 0:
            parts.append(text[start:i].strip())
            start = i + width
            i += width
            continue
        i += 1
    parts.append(text[start:].strip())
    return [p for p in parts if p]


def _plus_minus(s: str) -> list[str]:
    count = s.count(r"\pm")
    if not count or count > 2 or r"\mp" in s or "=" in s.split(r"\pm")[-1]:
        return [s]
    found = [s]
    for _ in range(count):
        found = [f.replace(r"\pm", sign, 1) for f in found for sign in ("+", "-")]
    return [re.sub(r"^\s*\+\s*", "", re.sub(r"=\s*\+", "= ", f)).strip() for f in found]


def _inequality(s: str) -> Form | None:
    """Return the interval of an inequality that is solved for its variable, or None.

    `x^2 < 4` is not: it repeats the question.
    """
    parts = _RELATION_RE.split(s)
    if len(parts) == 3:
        left, sign, right = parts
        if _VARIABLE_RE.fullmatch(right):
            left, right, sign = right, left, {"<": ">", ">": "<", r"\le": r"\ge"}.get(sign, r"\le")
        if not _VARIABLE_RE.fullmatch(left) or not _constant(right, left):
            return None
        infinity = Form("scalar", r"\infty"), Form("scalar", r"-\infty")
        bound, variable = _form(right), left.strip()
        if sign in ("<", r"\le"):
            brackets = "()" if sign == "<" else "(]"
            return Form("tuple", items=(infinity[1], bound), brackets=brackets, variable=variable)
        brackets = "()" if sign == ">" else "[)"
        return Form("tuple", items=(bound, infinity[0]), brackets=brackets, variable=variable)
    if len(parts) == 5:
        low, first, middle, second, high = parts
        if {first, second} <= {">", r"\ge"}:
            turned = {">": "<", r"\ge": r"\le"}
            low, first, second, high = high, turned[second], turned[first], low
        rising = {first, second} <= {"<", r"\le"}
        if not rising or not _VARIABLE_RE.fullmatch(middle):
            return None
        if not (_constant(low, middle) and _constant(high, middle)):
            return None
        brackets = ("[" if first == r"\le" else "(") + ("]" if second == r"\le" else ")")
        items = (_form(low), _form(high))
        return Form("tuple", items=items, brackets=brackets, variable=middle.strip())
    return None


def _constant(text: str, variable: str) -> bool:
    bare = re.sub(r"\\[A-Za-z]+", " ", text)
    return bool(text.strip()) and variable.strip() not in bare and "=" not in text


def _matrix(s: str) -> Form:
    body = s.removeprefix(r"\begin{pmatrix}").removesuffix(r"\end{pmatrix}")
    rows = [row.strip() for row in body.split("\\\\") if row.strip()]
    return Form(
        "matrix",
        items=tuple(
            Form("tuple", items=tuple(_form(cell.strip()) for cell in row.split("&")))
            for row in rows
        ),
    )
