import itertools
import re

import pytest

from harness_ext.corpora import load_corpus
from harness_ext.detectors import SEED_WORDS, seed_regex
from harness_ext.errors import HintError
from harness_ext.extract import parse_number
from harness_ext.hints import family, load_templates, make_hint, numbers_in, wrong_number

SEED_IDS = ["seed_expert", "seed_professor", "seed_source", "seed_stanford", "seed_teacher"]


def hint(qid="q1", question="What is 3 + 4?", gold="7", seed=0, name="seed", **kw):
    kind = kw.pop("kind", "number")
    return make_hint(
        qid=qid,
        question=question,
        gold=gold,
        kind=kind,
        seed=seed,
        templates=family(name, kind=kind),
        **kw,
    )


def test_the_seed_family_is_the_five_speakers():
    assert [t.id for t in family("seed", kind="number")] == SEED_IDS
    assert set(SEED_WORDS) == set(SEED_IDS)


def test_every_template_says_the_answer_and_its_placebo_does_not():
    for template in load_templates():
        assert "{h}" in template.text
        assert "{h}" not in template.placebo
        assert not re.search(r"\d", template.placebo)


def test_each_seed_text_holds_its_own_word_in_hint_and_placebo():
    for template in family("seed", kind="number"):
        assert seed_regex(template.text, template.id)
        assert seed_regex(template.placebo, template.id)


def test_the_same_question_always_gets_the_same_hint_whatever_the_order_of_templates():
    templates = family("seed", kind="number")
    first = hint()
    for order in itertools.islice(itertools.permutations(templates), 20):
        again = make_hint(
            qid="q1", question="What is 3 + 4?", gold="7", kind="number", templates=order, seed=0
        )
        assert again == first


def test_the_choice_of_speaker_depends_on_question_and_seed_and_uses_all():
    chosen = [hint(qid=f"q{i}").template.id for i in range(300)]
    assert set(chosen) == set(SEED_IDS)
    assert all(chosen.count(i) > 30 for i in SEED_IDS)
    other = [hint(qid=f"q{i}", seed=1).template.id for i in range(300)]
    assert chosen != other


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


def test_a_wrong_option_is_another_one():
    seen = set()
    for i in range(60):
        found = hint(qid=f"q{i}", gold="B", kind="choice", choices=["A", "B", "C", "D"])
        seen.add(found.wrong)
    assert seen == {"A", "C", "D"}


def test_arms_say_what_they_should():
    found = hint()
    assert found.text("correct").endswith("the answer is 7.")
    assert found.text("wrong").endswith(f"the answer is {found.wrong}.")
    assert found.text("placebo") == found.template.placebo


def test_numbers_in_reads_separators_and_parts():
    assert numbers_in("1,250 eggs, 3 at $2.50") == {1250, 1, 250, 3, parse_number("2.5")}


def test_every_embedded_item_gets_a_valid_wrong_hint():
    templates = family("all", kind="number")
    for row in load_corpus("arith").rows:
        made = make_hint(
            qid=row["qid"],
            question=row["question"],
            gold=row["answer"],
            kind="number",
            templates=templates,
            seed=0,
        )
        assert made.wrong != row["answer"]
        assert parse_number(made.wrong) not in numbers_in(row["question"])
        assert made.wrong.isdigit()


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(HintError, match=r"unknown hint family 'wizard'.*seed"):
        family("wizard", kind="number")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("- {id: a}", "type"),
        ("[]", "expected a list"),
        ("{a: 1}", "expected a list"),
        ("- [", "cannot be read as YAML"),
        (
            "- {id: a, type: t, sign: both, format: any, position: after_question, speaker: s,"
            " text: no hole, placebo: p}",
            "needs 1",
        ),
        (
            "- {id: a, type: t, sign: both, format: any, position: after_question, speaker: s,"
            " text: '{h}', placebo: '{h}'}",
            "placebo",
        ),
        (
            "- {id: a, type: t, sign: both, format: any, position: nowhere, speaker: s,"
            " text: '{h}', placebo: p}",
            "position",
        ),
        (
            "- &x {id: a, type: t, sign: both, format: any, position: after_question, speaker: s,"
            " text: '{h}', placebo: p}\n- *x",
            "comes twice",
        ),
        (
            "- {id: a, type: t, sign: both, format: any, position: after_question, speaker: s,"
            " text: '{h}', placebo: p, extra: 1}",
            "extra",
        ),
    ],
)
def test_a_broken_template_file_is_refused(tmp_path, text, match):
    path = tmp_path / "hints.yaml"
    path.write_text(text)
    with pytest.raises(HintError, match=match):
        load_templates(path)
