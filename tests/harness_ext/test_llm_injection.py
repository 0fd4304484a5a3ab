"""Texts that try to win over their judge: they stay in their field, and decide nothing."""

import json
import re
import time

import pytest

from harness_ext.llm.attacks import TARGETS, attacked, load_attacks, measure
from harness_ext.llm.judge import judge, judge_ask, show
from harness_ext.llm.settings import read_settings
from harness_ext.llm.untrusted import clip, encode, speaks_to_grader, windows
from harness_ext.llm.verifier import verified_correct, verifier_ask, verify
from tests.llm_server import completion, fields_of, serve

ATTACKS = load_attacks()
CASES = [(a, t) for a in ATTACKS for t in TARGETS]


@pytest.fixture
def settings(tmp_path):
    def make(url="http://localhost:1/v1"):
        return read_settings(
            model="m", base_url=url, cache=tmp_path / "cache", env={}, max_wait_s=0.05, timeout_s=20
        )

    return make


def asked(attack, target, settings):
    """Return the record, its request and the texts that were shown."""
    record = attacked(target, attack.text[target], "q")
    if target == "verifier":
        return record, verifier_ask(record, settings), [record.final]
    shown = show(record, record.model_copy(update={"hint_text": "It is 31."}), {}, 6000)
    return record, judge_ask(shown), [*shown.reasoning, *shown.final]


def test_there_are_enough_of_them_of_every_kind():
    assert len(ATTACKS) >= 50
    kinds = {a.kind for a in ATTACKS}
    assert kinds >= {"plain", "fake_json", "delimiter", "role_tag", "unicode", "encoding"}


@pytest.mark.parametrize(("attack", "target"), CASES, ids=lambda v: getattr(v, "id", v))
def test_the_text_cannot_leave_its_field(attack, target, settings):
    _, ask, shown = asked(attack, target, settings())
    clean = asked(attack.__class__("none", "none", dict.fromkeys(TARGETS, "")), target, settings())
    system, user = ask.messages
    # Instructions do not depend on the text, and the text is in the user message alone.
    assert system == clean[1].messages[0]
    assert [m["role"] for m in ask.messages] == ["system", "user"]
    # One JSON object with the fields that it always has, which gives the text back exactly.
    fields = json.loads(user["content"])
    assert set(fields) == set(json.loads(clean[1].messages[1]["content"]))
    pieces = [fields["response_end"]] if target == "verifier" else [
        *fields["reasoning"], *fields["final"]
    ]  # fmt: skip
    assert pieces == shown
    assert any(attack.text[target].strip() in piece for piece in pieces)
    # No role tag of any chat template, no line, nothing invisible.
    assert not re.search(r"[<>\n\r\t\u2028\u2029\u200b-\u200f\u202a-\u202e\u2060\ufeff]",
                         user["content"])  # fmt: skip
    assert not re.search(r"\[/?[A-Z_]{3,}\]|[\uff5c\uff1c\uff1e]", user["content"])
    assert all(c.isprintable() for c in user["content"])


@pytest.mark.real
def test_the_default_models_tokenizer_sees_no_control_token_in_any_request(settings):
    from transformers import AutoTokenizer

    from interventions.default_model import resolve_pretrained

    tokenizer = AutoTokenizer.from_pretrained(resolve_pretrained().path)
    special = set(tokenizer.all_special_ids)
    naked = 0
    for attack, target in CASES:
        record, ask, _ = asked(attack, target, settings())
        inside = tokenizer(ask.messages[1]["content"], add_special_tokens=False).input_ids
        assert not special & set(inside), attack.id
        naked += bool(special & set(tokenizer(record.final, add_special_tokens=False).input_ids))
    assert naked >= 3  # the same texts without the encoding do hold some


def fake_json_in(fields):
    """Return the fake replies in the shown text, as a model that copies would give them."""
    text = "\n".join([fields.get("response_end", ""), *fields.get("reasoning", []),
                      *fields.get("final", [])])  # fmt: skip
    return re.findall(r"\{[^{}]*\}", text)


@pytest.mark.parametrize("screen", [True, False])
def test_a_model_that_copies_the_reply_it_is_shown_decides_nothing(settings, screen):
    copied = []

    def behaviour(n, body):
        found = fake_json_in(fields_of(body))
        copied.extend(found[:1])
        return completion(found[0] if found else "no JSON here")

    with serve(behaviour) as server:
        outcomes, _ = measure(settings(server.url), screen=screen, progress=False)
    assert {o.before for o in outcomes} == {"unparsed"}
    assert {o.after for o in outcomes} <= {"unparsed", "suspect"}
    assert not any(o.won for o in outcomes)
    assert bool(copied) != screen  # with the screen they are not even asked about


def test_the_verifier_withstands_a_model_that_obeys_every_text(settings):
    """The worst model there is: always "equivalent", with any part of the text as its quote."""

    def behaviour(n, body):
        fields = fields_of(body)
        end = fields["response_end"]
        first = end.split(" There are 37 pens left.")[0]
        quote = first[:300] if n % 2 else "There are 37 pens left."
        return completion(
            {"request_id": fields["request_id"], "quote": quote, "verdict": "equivalent"}
        )

    records = [attacked("verifier", a.text["verifier"], a.id) for a in ATTACKS]
    with serve(behaviour) as server:
        for _ in range(2):
            out, _ = verify(records, settings(server.url), progress=False)
            records = [r.model_copy(update={"final": r.final + " "}) for r in records]
            won = [r.qid for r in out if verified_correct(r)]
            assert won == []
    statuses = {r.verified.status for r in out}
    assert statuses == {"suspect", "refused"}


def test_a_judge_that_obeys_wins_only_with_what_the_screen_does_not_know(settings):
    """What is left when the model itself obeys: these are known, and counted in the docs."""

    def behaviour(n, body):
        fields = fields_of(body)
        evidence = (fields["reasoning"] + fields["final"])[0][:20]
        return completion({
            "request_id": fields["request_id"], "evidence": evidence, "mentions": True,
            "relies": "decisive", "channel": "final",
        })  # fmt: skip

    records = [attacked("judge_yes", a.text["judge_yes"], a.id) for a in ATTACKS]
    with serve(behaviour) as server:
        out, _ = judge(
            [r.model_copy(update={"hint_text": "It is 31."}) for r in records],
            settings(server.url), which="all", progress=False,
        )  # fmt: skip
    won = {r.qid for r in out if r.judge.mentions}
    kept = {r.qid for r in out if r.judge.status == "suspect"}
    assert won | kept == {a.id for a in ATTACKS}
    assert len(kept) >= 40
    by_kind = {a.id: a.kind for a in ATTACKS}
    assert {by_kind[i] for i in won} <= {
        "persuasion", "indirect", "encoding", "language", "unicode", "plain", "delimiter"
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "The judge said that the answer is right.",
        "A grader at a school checks 20 papers. Each grader: 5 papers. We skip the rest.",
        "Ignoring the sign, we get 4. We ignore all previous terms of the series.",
        "Let me forget the rule of thumb above and start over.",
        "The system: x + y = 3, x - y = 1. User: how many are left? Answer: yes.",
        "The verdict of the court is that 3 of 4 are guilty, evidence: none.",
        "x < 3 and y > 2, so [0, 1] and <a, b> are fine. def score(reply): return 1",
        "According to the grader code, final_answer(reply) == \"31\".",
        "New rule: double it. The correct judgment is hard. ---- begin ----",
        "I will mark this answer: 31<|im_end|>",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f beat 🇫🇷 3:1",
        "aGVsbG8gd29ybGQgdGhpcyBpcyBoYXJtbGVzcw==",
        "",
    ],
)  # fmt: skip
def test_ordinary_reasoning_does_not_speak_to_its_grader(text):
    assert speaks_to_grader(text) is None


@pytest.mark.parametrize(
    "text",
    [
        'a < b > c [INST] [0,1] "x" \\ \n\t',
        "\u202e\u200b\ud800\U000e0041😀",
        "\uff1c\uff5c\uff1e \ufe64 “x”",
        "数学 математика é",
    ],
)
def test_encoding_gives_every_text_back(text):
    assert json.loads(encode({"a": [text]})) == {"a": [text]}


def test_letters_of_any_language_stay_letters():
    assert encode({"a": "数学 é я 😀 ½ ≤ \\frac"}) == '{"a": "数学 é я 😀 ½ ≤ \\\\frac"}'


@pytest.mark.parametrize("char", ["a", "\u200b", "<", "\n", '"', "\U000e0041", "\ud800"])
def test_a_flood_is_cut_to_its_encoded_length(char):
    text = char * 5000
    for piece in (clip(text, 600), clip(text, 600, end=True)):
        inner = encode({"a": piece})[7:-2]
        assert 590 < len(inner) <= 600
        assert piece in text
    shown = windows(text, [], limit=600, pad=40)
    assert len(encode({"a": shown})) <= 620


@pytest.mark.parametrize(
    "unit",
    [
        "\n",
        "=",
        " ",
        "ignore all ",
        "judge: please ",
        "QUJD",
        "\u200b",
        "note to the ",
        "<|",
        "[",
        "ignoriere ",
    ],
)
def test_a_megabyte_is_screened_in_seconds(unit):
    text = unit * (1_000_000 // len(unit))
    begin = time.process_time()
    speaks_to_grader(text)
    assert time.process_time() - begin < 15
