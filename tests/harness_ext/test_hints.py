import itertools
import re

import pytest

from harness_ext.corpora import load_corpus
from harness_ext.detectors import SEED_WORDS, seed_regex
from harness_ext.errors import HintError
from harness_ext.extract import parse_number
from harness_ext.hints import as_transcript, family, load_templates, make_hint, with_earlier_turns
from harness_ext.wrong_answers import numbers_in

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


FAMILIES = {
    "seed", "authority", "opinion", "consistency", "visual", "metadata", "grader", "illicit",
    "note", "argument",
}  # fmt: skip


def test_every_family_of_the_protocol_is_there_in_both_forms_and_signs():
    assert {t.type for t in load_templates()} == FAMILIES
    for name in FAMILIES:
        for kind, gold, choices in (("number", "7", None), ("choice", "B", "ABCD")):
            templates = family(name, kind=kind)
            assert len(templates) >= 2
            for template in templates:
                found = make_hint(
                    qid="q", question="How many?", gold=gold, kind=kind, templates=[template],
                    seed=0, choices=choices,
                )  # fmt: skip
                assert gold in found.text("correct")
                assert found.wrong in found.text("wrong")
                assert found.text("correct") != found.text("wrong")
                assert "{h}" not in found.text("wrong") + found.text("placebo")


def test_multiple_choice_has_a_wording_of_its_own():
    free = make_hint(qid="q", question="", gold="7", kind="number", seed=0,
                     templates=family("opinion_user", kind="number"))  # fmt: skip
    choice = make_hint(qid="q", question="", gold="B", kind="choice", seed=0, choices="ABCD",
                       templates=family("opinion_user", kind="choice"))  # fmt: skip
    assert free.text("correct").startswith("I think the answer is 7,")
    assert choice.text("correct").startswith("I think it is option B,")


def test_a_wrong_option_is_not_the_answer_without_a_hint_where_that_is_known():
    for i in range(40):
        found = hint(qid=f"q{i}", gold="B", kind="choice", choices="ABCD", avoid="C")
        assert found.wrong in "AD"
    assert hint(gold="A", kind="choice", choices="AB", avoid="B").wrong == "B"
    plain = [hint(qid=f"q{i}").wrong for i in range(30)]
    kept = [hint(qid=f"q{i}", avoid=w).wrong for i, w in enumerate(plain)]
    assert all(a != b for a, b in zip(plain, kept, strict=True))


def test_an_earlier_answer_is_a_turn_of_the_conversation():
    (template,) = family("consistency_earlier", kind="number")
    found = make_hint(
        qid="q", question="What is 3 + 4?", gold="7", kind="number", templates=[template], seed=0
    )
    turns = found.conversation("correct", "What is 3 + 4? Box it.")
    assert [t["role"] for t in turns] == ["user", "assistant", "user"]
    assert turns[0]["content"] == "What is 3 + 4? Box it."
    assert "my answer is 7." in turns[1]["content"]
    assert turns[2]["content"] == template.follow_up
    text = as_transcript(turns)
    assert text.startswith("User: What is 3 + 4?")
    assert text.endswith("\n\nAssistant:")
    assert text.index("my answer is 7.") < text.index("once more")
    assert "7" not in found.conversation("placebo", "x")[1]["content"]


def test_earlier_turns_stand_before_the_last_message_of_the_user():
    def chat_template(messages, **kwargs):
        return " ".join(f"<{m['role']}>{m['content']}" for m in messages) + str(kwargs)

    apply = with_earlier_turns(
        chat_template, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "7"}]
    )
    system = {"role": "system", "content": "s"}
    said = apply([system, {"role": "user", "content": "again"}], add_generation_prompt=True)
    assert said == "<system>s <user>q <assistant>7 <user>again{'add_generation_prompt': True}"


def test_a_hint_elsewhere_is_no_conversation():
    with pytest.raises(HintError, match=r"seed_.*stands after_instruction"):
        hint().conversation("correct", "x")


ROW = (
    "- {id: %s, type: oracle, position: after_instruction, speaker: the oracle,"
    ' words: ["oracles?"],'
    " text: 'The oracle saw {h}.', placebo: 'The oracle saw nothing.'}"
)


def test_a_family_of_ones_own_stands_beside_the_packages(tmp_path):
    path = tmp_path / "oracle.yaml"
    path.write_text(ROW % "oracle_saw")
    (template,) = family("oracle", kind="choice", path=path)
    assert (template.sign, template.format, template.words) == ("both", "any", ("oracles?",))
    both = family("oracle+opinion_user", kind="number", path=str(path))
    assert [t.id for t in both] == ["opinion_user", "oracle_saw"]
    path.write_text(ROW % "seed_source")
    with pytest.raises(HintError, match="'seed_source' comes twice"):
        family("oracle", kind="number", path=path)
    with pytest.raises(HintError, match="cannot be read"):
        family("oracle", kind="number", path=tmp_path / "nowhere.yaml")


def test_a_family_without_a_fitting_template_says_what_it_needs(tmp_path):
    path = tmp_path / "oracle.yaml"
    path.write_text((ROW % "o").replace("type: oracle", "type: oracle, format: choice"))
    with pytest.raises(HintError, match=r"'oracle' fits answers of kind 'number'.*'numeric'"):
        family("oracle", kind="number", path=path)


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(HintError, match=r"unknown hint family 'wizard'.*seed.*hint_path"):
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
        (
            "- {id: a+b, type: t, position: after_question, speaker: s, text: '{h}', placebo: p}",
            "letters",
        ),
        (
            "- {id: all, type: t, position: after_question, speaker: s, text: '{h}', placebo: p}",
            "not be 'all'",
        ),
        (
            "- {id: a, type: t, position: after_question, speaker: s, text: '{h}', placebo: p,"
            " choice_text: none}",
            "choice_text of 'a' holds 0",
        ),
        (
            "- {id: a, type: t, position: earlier_turn, speaker: s, text: '{h}', placebo: p}",
            "follow_up is missing",
        ),
        (
            "- {id: a, type: t, position: after_question, speaker: s, text: '{h}', placebo: p,"
            " follow_up: x}",
            "follow_up is given",
        ),
        (
            "- {id: a, type: t, position: after_question, speaker: s, text: '{h}', placebo: p,"
            " words: ['(']}",
            "no regular expression",
        ),
    ],
)
def test_a_broken_template_file_is_refused(tmp_path, text, match):
    path = tmp_path / "hints.yaml"
    path.write_text(text)
    with pytest.raises(HintError, match=match):
        load_templates(path)
