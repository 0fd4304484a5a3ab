"""Responses with a known verdict, for the two benchmarks of answer checking.

The first set is our table of pitfalls. The others are not ours: the reference solutions of the
data sets, read as if a model had written them, once with their own gold answer (right) and once
with that of another question (wrong, unless both golds are the same text).
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from harness_ext.extract import Kind

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "harness_ext" / "data" / "answer_cases.yaml"
SEED = 20261122


@dataclass(frozen=True)
class Response:
    """A final text, the gold answer, and whether it is right.

    `like` names the benchmark whose scorers apply; `why` is the rule, of table rows only.
    """

    set: str
    id: str
    like: str
    kind: Kind
    gold: str
    text: str
    right: bool
    options: tuple[str, ...] = ()
    why: str = ""


def table() -> list[Response]:
    """Return the rows of the table of pitfalls."""
    found = []
    for i, case in enumerate(yaml.safe_load(TABLE.read_text(encoding="utf-8"))["cases"]):
        text = case.get("text")
        if text is None:
            text = f"We add 3 and 8.\n\nThus the result is $\\boxed{{{case['answer']}}}$."
        found.append(
            Response(
                set="table",
                id=f"row {i + 1}",
                like=case["like"],
                kind=case.get("kind", "math"),
                gold=case["gold"],
                text=text,
                right=case["expect"] == "right",
                options=tuple(case.get("options", ())),
                why=case["why"],
            )
        )
    return found


def reference(folder: Path) -> list[Response]:
    """Return the reference solutions with their own gold answers and with other ones."""
    found = []
    for name, own in (
        ("math500", list(_math500(folder))),
        ("aime", list(_aime(folder))),
        ("gsm8k", list(_gsm8k(folder))),
        ("aqua", list(_aqua(folder))),
    ):
        found += own
        others = [r.text for r in own]
        random.Random(SEED).shuffle(others)
        golds = {r.text: r.gold for r in own}
        found += [
            Response(
                set=f"{name}, other question",
                id=r.id,
                like=r.like,
                kind=r.kind,
                gold=r.gold,
                text=text,
                right=_same_text(golds[text], r.gold),
                options=r.options,
            )
            for r, text in zip(own, others, strict=True)
        ]
    return found


def _same_text(a: str, b: str) -> bool:
    return a == b or (a.isdigit() and b.isdigit() and int(a) == int(b))


def _rows(folder: Path, name: str) -> Iterator[tuple[str, dict]]:
    with (folder / f"{name}_test.jsonl").open(encoding="utf-8") as lines:
        for i, line in enumerate(lines):
            yield f"{name}-{i:04d}", json.loads(line)


def _math500(folder: Path) -> Iterator[Response]:
    for i, row in _rows(folder, "math500"):
        yield Response("math500", i, "math500", "math", row["answer"], row["solution"], True)


def _aime(folder: Path) -> Iterator[Response]:
    # These files have no solutions: a sentence with the integer, without its leading zeros.
    for name in ("aime24", "aime25"):
        for i, row in _rows(folder, name):
            text = (
                f"For {i} we get $m+n = 4$ cases.\n\nThe result is \\boxed{{{int(row['answer'])}}}."
            )
            yield Response("aime", i, "aime", "number", row["answer"], text, True)


def _gsm8k(folder: Path) -> Iterator[Response]:
    for i, row in _rows(folder, "gsm8k"):
        gold = row["answer"].rpartition("####")[2].strip()
        yield Response("gsm8k", i, "gsm8k", "number", gold, row["answer"], True)


def _aqua(folder: Path) -> Iterator[Response]:
    for i, row in _rows(folder, "aqua"):
        yield Response(
            "aqua", i, "aqua", "choice", row["correct"], row["rationale"], True,
            tuple(row["options"]),
        )  # fmt: skip
