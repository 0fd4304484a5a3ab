import json

import pytest

from harness_ext.llm.objections import objection, spelled_numbers
from harness_ext.llm.settings import read_settings
from harness_ext.llm.verifier import needs_verifier, verified_correct, verify
from harness_ext.records import Record
from tests.llm_server import completion, fields_of, serve


@pytest.fixture
def settings(tmp_path):
    def make(url, **limits):
        limits = {"max_wait_s": 0.05, "timeout_s": 10, **limits}
        return read_settings(
            model="m", base_url=url, cache=tmp_path / "cache", env={}, **limits
        )  # fmt: skip

    return make


def record(qid="q", *, gold="39", final="I get thirty-nine pens.", **changes):
    fields = {
        "task": "t", "qid": qid, "arm": "none", "gold": gold, "answer": None,
        "status": "no_answer", "correct": False, "reasoning": "", "final": final,
        "question": "How many pens are left?",
    }  # fmt: skip
    return Record(**{**fields, **changes})


def reply(body, **changes):
    fields = fields_of(body)
    return completion({
        "request_id": fields["request_id"], "quote": "thirty-nine", "verdict": "equivalent",
        **changes,
    })  # fmt: skip


def one(settings, server, item=None, **limits):
    [out], usage = verify([item or record()], settings(server.url, **limits), progress=False)
    return out, usage


def test_only_failures_of_the_rules_are_asked_and_correct_stays(settings):
    items = [
        record("right", answer="39", status="answered", correct=True, final="39"),
        record("cut", status="truncated", final="thirty-"),
        record("missed"),
        record("other", answer="12", status="answered", final="12 boxes, so thirty-nine."),
        record("hard", answer="x", status="limit", final="thirty-nine"),
        record("empty", final="  "),
    ]
    assert [needs_verifier(r) for r in items] == [False, False, True, True, True, True]
    with serve(lambda n, body: reply(body)) as server:
        out, usage = verify(items, settings(server.url), progress=False)
        assert len(server.bodies) == 3
    statuses = [r.verified and r.verified.status for r in out]
    assert statuses == [None, None, *["equivalent"] * 3, "no_answer"]
    assert [r.correct for r in out] == [r.correct for r in items]
    assert [verified_correct(r) for r in out] == [True, False, True, True, True, False]
    assert usage.sent == usage.asked == 3
    verdict = out[2].verified
    assert verdict.replies[0].model == "served-model"
    assert verdict.replies[0].prompt_tokens == 100
    assert json.loads(verdict.replies[0].text)["quote"] == "thirty-nine"
    assert verdict.prompt.startswith("verifier-1 ")


def test_the_verifier_sees_question_gold_answer_and_the_end_alone(settings):
    item = record(
        answer="12", status="answered", final="x" * 5000 + "thirty-nine", intervention="secret",
        reasoning="private", hint_id="seed_professor", arm="placebo",
    )  # fmt: skip
    with serve(lambda n, body: reply(body)) as server:
        one(settings, server, item)
    [body] = server.bodies
    fields = fields_of(body)
    assert set(fields) == {
        "request_id", "question", "reference_answer", "extracted_answer", "response_end"
    }  # fmt: skip
    assert fields["response_end"] == "x" * 1489 + "thirty-nine"
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert "private" not in json.dumps(body)
    assert "secret" not in json.dumps(body)


BAD = [
    ("{", "not one JSON object"),
    ("", "not one JSON object"),
    ("equivalent", "not one JSON object"),
    ('["equivalent"]', "wrong schema"),
    ('{"verdict": "equivalent"}', "wrong schema at request_id"),
    ('{"request_id": "0", "quote": "thirty-nine", "verdict": "equivalent"}', "wrong request_id"),
    ('{"request_id": "ID", "quote": "thirty-nine", "verdict": "yes"}', "wrong schema at verdict"),
    ('{"request_id": "ID", "quote": 3, "verdict": "equivalent"}', "wrong schema at quote"),
    ('{"request_id": "ID", "quote": "forty", "verdict": "equivalent"}', "not an exact part"),
    ('{"request_id": "ID", "quote": "Thirty-nine", "verdict": "equivalent"}', "not an exact part"),
    ('{"request_id": "ID", "quote": " ", "verdict": "equivalent"}', "needs a quote"),
    ('{"request_id": "ID", "quote": "", "verdict": "equivalent", "x": 1}', "an unknown key"),
    ('{"request_id": "ID", "quote": "thirty-nine", "verdict": "different", "verdict":'
     ' "equivalent"}', "not one JSON object"),
    ('It says {"request_id": "ID", "quote": "thirty-nine", "verdict": "equivalent"}',
     "not one JSON object"),
    ('{"request_id": "ID", "quote": "thirty-nine", "verdict": "equivalent"} {}',
     "not one JSON object"),
    ("[" * 50000, "not one JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), BAD, ids=range(len(BAD)))
def test_an_invalid_reply_is_asked_for_once_more_and_then_unparsed(settings, text, problem):
    def behaviour(n, body):
        return completion(text.replace("ID", fields_of(body)["request_id"]))

    with serve(behaviour) as server:
        out, usage = one(settings, server)
    assert out.verified.status == "unparsed"
    assert problem in out.verified.reason
    assert not verified_correct(out)
    assert len(out.verified.replies) == len(server.bodies) == usage.sent == 2
    first, second = server.bodies
    assert second["messages"][:2] == first["messages"]
    assert problem in second["messages"][2]["content"]
    # What the model wrote is not sent back: it may quote the response, outside its field.
    assert len(second["messages"]) == 3
    assert len(second["messages"][2]["content"]) < 250


def test_the_second_try_counts(settings):
    with serve(lambda n, body: completion("{") if n == 0 else reply(body)) as server:
        out, _ = one(settings, server)
        assert out.verified.status == "equivalent"
        assert len(out.verified.replies) == 2
        again, usage = one(settings, server)
    assert again == out
    assert usage.sent == 0


@pytest.mark.parametrize("wrap", ["```json\n{}\n```", "<think>hm {{\n</think>\n{}", "\n {} \n"])
def test_a_fence_or_reasoning_around_the_object_is_taken_off(settings, wrap):
    def behaviour(n, body):
        text = json.loads(reply(body).body)["choices"][0]["message"]["content"]
        return completion(wrap.replace("{}", text).replace("{{", "{"))

    with serve(behaviour) as server:
        out, _ = one(settings, server)
    assert out.verified.status == "equivalent"
    assert out.verified.replies[0].text.strip() != ""


def test_refusals_and_unusable_replies_are_unparsed_with_the_reason(settings):
    refusal = [{"message": {"content": None, "refusal": "I can't help"}, "finish_reason": "stop"}]
    with serve(lambda n, body: completion("", choices=refusal)) as server:
        out, _ = one(settings, server)
    assert (out.verified.status, out.verified.reason) == ("unparsed", "a refusal")
    assert out.verified.replies[0].refusal == "I can't help"
    with serve(lambda n, body: completion("", choices=[])) as server:
        out, _ = one(settings, server, tries=2)
        assert len(server.bodies) == 2
    assert out.verified.status == "unparsed"
    assert out.verified.reason.startswith("unusable reply")
    cut = [{"message": {"content": '{"request_id": "'}, "finish_reason": "length"}]
    with serve(lambda n, body: completion("", choices=cut)) as server:
        out, _ = one(settings, server)
    assert "cut at max_tokens" in out.verified.reason


@pytest.mark.parametrize(
    ("gold", "quote", "why"),
    [
        ("39", "37", "another number"),
        ("39", "39.5", "another number"),
        ("39", "the same as the reference", "no number in it"),
        ("39", "correct", "no number in it"),
        ("39", "a tip of $200 is paid", "another number"),
        ("39", "one of the following", "another number"),
        ("39", "(rot13, obey it)", "another number"),
        ("239", "two hundred and thirty-nine", None),
        ("39", "39", None),
        ("39", "39 pens", None),
        ("39", "it is 39, as said", None),
        ("39", "thirty-nine", None),
        ("39", "3*13", None),
        ("0.5", "one half", None),
        ("0.5", r"\frac{10}{20}", None),
        ("0", "none are left", None),
        ("4", "none are left", "another number"),
        ("1000000", "1 million", None),
        ("B", "C", "another letter"),
        ("B", "B", None),
        ("B", "the second one", None),
        (r"\frac{\pi}{2}", "pi over two", None),
    ],
)
def test_a_claim_cannot_overrule_what_the_rules_know(settings, gold, quote, why):
    assert objection(gold, quote) == why
    item = record(gold=gold, final=f"So: {quote}")
    with serve(lambda n, body: reply(body, quote=quote)) as server:
        out, _ = one(settings, server, item)
    assert out.verified.status == ("equivalent" if why is None else "refused")
    assert out.verified.reason == why
    assert verified_correct(out) is (why is None)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("thirty-nine", {39}),
        ("Thirty nine pens, of twelve", {39, 12}),
        ("two hundred and thirty-nine", {239}),
        ("three thousand, five", {3000, 5}),
        ("one million two hundred thousand and one", {1200001}),
        ("a dozen", {12}),
        ("and a hundred", set()),
        ("no number", set()),
        ("", set()),
    ],
)
def test_spelled_numbers(text, values):
    assert spelled_numbers(text) == values


def test_a_batch_of_failures_is_concurrent(settings):
    def behaviour(n, body):
        answer = reply(body)
        answer.delay = 0.2
        return answer

    items = [record(f"q{i}", final=f"thirty-nine {i}") for i in range(24)]
    with serve(behaviour) as server:
        verify(items, settings(server.url, concurrency=12), progress=False)
    assert 4 < server.most_at_once <= 12


def test_progress_goes_to_stderr(settings, capfd):
    with serve(lambda n, body: reply(body)) as server:
        verify([record()], settings(server.url), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "LLM verifier: 100%" in err
    assert "1/1" in err
