"""Requests of real clients: mixed interventions at once, refusals among them, all kinds of call."""

import asyncio
import json
import time

import openai
import pytest

from tests.vllm_server import specs
from tests.vllm_server.ask import PROMPT, TOKENS, Answer, answers, body, one, raw, together
from tests.vllm_server.server import MODEL, xargs


@pytest.fixture(scope="module")
def alone(server) -> dict[str, Answer]:
    """Each intervention's answer, one request at a time."""
    return {name: one(server, spec) for name, spec in specs.MIXED.items()}


def ran(facts, hook="1"):
    """Return the rows that a request ran by its spans, and the rows counted by its first edit."""
    return sum(end - start for start, end in facts["spans"]), facts["counts"][hook][0][0]


def test_mixed_at_once_equals_one_at_a_time(server, alone):
    found = asyncio.run(
        together(
            server,
            {name: body(spec, f"mixed {name}") for name, spec in specs.MIXED.items()}
            | {f"{name} again": body(spec) for name, spec in specs.MIXED.items()},
        )
    )
    differ = [name for name in alone if alone[name].tokens != alone["none"].tokens]
    print(f"{len(differ)} of {len(alone)} differ from the unsteered answer: {differ}")  # noqa: T201
    assert len(differ) >= 10
    assert "baseline" not in differ
    for name, expected in alone.items():
        for got in (found[name], found[f"{name} again"]):
            assert got[0].same(expected), f"{name}: {got[0].text!r} is not {expected.text!r}"
    exact = sum(found[name][0].tokens == alone[name].tokens for name in alone)
    print(f"{exact} of {len(alone)} are the same to the last token")  # noqa: T201


def test_the_receipt_of_mixed_requests_is_that_of_each(server):
    tags = {name: f"each {name}" for name, spec in specs.MIXED.items() if spec and spec["edits"]}
    found = asyncio.run(
        together(server, {name: body(specs.MIXED[name], tag) for name, tag in tags.items()})
    )
    for name, tag in tags.items():
        (facts,) = server.receipt(tag)
        spec = specs.MIXED[name]
        checked = server.post("/sae_steered/check", {"spec": spec}).json()
        assert facts["fingerprint"] == checked["fingerprint"], name
        n_prompt, n_tokens = len(found[name][0].prompt), len(found[name][0].tokens)
        assert facts["prompt_len"] == n_prompt
        (start, end), = facts["spans"]  # fmt: skip
        assert end == n_prompt + n_tokens - 1, "the last token is never fed"
        rows = {
            "all": end - start,
            "generated": n_tokens - 1,
            "prompt": n_prompt - start,
            "last_prompt": 1,
        }[spec.get("positions", "all")]
        assert [edit[0] for edit in facts["counts"]["1"]] == [rows] * len(spec["edits"]), name
        assert server.receipt(tag) == [], "a receipt is handed out once"


@pytest.mark.parametrize("name", specs.BAD)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_spec_gets_status_400(server, name, path, stream):
    spec, reason = specs.BAD[name]
    request = {"model": MODEL, "stream": stream, **xargs(spec)}
    request |= {
        "/v1/completions": {"prompt": "Hello"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
        "/v1/responses": {"input": "Hello"},
    }[path]
    answer = raw(server, path, request)
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("{", "not JSON"),
        ("7", "mapping"),
        (7, "mapping"),
        (["a"], "mapping"),
        ("[" * 100_000, "not JSON"),
        ('{"edits":' * 900 + "1" + "}" * 900, ""),
        (json.dumps({"spec": specs.CLAMP, "compiled": {}}), "unknown key 'compiled'"),
        (json.dumps({"spec": specs.CLAMP, "tag": 7}), "`tag`"),
        (json.dumps({"spec": specs.CLAMP, "prompt_len": "7"}), "`prompt_len`"),
        (json.dumps({"spec": specs.CLAMP, "prompt_len": 10_000}), "outside 1.."),
        (json.dumps({"norms": ["blocks.15.hook_resid_post"]}), "`tag`"),
    ],
)
def test_what_is_no_spec_gets_status_400(server, entry, reason):
    request = {"model": MODEL, "prompt": "Hello", "vllm_xargs": {"sae_steered": entry}}
    answer = raw(server, "/v1/completions", request)
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]["message"]


def test_a_megabyte_is_read_and_more_is_refused(server, alone):
    text = "x" * (1_000_000)
    large = one(server, {**specs.CLAMP, "name": text})
    assert large.same(alone["clamp"])
    before = time.monotonic()
    answer = raw(server, "/v1/completions", body({**specs.CLAMP, "name": text + text}))
    assert answer.status_code == 400
    assert "at most 1048576" in answer.json()["error"]["message"]
    assert time.monotonic() - before < 5


def test_bad_specs_are_refused_while_others_run(server, alone):
    good = [name for name, spec in specs.MIXED.items() if spec]
    bodies = {name: body(specs.MIXED[name]) for name in good}
    for number, (spec, _) in enumerate([*specs.BAD.values()] * 2):
        bodies[f"bad {number}"] = body(spec, stream=False)
    found = asyncio.run(together(server, bodies))
    for name, got in found.items():
        if name.startswith("bad"):
            assert isinstance(got, openai.BadRequestError), f"{name}: {got}"
        else:
            assert got[0].same(alone[name]), name
    assert server.get("/health").status_code == 200


def test_a_stream_says_the_same(server, alone):
    text = ""
    with server.client().completions.create(
        **body(specs.CLAMP, "stream", stream=True, stream_options={"include_usage": True})
    ) as stream:
        for event in stream:
            text += "".join(choice.text for choice in event.choices)
            usage = event.usage
    assert text == alone["clamp"].text
    (facts,) = server.receipt("stream")
    assert facts["spans"][-1][1] == usage.prompt_tokens + usage.completion_tokens - 1


def test_a_list_of_prompts_is_steered_in_each(server, alone):
    prompts = [PROMPT, "The capital of France is", PROMPT, "Once upon a time"]
    found = answers(server.client().completions.create(**body(specs.CLAMP, "list", prompt=prompts)))
    assert len(found) == 4
    for place in (0, 2):
        assert found[place].same(alone["clamp"])
    rows = server.receipt("list")
    assert len(rows) == 4
    ends = sorted(facts["spans"][-1][1] for facts in rows)
    assert ends == sorted(len(got.prompt) + len(got.tokens) - 1 for got in found)
    assert all(len(set(ran(facts))) == 1 for facts in rows)


def test_several_samples_of_one_prompt_are_steered_in_each(server):
    request = body(specs.CLAMP, "samples", n=3, temperature=1.0, seed=7)
    found = answers(server.client().completions.create(**request))
    again = answers(server.client().completions.create(**body(
        specs.CLAMP, n=3, temperature=1.0, seed=7)))  # fmt: skip
    plain = answers(server.client().completions.create(**body(n=3, temperature=1.0, seed=7)))
    assert len({tuple(got.tokens) for got in found}) == 3
    assert [got.tokens for got in found] == [got.tokens for got in again]
    assert [got.tokens for got in found] != [got.tokens for got in plain]
    rows = server.receipt("samples")
    assert len(rows) == 3
    assert all(len(set(ran(facts))) == 1 for facts in rows)
    assert {facts["spans"][-1][1] for facts in rows} == {len(found[0].prompt) + TOKENS - 1}


def test_a_stop_string_ends_the_text_and_the_receipt_holds(server, alone):
    stop = alone["clamp"].text.strip()[8:14]
    completion = server.client().completions.create(**body(specs.CLAMP, "stop", stop=[stop]))
    (choice,) = completion.choices
    assert choice.finish_reason == "stop"
    assert stop not in choice.text
    assert alone["clamp"].text.startswith(choice.text)
    (facts,) = server.receipt("stop")
    rows, counted = ran(facts)
    assert rows == counted
    # The engine may run on until the server tells it that the text has ended.
    fed = completion.usage.prompt_tokens + completion.usage.completion_tokens - 1
    assert fed <= facts["spans"][-1][1] < len(alone["clamp"].prompt) + TOKENS


def test_the_chat_endpoint_steers_by_the_same_spec(server):
    messages = [{"role": "user", "content": "Tell me about your weekend."}]
    keys = {"model": MODEL, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
    ids = {"return_token_ids": True, "ignore_eos": True}
    client = server.client()
    plain = client.chat.completions.create(**keys, extra_body=ids)
    steered = client.chat.completions.create(
        **keys, extra_body={**ids, **xargs(specs.CLAMP, tag="chat")}
    )
    prompt = steered.prompt_token_ids
    same = answers(
        client.completions.create(**body(specs.CLAMP, prompt=prompt))
    )[0]  # fmt: skip
    assert same.tokens == steered.choices[0].token_ids
    assert steered.choices[0].message.content != plain.choices[0].message.content
    (facts,) = server.receipt("chat")
    assert (facts["prompt_len"], len(prompt)) == (steered.usage.prompt_tokens,) * 2
    assert facts["spans"][-1][1] == steered.usage.total_tokens - 1


def test_a_client_that_leaves_ends_its_request_and_harms_no_other(server, alone):
    stream = server.client().completions.create(
        **body(specs.CLAMP, "left", max_tokens=900, stream=True)
    )
    for _, _ in zip(range(3), stream, strict=False):
        pass
    stream.close()
    assert one(server, specs.CLAMP).same(alone["clamp"])
    time.sleep(1)
    (facts,) = server.receipt("left")
    rows, counted = ran(facts)
    assert rows == counted
    assert facts["spans"][-1][1] < 900, "the engine stopped when the client left"
    assert one(server).same(alone["none"])
    assert server.receipt("left") == []


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_beams_are_refused_rather_than_unsteered(server, path):
    prompt = {"prompt": PROMPT, "messages": [{"role": "user", "content": PROMPT}]}
    request = {"model": MODEL, **prompt, "use_beam_search": True, "n": 2, "max_tokens": 2}
    answer = raw(server, path, {**request, **xargs(specs.CLAMP)})
    assert answer.status_code == 400, answer.text
    assert "beam search does not carry `vllm_xargs`" in answer.json()["error"]["message"]
    assert raw(server, path, request).status_code == 200


def test_a_route_that_drops_the_intervention_is_refused(server):
    chats = [[{"role": "user", "content": text}] for text in ("Hello", "Good day")]
    request = {"model": MODEL, "messages": chats, "max_tokens": 2}
    answer = raw(server, "/v1/chat/completions/batch", {**request, **xargs(specs.CLAMP)})
    assert answer.status_code == 400, answer.text
    assert "use /v1/chat/completions" in answer.json()["error"]["message"]
    assert len(raw(server, "/v1/chat/completions/batch", request).json()["choices"]) == 2


def test_a_spec_without_edits_is_plain_vllm(server, alone):
    assert one(server, specs.spec(), tag="empty").tokens == alone["none"].tokens
    assert server.receipt("empty") == []


def test_the_prompt_ends_where_the_client_says(server):
    entry = {"spec": specs.MIXED["add generated"], "prompt_len": 4, "tag": "scored"}
    request = body(prompt=PROMPT, max_tokens=1) | {
        "extra_body": {"vllm_xargs": {"sae_steered": json.dumps(entry)}}
    }
    usage = server.client().completions.create(**request).usage
    (facts,) = server.receipt("scored")
    assert facts["prompt_len"] == 4
    assert facts["counts"]["1"][0][0] == usage.prompt_tokens - 4


def test_steered_and_plain_prompts_share_no_blocks_after_the_first_edit(server):
    prompt = "One two three four five six seven eight nine ten. " * 12
    plain = one(server, prompt=prompt)
    steered = one(server, specs.CLAMP, prompt=prompt)
    assert one(server, prompt=prompt).tokens == plain.tokens
    assert one(server, specs.CLAMP, prompt=prompt).tokens == steered.tokens
    assert one(server, specs.MIXED["add"], prompt=prompt).tokens != steered.tokens
