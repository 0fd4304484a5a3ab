"""Every known pitfall of answer checking, one row of data/answer_cases.yaml each."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from harness_ext.verifier import score

TABLE = Path(__file__).with_name("data") / "answer_cases.yaml"
DATA = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
KEYS = {"gold", "answer", "text", "kind", "options", "expect", "why", "like", "source"}
VERDICTS = {"right", "wrong", "no_answer", "parse_error", "limit"}


def name(case):
    return f"{case['gold']} <- {case.get('answer', case.get('text'))}"[:70]


def verdict(case):
    text = case.get("text")
    if text is None:
        text = f"We compute 3 + 8 and so on.\n\nThus the result is $\\boxed{{{case['answer']}}}$."
    scored = score(
        text,
        case["gold"],
        kind=case.get("kind", "math"),
        truncated=False,
        options=case.get("options"),
    )
    if scored.status != "answered":
        return scored.status
    return "right" if scored.correct else "wrong"


@pytest.mark.parametrize("case", DATA["cases"], ids=name)
def test_a_known_pitfall(case):
    assert verdict(case) == case["expect"], case["why"]


def test_the_table_itself():
    cases = DATA["cases"]
    assert len(cases) >= 120
    assert {key for case in cases for key in case} <= KEYS
    assert {case["expect"] for case in cases} == VERDICTS
    assert all(case["why"] and ("answer" in case) != ("text" in case) for case in cases)
    used = {case["source"] for case in cases if "source" in case}
    assert used == set(DATA["sources"]), "every source is used, every used one has its address"
    twice = Counter(
        (c["gold"], c.get("answer"), c.get("text"), str(c.get("options"))) for c in cases
    )
    assert max(twice.values()) == 1
