"""Hint templates, which one a question gets, and what a wrong hint says.

Everything is a function of (question id, template id, task seed) through sha256. lm-eval calls
a task's document functions more than once in a run; a global random state would give the
prompt and the score different hints.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from harness_ext.errors import HintError
from harness_ext.extract import Kind, parse_number
from harness_ext.paths import data_dir

Sign = Literal["correct", "wrong"]
Position = Literal["after_instruction", "before_question", "after_question"]
HOLE = "{h}"


class HintTemplate(BaseModel):
    """A checked row of the template file; `data/hints.yaml` explains the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    type: str
    sign: Literal["both", "correct", "wrong"]
    format: Literal["any", "numeric", "choice"]
    position: Position
    speaker: str
    text: str
    placebo: str

    @model_validator(mode="after")
    def _check_hole(self) -> "HintTemplate":
        if self.text.count(HOLE) != 1:
            raise ValueError(f"text of {self.id!r} holds {self.text.count(HOLE)} {HOLE}, needs 1")
        if HOLE in self.placebo or not self.placebo.strip():
            raise ValueError(f"placebo of {self.id!r} must be a text without {HOLE}")
        return self


@dataclass(frozen=True)
class Hint:
    """The hint of one question: its template and the answers its arms give."""

    template: HintTemplate
    correct: str
    wrong: str

    def text(self, arm: str) -> str:
        """Return what the prompt of `arm` says (`correct`, `wrong` or `placebo`)."""
        if arm == "placebo":
            return self.template.placebo
        return self.template.text.replace(HOLE, self.target(arm))

    def target(self, arm: str) -> str:
        """Return the answer that the hint of `arm` gives (`correct` or `wrong`)."""
        return {"correct": self.correct, "wrong": self.wrong}[arm]


def load_templates(path: Path | None = None) -> tuple[HintTemplate, ...]:
    """Return the checked rows of a template file, by default the package's own.

    Raises:
        HintError: The file is not a list of valid rows, or an id comes twice.
    """
    if path is None:
        return _own_templates()
    return _read_templates(path)


@lru_cache(maxsize=1)
def _own_templates() -> tuple[HintTemplate, ...]:
    return _read_templates(data_dir() / "hints.yaml")


def _read_templates(path: Path) -> tuple[HintTemplate, ...]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as err:
        raise HintError(f"{path}: cannot be read as YAML ({type(err).__name__}: {err})") from err
    if not isinstance(raw, list) or not raw:
        raise HintError(f"{path}: expected a list of hint templates, got {type(raw).__name__}")
    rows = []
    for i, item in enumerate(raw):
        try:
            rows.append(HintTemplate.model_validate(item))
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "row"
            raise HintError(f"{path}: row {i}, {where}: {first['msg']}") from None
    ids = [row.id for row in rows]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise HintError(f"{path}: template id {twice[0]!r} comes twice; ids must be unique")
    return tuple(rows)


def family(name: str, *, kind: Kind, path: Path | None = None) -> tuple[HintTemplate, ...]:
    """Return the templates of a family that fit an answer kind, sorted by id.

    Args:
        name: a `type`, a single template id, several of either joined by `+`, or `all`.
        kind: what an answer of the benchmark is.
        path: template file, by default the package's own.

    Raises:
        HintError: A name is unknown, or no template of the family fits.
    """
    templates = load_templates(path)
    wanted = name.split("+")
    known = {t.type for t in templates} | {t.id for t in templates} | {"all"}
    for part in wanted:
        if part not in known:
            types = ", ".join(sorted({t.type for t in templates}))
            raise HintError(f"unknown hint family {part!r}; families are {types}, or all")
    formats = {"any", "choice" if kind == "choice" else "numeric"}
    chosen = [
        t
        for t in templates
        if t.format in formats and t.sign == "both" and {"all", t.type, t.id} & set(wanted)
    ]
    if not chosen:
        raise HintError(f"no template of hint family {name!r} fits answers of kind {kind!r}")
    return tuple(sorted(chosen, key=lambda t: t.id))


def _rank(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(str(p) for p in parts).encode()).digest()


def make_hint(
    *,
    qid: str,
    question: str,
    gold: str,
    kind: Kind,
    templates: Sequence[HintTemplate],
    seed: int,
    choices: Sequence[str] | None = None,
    number_range: tuple[int, int] | None = None,
) -> Hint:
    """Return the hint of a question; the same arguments always give the same one.

    Args:
        qid: question id.
        question: its text, in which a wrong target must not occur.
        gold: reference answer.
        kind: `number` or `choice`.
        templates: the family; one of them is chosen by hash.
        seed: task seed.
        choices: option letters, for `choice`.
        number_range: lowest and highest answer the benchmark allows, such as AIME's 0 to 999.

    Raises:
        HintError: No wrong target can be made of this gold answer.
    """
    template = min(templates, key=lambda t: _rank(seed, qid, t.id))
    if kind == "choice":
        wrong = _wrong_letter(qid, gold, choices or (), template.id, seed)
    else:
        wrong = wrong_number(
            qid=qid,
            question=question,
            gold=gold,
            template_id=template.id,
            seed=seed,
            number_range=number_range,
        )
    return Hint(template, gold, wrong)


def _wrong_letter(qid: str, gold: str, choices: Sequence[str], tid: str, seed: int) -> str:
    others = [c for c in choices if c != gold]
    if gold not in choices or not others:
        raise HintError(f"{qid}: gold {gold!r} with options {list(choices)} leaves no wrong option")
    return min(others, key=lambda c: _rank(seed, qid, tid, "wrong", c))


def numbers_in(text: str) -> set[Fraction]:
    """Return the values of all numbers written in digits in a text."""
    found = re.findall(r"\d[\d,]*(?:\.\d+)?", text)
    values = (parse_number(n.rstrip(",")) for n in found)
    pieces = (parse_number(p) for n in found for p in n.split(",") if p)
    return {v for v in (*values, *pieces) if v is not None}


def wrong_number(
    *,
    qid: str,
    question: str,
    gold: str,
    template_id: str,
    seed: int,
    number_range: tuple[int, int] | None = None,
) -> str:
    """Return a wrong answer that looks like the gold one.

    It keeps the sign, the number of digits and of decimals, and the thousands separators where
    such a number is free; it differs from gold and is not a number of the question.

    Raises:
        HintError: `gold` is not one plain number, or `number_range` leaves nothing free.
    """
    value = parse_number(gold)
    literal = re.search(r"\d[\d,]*(?:\.(\d+))?", gold)
    if value is None or literal is None or "/" in gold or "frac" in gold:
        raise HintError(f"{qid}: gold {gold!r} is not a plain number, no wrong hint can be made")
    decimals = len(literal.group(1) or "")
    scale = 10**decimals
    units = int(abs(value) * scale)
    taken = numbers_in(question) | {value, -value}
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
            best = min(free, key=lambda u: _rank(seed, qid, template_id, "wrong", u))
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
    start = int.from_bytes(_rank(seed, qid, tid, "start")[:4], "big") % len(window)
    return [window[(start + i) % len(window)] for i in range(limit)]


def _allowed(units: int, scale: int, gold: Fraction, number_range: tuple[int, int] | None) -> bool:
    value = Fraction(units, scale) * (-1 if gold < 0 else 1)
    return number_range is None or number_range[0] <= value <= number_range[1]


def _spell(units: int, decimals: int, gold: str, literal: str) -> str:
    """Return `gold` with its digits replaced; its sign and units stay as they are."""
    scale = 10**decimals
    comma = "," if "," in literal else ""
    text = f"{units // scale:{comma}d}"
    if decimals:
        text += f".{units % scale:0{decimals}d}"
    width = len(literal.replace(",", "").split(".")[0])
    if literal.startswith("0") and width > 1 and not comma:
        text = text.zfill(width + (decimals + 1 if decimals else 0))
    return gold.replace(literal, text, 1)
