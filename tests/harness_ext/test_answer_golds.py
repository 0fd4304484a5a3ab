"""Every gold answer of the real data sets against itself, respelled, and against the others.

The data are not part of the project: set SAE_STEERED_DATA to a folder that holds them.
"""

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness_ext.extract import Kind
from harness_ext.verifier import compare, score

FOLDER = os.environ.get("SAE_STEERED_DATA")
pytestmark = pytest.mark.skipif(not FOLDER, reason="SAE_STEERED_DATA is not set")

SETS: dict[str, tuple[Kind, Callable[[dict[str, Any]], str], int]] = {
    "math500": ("math", lambda row: row["answer"], 500),
    "aime24": ("number", lambda row: row["answer"], 30),
    "aime25": ("number", lambda row: row["answer"], 30),
    "gsm8k": ("number", lambda row: row["answer"].rpartition("####")[2].strip(), 1319),
    "aqua": ("choice", lambda row: row["correct"], 254),
}


def golds(name):
    path = Path(FOLDER or "") / f"{name}_test.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in SAE_STEERED_DATA")
    kind, gold, rows = SETS[name]
    found = [gold(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(found) == rows
    return kind, found


def boxed(answer):
    return (
        f"Option (A) and 17 are out, $x = 3$. The result is $\\boxed{{{answer}}}$. Done in 9 steps."
    )


def plain(gold):
    """Return what two golds have in common that say the same: digits, letters, signs."""
    bare = re.sub(r"\\(?:text|mbox|frac|\$|circ|!|left|right)|[\s{}$^,]", "", gold)
    return "".join(sorted(bare)), bool(re.search(r"[-(\[]", gold))


@pytest.mark.parametrize("name", SETS)
def test_every_gold_is_right_in_a_boxed_sentence(name):
    kind, found = golds(name)
    wrong = [g for g in found if not score(boxed(g), g, kind=kind, truncated=False).correct]
    assert wrong == []


SENTENCES = [
    "**Final Answer**\n\\[\n\\boxed{%s}\n\\]\n",
    "Therefore, the final answer is: $\\boxed{%s}$. I hope it is correct",
    "The final answer is $%s$. I hope it is correct.",
    "The answer is %s.",
    "**Answer:** %s",
    "**Answer: $%s$**",
    "The final answer is \\(%s\\).",
    "The final answer is:\n\n\\[ %s \\]\n",
    "The final answer is:\n$$\n%s\n$$\n",
    "So $\\boxed{%s}$, within \\boxed{}.",
    "#### %s",
]


@pytest.mark.parametrize("name", SETS)
def test_every_gold_is_right_in_the_usual_sentences(name):
    kind, found = golds(name)
    wrong = [
        (gold, sentence)
        for gold in sorted(set(found))
        for sentence in SENTENCES
        if not score(sentence % gold, gold, kind=kind, truncated=False).correct
    ]
    assert wrong == []


@pytest.mark.parametrize("name", SETS)
def test_the_gold_of_another_question_is_wrong_unless_it_says_the_same(name):
    kind, found = golds(name)
    others = list(found)
    random.Random(20261122).shuffle(others)
    equal = [
        (gold, other)
        for gold, other in zip(found, others, strict=True)
        if gold != other and score(boxed(other), gold, kind=kind, truncated=False).correct
    ]
    assert [(g, o) for g, o in equal if plain(g)[0] != plain(o)[0]] == []
    assert len(equal) <= len(found) // 50


RESPELLINGS = [
    lambda g: g.replace(r"\frac", r"\dfrac"),
    lambda g: g.replace(r"\dfrac", r"\frac"),
    lambda g: (
        re.sub(r"(?<!\\left)(?<!\\)\(", r"\\left(", g).replace(")", r"\right)")
        if r"\left" not in g and r"\right" not in g and r"\text" not in g
        else g
    ),
    lambda g: g.replace(r"\left", "").replace(r"\right", ""),
    lambda g: g.replace("pmatrix", "bmatrix"),
    lambda g: re.sub(r"(?<=[-+=,\d}]) | (?=[-+=,\d\\])", "", g) if r"\text" not in g else g,
    lambda g: re.sub(r"(?<=[\d}])(?=[-+=])", r" \\, ", g),
    lambda g: re.sub(r"\\sqrt(\d)", r"\\sqrt{\1}", g),
    lambda g: re.sub(r"(?<!\d)(?<!\d )\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", g),
    lambda g: f"${g}$",
    lambda g: rf"\({g}\)",
    lambda g: rf"\text{{{g}}}" if re.fullmatch(r"-?\d+", g) else g,
    lambda g: f"{g}.",
    lambda g: f"x = {g}" if re.fullmatch(r"-?\d+|\\frac\{\d+\}\{\d+\}|\d*\\sqrt\{\d+\}", g) else g,
    lambda g: f"{g}.00" if re.fullmatch(r"-?\d+", g) else g,
    lambda g: f"00{g}" if re.fullmatch(r"\d+", g) else g,
]


@pytest.mark.parametrize("name", ["math500", "gsm8k", "aime24"])
def test_every_gold_is_right_in_other_spellings(name):
    _, found = golds(name)
    wrong = [
        (gold, spelled)
        for gold in sorted(set(found))
        for respell in RESPELLINGS
        if (spelled := respell(gold)) != gold and compare(gold, spelled) != "equal"
    ]
    assert wrong == []


def test_math_verify_reads_every_expression_of_math500():
    """`gold + 0` is right and `gold + 1` is wrong: neither can be settled letter by letter."""
    _, found = golds("math500")
    expression = re.compile(r"(?!.*(?:\\text|\\mbox|\\begin|\\pm|\\circ|\\\$|\\in|[=_,(\[]))\S.*")
    chosen = [g for g in sorted(set(found)) if expression.fullmatch(g) and not g.isdigit()]
    assert len(chosen) >= 80
    assert [g for g in chosen if compare(g, f"{g} + 0") != "equal"] == []
    assert [g for g in chosen if compare(g, f"{g} + 1") != "different"] == []
