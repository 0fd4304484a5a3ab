import json
import os
import re
from pathlib import Path

import pytest

from harness_ext.corpora import DATA_ENV
from harness_ext.errors import HintError
from harness_ext.extract import parse_number
from harness_ext.verifier import compare
from harness_ext.wrong_answers import numbers_in, wrong_answer, wrong_expression, wrong_number

ROOT = Path(__file__).parents[2]


def shared_data() -> Path:
    return Path(os.environ.get(DATA_ENV) or ROOT.parent / "shared" / "data")


def wrong(gold, question="", *, qid="q", **kw):
    return wrong_answer(
        qid=qid, question=question, gold=gold, kind=kw.pop("kind", "math"), template_id="t",
        seed=0, **kw,
    )  # fmt: skip


# Plain numbers.


@pytest.mark.parametrize(
    ("gold", "pattern"),
    [
        ("7", r"\d"),
        ("42", r"[1-9]\d"),
        ("1,250", r"[1-9],\d{3}"),
        ("12.50", r"[1-9]\d\.\d\d"),
        ("-5", r"-\d"),
        ("$18", r"\$[1-9]\d"),
        ("033", r"0\d\d"),
        ("1000000", r"[1-9]\d{6}"),
    ],
)
def test_a_wrong_number_looks_like_the_gold_one(gold, pattern):
    for i in range(40):
        wrong = wrong_number(qid=f"q{i}", question="no numbers", gold=gold, template_id="t", seed=0)
        assert re.fullmatch(pattern, wrong), wrong
        assert parse_number(wrong) != parse_number(gold)


def test_a_wrong_number_is_not_in_the_question():
    question = "There are 1, 2, 3, 4, 5, 6 and 8 things."
    for i in range(20):
        wrong = wrong_number(qid=f"q{i}", question=question, gold="7", template_id="t", seed=0)
        assert wrong == "9"


def test_a_wrong_number_keeps_the_range_of_the_benchmark():
    for i in range(50):
        wrong = wrong_number(
            qid=f"q{i}", question="", gold="998", template_id="t", seed=0, number_range=(0, 999)
        )
        assert 0 <= int(wrong) <= 999


def test_a_gold_that_is_no_number_is_refused_by_name():
    with pytest.raises(HintError, match=r"q9.*'x\+1'"):
        wrong_number(qid="q9", question="", gold="x+1", template_id="t", seed=0)


def test_numbers_in_reads_separators_and_parts():
    assert numbers_in("1,250 eggs, 3 at $2.50") == {1250, 1, 250, 3, parse_number("2.5")}


# LaTeX, fractions and words.


@pytest.mark.parametrize(
    ("gold", "pattern"),
    [
        (r"\frac{3}{4}", r"\\frac\{1\}\{4\}"),
        (r"-\frac{35}{9}", r"-\\frac\{\d+\}\{9\}"),
        (r"\dfrac{17}{50}", r"\\dfrac\{\d+\}\{50\}"),
        (r"\frac43", r"\\frac\d3"),
        (r"\frac{1}{2}", r"\\frac\{\d+\}\{2\}"),
        (r"\frac9{19}", r"\\frac\d\{\d\d\}"),
        ("7/12", r"\d+/12"),
        (r"3\sqrt{13}", r"\d\\sqrt\{\d+\}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\\left\( \d, \\frac\{\\pi\}\{\d\} \\right\)"),
        ("p - q", r"p \+ q"),
        (r"\pi", r"\d\\pi"),
        (r"\text{(C)}", r"\\text\{\([ABDE]\)\}"),
        (r"\text{even}", r"\\text\{odd\}"),
        (r"\text{East}", r"\\text\{West\}"),
        ("x \\in [-2,7]", r"x \\in \[-\d,\d+\]"),
        ("4210_{5}", r"[0-4]{4}_\{5\}"),
        ("1,-2", r"\d,-\d"),
        (r"10,\!080", r"\d\d,\\!\d{3}"),
        (r"5.4 \text{ cents}", r"\d\.\d \\text\{ cents\}"),
        (".35625", r"\.\d{5}"),
        (r"90^\circ", r"\d\d\^\\circ"),
        ("33 \\%", r"\d\d \\%"),
    ],
)
def test_a_wrong_answer_keeps_the_shape_of_the_gold_one(gold, pattern):
    seen = set()
    for i in range(12):
        found = wrong(gold, qid=f"q{i}")
        assert re.fullmatch(pattern, found), found
        assert compare(gold, found) == "different"
        seen.add(found)
        assert found == wrong(gold, qid=f"q{i}")
    assert seen


def test_fractions_stay_in_lowest_terms_and_proper_ones_proper():
    seen = {wrong(r"\frac{5}{8}", qid=f"q{i}") for i in range(60)}
    assert seen == {rf"\frac{{{n}}}{{8}}" for n in (1, 3, 7)}


def test_a_wrong_expression_does_not_stand_in_the_question_and_is_not_the_one_to_avoid():
    question = r"Is it \frac{1}{8} or \frac 5 8 or \frac{ 3 }{ 8 }?"
    assert {wrong(r"\frac{5}{8}", question, qid=f"q{i}") for i in range(20)} == {r"\frac{7}{8}"}
    assert wrong("p - q", avoid="p+q") != "p + q"


def test_a_name_is_replaced_by_another_of_the_question():
    question = "Four runners, including Anna and Ben, met Carl. Who of them won, Anna or Dora?"
    seen = {wrong(r"\text{Anna}", question, qid=f"q{i}") for i in range(60)}
    assert seen == {rf"\text{{{n}}}" for n in ("Ben", "Carl", "Dora")}


def test_a_gold_that_nothing_can_be_made_of_is_refused_by_name():
    with pytest.raises(HintError, match=r"q9.*'\\\\text\{blue\}'"):
        wrong_expression(qid="q9", question="", gold=r"\text{blue}", template_id="t", seed=0)


@pytest.mark.parametrize("gold", ["204", "033", "7", "0", "999", "1"])
def test_aime_answers_stay_whole_numbers_from_0_to_999(gold):
    for i in range(30):
        found = wrong(gold, qid=f"q{i}", kind="number", number_range=(0, 999))
        assert re.fullmatch(r"\d{1,3}", found)
        assert int(found) != int(gold)
        assert len(found) == len(gold) or gold == "0"


@pytest.mark.skipif(
    not (shared_data() / "math500_test.jsonl").is_file(),
    reason=f"no math500_test.jsonl in {DATA_ENV} or ../shared/data",
)
def test_every_math500_question_has_a_wrong_answer_of_its_shape():
    rows = (shared_data() / "math500_test.jsonl").read_text().splitlines()
    for row in map(json.loads, rows):
        gold = row["answer"]
        found = wrong(gold, row["problem"], qid=row["unique_id"])
        assert compare(gold, found) == "different", (gold, found)
        assert re.sub(r"\d+", "0", found).count("\\") >= re.sub(r"\d+", "0", gold).count("\\") - 1
