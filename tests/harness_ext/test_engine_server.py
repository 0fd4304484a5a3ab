"""`backend=server` against a server that is slow, broken, wrong or lying."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys

import pytest
from aiohttp import web

from harness_ext.errors import ServerError
from harness_ext.model import SAESteeredLM
from interventions.errors import (
    HookPointError,
    ModelMismatchError,
    ReceiptError,
    SpecError,
)
from tests.lm_requests import generate_requests, loglikelihood_requests
from tests.steered_server import CACHED, POINT, drop, next_token, refuse, running

EDIT = {"op": "clamp", "feature": 3, "value": 4.0}
PROMPTS = ["the cat sat on the mat", "an ear in the hat", "a b c d e f g"]
NEVER = {"think_start_token": "~", "think_end_token": "}"}
"""Delimiters that are tokens of the tiny tokenizer, and that the server never writes."""

COMPLETIONS = "/v1/completions"


@pytest.fixture
def server(model_folder):
    with running(model_folder()) as made:
        yield made


@pytest.fixture
def load(server, sae_folder, monkeypatch):
    """Return a function that makes the model, steered unless told otherwise."""
    monkeypatch.setattr("harness_ext.server_http._LONGEST_WAIT", 0.05)
    made = []

    def make(**arguments):
        spec = {"norm_guard": None, "sae": {"path": sae_folder()}, "edits": [EDIT]}
        arguments = {"base_url": f"{server.url}/v1", "spec": spec, "timeout": 5} | arguments
        lm = SAESteeredLM.create_from_arg_obj({"backend": "server", **arguments}, {})
        made.append(lm)
        return lm

    yield make
    for lm in made:
        lm._engine.close()


def generate(lm, prompts=PROMPTS, **kwargs):
    return lm.generate_until(generate_requests(prompts, kwargs), disable_tqdm=True)


def receipt(lm):
    return lm.get_model_info()["sae_steered"]["receipt"]


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def tags(server):
    entries = [body.get("vllm_xargs") for body in server.bodies(COMPLETIONS)]
    return [json.loads(entry["sae_steered"])["tag"] for entry in entries]


def expected(lm, prompt, n):
    ids = lm.tokenizer(prompt).input_ids
    return [next_token(ids, i) for i in range(n)]


# -- what is sent and what comes back ------------------------------------------------------------


def test_responses_in_order_with_a_receipt(server, load):
    lm = load()
    responses = generate(lm)
    for prompt, response in zip(PROMPTS, responses, strict=True):
        ids = expected(lm, prompt, 12)
        assert response == lm.tokenizer.decode(ids, skip_special_tokens=True)
        assert (response.n_tokens, response.finish_reason) == (12, "length")
        assert response.intervention == lm.plan.fingerprint
    rows = sum(len(lm.tokenizer(p).input_ids) + 12 - 1 - CACHED for p in PROMPTS)
    told = receipt(lm)
    assert told["rows"] == 3
    assert told["edits"][0]["selected"] == rows
    assert told["cached_tokens"] == 3 * CACHED


def test_what_a_server_adds_by_itself_is_sent_explicitly(server, load):
    generate(load(), PROMPTS[:1])
    (body,) = server.bodies(COMPLETIONS)
    assert body["temperature"] == 0
    assert body["top_p"] == 1
    assert body["top_k"] == 0
    assert body["repetition_penalty"] == 1
    assert body["min_p"] == 0
    assert body["return_token_ids"]
    assert body["model"] == "tiny"
    assert "seed" not in body


def test_sampling_sends_a_seed_of_each_response(server, load):
    lm = load()
    requests = generate_requests(PROMPTS[:1], {"do_sample": True, "temperature": 0.7, "top_k": 5})
    lm.generate_until(requests * 2, disable_tqdm=True)
    bodies = server.bodies(COMPLETIONS)
    assert len({body["seed"] for body in bodies}) == 2
    assert {(body["temperature"], body["top_k"]) for body in bodies} == {(0.7, 5)}


def test_the_baseline_says_nothing_of_an_intervention(server, load):
    lm = load(spec=None)
    generate(lm)
    assert not any("vllm_xargs" in body for body in server.bodies(COMPLETIONS))
    assert not server.bodies("/sae_steered/receipt")
    assert lm.intervention == "none"


def test_scores_of_a_prompt(server, load):
    lm = load()
    pairs = [("the cat", " sat"), ("the cat", " sat on the mat")]
    scores = lm.loglikelihood(loglikelihood_requests(pairs), disable_tqdm=True)
    for (context, continuation), (score, greedy) in zip(pairs, scores, strict=True):
        whole = lm.tokenizer(context + continuation).input_ids
        ids = whole[len(lm.tokenizer(context).input_ids) :]
        assert score == pytest.approx(-0.5 * len(ids))
        assert greedy
    body = server.bodies(COMPLETIONS)[-1]
    entry = json.loads(body["vllm_xargs"]["sae_steered"])
    assert body["prompt_logprobs"] == 1
    assert body["max_tokens"] == 1
    assert entry["prompt_len"] == len(lm.tokenizer("the cat").input_ids)


def test_stop_strings_of_an_answer_end_a_stream(server, load):
    """With delimiters that a token can write, the server's own stop strings would cut reasoning."""
    lm = load(**NEVER)
    ids = expected(lm, PROMPTS[0], 60)
    text = lm.tokenizer.decode(ids)
    stop = text[20:22]
    (response,) = generate(lm, PROMPTS[:1], until=[stop], max_gen_toks=60)
    assert response.finish_reason == "stop"
    assert response.n_tokens < 60
    assert stop not in response
    assert text.startswith(response)
    body = server.bodies(COMPLETIONS)[0]
    assert body["stream"]
    assert "stop" not in body
    assert receipt(lm)["rows"] == 1


def test_stop_strings_without_reasoning_are_the_servers(server, load):
    generate(load(think_start_token="<none>", think_end_token="</none>"), until=["zz"])
    bodies = server.bodies(COMPLETIONS)
    assert all(b["stop"] == ["zz"] and b["include_stop_str_in_output"] for b in bodies)


def test_requests_in_flight(server, load):
    generate(load(), [f"{p} {i}" for p in PROMPTS for i in range(8)])
    assert 4 < server.most_together <= 16  # 4 for each of max_num_seqs 4
    server.most_together = 0
    generate(load(batch_size=2), [f"{p} {i}" for p in PROMPTS for i in range(4)])
    assert server.most_together <= 2


def test_a_median_norm_is_measured_by_the_server(server, load, sae_folder):
    spec = {"sae": {"path": sae_folder()}, "edits": [EDIT]}
    lm = load(spec=spec)
    asked = server.bodies("/sae_steered/median_norm")
    stored = lm.plan.layers[0].median_norm
    assert (asked == [{"hook_points": [POINT]}] and stored == 5.0) or (not asked and stored)
    generate(lm)


# -- what passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["drop", "429", "500", "503"])
@pytest.mark.parametrize("stops", [False, True])
def test_what_passes_is_sent_again_under_another_tag(server, load, trouble, stops):
    async def behave(request, body, n):
        if request.path == COMPLETIONS and n in (1, 2):
            if trouble != "drop":
                return refuse(int(trouble), "busy")
            server.account(body, len(body["prompt"]), 0)  # cut off in the middle
            drop(request)
        return None

    server.behave = behave
    more = {**NEVER} if stops else {}
    lm = load(batch_size=1, **more)
    responses = generate(lm, until=["never to be seen"] if stops else [])
    ids = expected(lm, PROMPTS[0], 12)
    assert responses[0].n_tokens == 12
    assert responses[0] == lm.tokenizer.decode(ids, skip_special_tokens=True)
    assert len(set(tags(server))) == 5
    assert receipt(lm)["rows"] == 3


def test_a_stream_that_breaks_begins_anew(server, load):
    state = {"n": 0}

    def twist(event):
        state["n"] += 1
        if state["n"] == 5:
            event["error"] = {"message": "engine hiccup", "code": 500}

    server.twist = twist
    lm = load(**NEVER)
    ids = expected(lm, PROMPTS[0], 60)
    stop = lm.tokenizer.decode(ids)[20:22]
    (response,) = generate(lm, PROMPTS[:1], until=[stop], max_gen_toks=60)
    server.twist = None
    (again,) = generate(lm, PROMPTS[:1], until=[stop], max_gen_toks=60)
    assert response == again
    assert response.n_tokens == again.n_tokens
    assert len(server.bodies(COMPLETIONS)) == 3


def test_the_wait_that_a_server_asks_for_is_kept(server, load, monkeypatch, caplog):
    monkeypatch.setattr("harness_ext.server_http._LONGEST_WAIT", 5)

    async def behave(request, body, n):
        if request.path == COMPLETIONS and n == 1:
            return refuse(429, "slow", **{"Retry-After": "0.75"})
        return None

    server.behave = behave
    generate(load(batch_size=1))
    assert "HTTP 429 slow; again in 0.8 s" in caplog.text


def test_what_changes_outputs_beside_the_weights_keeps_journals_apart(server, load, tmp_path):
    generate(load(journal=tmp_path / "j"))
    server.info = {"variant": {"quantization": "fp8"}}
    lm = load(journal=tmp_path / "j")
    generate(lm)
    assert lm.get_model_info()["sae_steered"]["journal"]["made"] == 3


# -- what does not -------------------------------------------------------------------------------


def test_no_server(load):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match=r"cannot connect.*is the server up") as caught:
        load(base_url=f"http://127.0.0.1:{port}/v1")
    assert str(port) in one_line(caught)


def test_a_server_without_the_plugin(server, load):
    async def behave(request, body, n):
        return web.json_response({"detail": "Not Found"}, status=404)

    server.behave = behave
    with pytest.raises(SpecError, match="VLLM_PLUGINS=sae_steered") as caught:
        load()
    one_line(caught)


def test_an_engine_that_was_not_started_to_be_steered(server, load):
    async def behave(request, body, n):
        return refuse(400, "this engine was not started\nto be steered")

    server.behave = behave
    with pytest.raises(SpecError, match="not started to be steered") as caught:
        load()
    one_line(caught)


def test_a_hook_point_that_is_not_declared(server, load, sae_folder):
    server.info = {"hook_points": ["blocks.2.hook_resid_post"]}
    with pytest.raises(SpecError, match=r"steered at blocks\.2\..* and not at blocks\.1\."):
        load()
    with pytest.raises(HookPointError, match="layer 9 is outside"):
        load(spec={"sae": {"path": sae_folder()}, "hook_point": "blocks.9.hook_resid_post",
                   "norm_guard": None, "edits": [EDIT]})  # fmt: skip
    assert not server.bodies(COMPLETIONS)


def test_another_model(server, load, model_folder):
    with pytest.raises(ModelMismatchError, match="the server runs") as caught:
        load(pretrained=model_folder("qwen2"))
    assert server.identity in one_line(caught)
    assert load(pretrained=server.folder)._identity == server.identity


def test_another_tokenizer(server, load, model_folder, tmp_path):
    other = tmp_path / "other"
    server.tokenizer.save_pretrained(other)
    text = (other / "tokenizer.json").read_text()
    data = json.loads(text)
    data["model"]["merges"] = data["model"]["merges"][1:]
    (other / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ModelMismatchError, match="is not the server's"):
        load(tokenizer=str(other))


def test_a_model_whose_tokenizer_is_not_here(server, load, model_folder):
    async def behave(request, body, n):
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "tiny", "root": "/on/the/server"}]})
        return None

    server.behave = behave
    with pytest.raises(SpecError, match="give tokenizer=") as caught:
        load()
    one_line(caught)
    generate(load(tokenizer=server.folder))


def test_another_fingerprint(server, load):
    async def behave(request, body, n):
        if request.path == "/sae_steered/check":
            return web.json_response({"fingerprint": "0" * 16})
        return None

    server.behave = behave
    with pytest.raises(ModelMismatchError, match="0000000000000000 in the engine"):
        load()


def test_a_refused_spec_quotes_the_server(server, load):
    async def behave(request, body, n):
        if request.path == "/sae_steered/check":
            return refuse(400, "edit 1: this server does not read the SAE 'x'")
        return None

    server.behave = behave
    with pytest.raises(SpecError, match="this server does not read the SAE 'x'"):
        load()


def test_a_refused_request_ends_at_once(server, load):
    async def behave(request, body, n):
        return refuse(400, "max_tokens is\nnonsense") if request.path == COMPLETIONS else None

    server.behave = behave
    with pytest.raises(ServerError, match="HTTP 400 max_tokens is nonsense") as caught:
        generate(load(batch_size=1))
    one_line(caught)
    assert len(server.bodies(COMPLETIONS)) == 1


def test_tries_are_bounded(server, load):
    async def behave(request, body, n):
        return refuse(500, "EngineCore died") if request.path == COMPLETIONS else None

    server.behave = behave
    with pytest.raises(ServerError, match=r"EngineCore died \(3 tries\)"):
        generate(load(batch_size=1, tries=3))
    assert len(server.bodies(COMPLETIONS)) == 3


@pytest.mark.parametrize(
    ("twist", "message"),
    [
        (lambda c: c.update(prompt_token_ids=[1, 2]), "another prompt"),
        (lambda c: c.update(token_ids=c["token_ids"][:3]), "cut a response at 3 tokens where 12"),
        (lambda c: c.pop("token_ids"), "not what a server of vLLM answers"),
    ],
)
def test_answers_that_are_not_what_was_asked_for(server, load, twist, message):
    server.twist = lambda answer: twist(answer["choices"][0])
    with pytest.raises(ServerError, match=message) as caught:
        generate(load())
    one_line(caught)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda f: f.update(fingerprint="f" * 16), "ran with intervention"),
        (lambda f: f["counts"]["0"][0].__setitem__(0, 1), "edited 1 tokens"),
        (lambda f: f.update(spans=[[2, 4]]), "leaves out"),
        (lambda f: f.update(prompt_len=1), "prompt of 1 tokens"),
    ],
)
def test_receipts_that_do_not_add_up(server, load, lie, message):
    server.lie = lie
    with pytest.raises(ReceiptError, match=message):
        generate(load())


def test_a_server_that_loses_the_plugin_on_the_way(server, load):
    """A router may send a request to a server that ignores `vllm_xargs`."""
    lm = load()
    server.account = lambda *_: None
    with pytest.raises(ReceiptError, match="ran unsteered"):
        generate(lm)


def test_a_receipt_is_never_asked_for_twice(server, load):
    async def behave(request, body, n):
        if request.path == "/sae_steered/receipt":
            await server.receipt(request, body)
            drop(request)
        return None

    server.behave = behave
    with pytest.raises(ServerError, match="receipt: the connection broke"):
        generate(load())
    assert len(server.bodies("/sae_steered/receipt")) == 1


def test_a_receipt_that_was_certainly_not_given_is_asked_for_again(server, load):
    async def behave(request, body, n):
        busy = request.path == "/sae_steered/receipt" and n == 1
        return refuse(503, "busy") if busy else None

    server.behave = behave
    lm = load()
    generate(lm)
    assert receipt(lm)["rows"] == 3


def test_silence_ends(server, load):
    async def behave(request, body, n):
        if request.path == COMPLETIONS:
            await asyncio.sleep(30)

    server.behave = behave
    with pytest.raises(ServerError, match=r"(?i)timeout.*2 tries"):
        generate(load(timeout=0.2, tries=2), PROMPTS[:1])


# -- keys and arguments --------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_stays_out_of_sight(
    server, load, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("VLLM_API_KEY", "s3cret-key")
    lm = load()
    assert all(headers["Authorization"] == "Bearer s3cret-key" for headers in server.headers)

    async def behave(request, body, n):
        return refuse(400, f"bad {request.headers['Authorization']}")

    server.behave = behave
    with pytest.raises(ServerError, match=r"bad Bearer \*\*\*") as caught:
        generate(lm)
    assert caught.value.__cause__ is None
    assert "s3cret" not in caplog.text + json.dumps(lm.get_model_info(), default=str)


def test_another_variable_for_the_key(server, load, monkeypatch):
    with pytest.raises(SpecError, match="api_key_env=MY_KEY: that environment variable"):
        load(api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "other-key")
    load(api_key_env="MY_KEY")
    assert server.headers[-1]["Authorization"] == "Bearer other-key"


def test_no_key_is_sent_where_none_is_set(server, load, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "of somebody else")
    load()
    assert not any("Authorization" in headers for headers in server.headers)


def test_a_key_that_is_refused(server, load, monkeypatch):
    async def behave(request, body, n):
        return web.json_response({"error": "Unauthorized"}, status=401)

    server.behave = behave
    with pytest.raises(ServerError, match="wants a key; set VLLM_API_KEY"):
        load()
    monkeypatch.setenv("VLLM_API_KEY", "wrong-key")
    with pytest.raises(ServerError, match="refuses the key in VLLM_API_KEY"):
        load()


def test_a_redirect_is_not_followed(server, load, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "s3cret-key")

    async def behave(request, body, n):
        raise web.HTTPFound(server.url + "/elsewhere")

    server.behave = behave
    with pytest.raises(ServerError, match="it redirects"):
        load()
    assert {path for path, _ in server.asked} == {"/sae_steered/info"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_url": None}, "needs base_url="),
        ({"base_url": "localhost:8000"}, "is no URL"),
        ({"base_url": "http://user:pw@host/v1"}, "holds a password"),
        ({"api_key": "x"}, "takes no argument 'api_key'.*VLLM_API_KEY"),
        ({"hook_points": "all"}, "a server declares them"),
        ({"gpu_memory_utilization": 0.5}, "an option of `vllm serve`"),
    ],
)
def test_arguments(load, arguments, message):
    with pytest.raises(SpecError, match=message) as caught:
        load(**arguments)
    one_line(caught)


# -- journal and command line --------------------------------------------------------------------


def test_a_run_that_the_server_ended_goes_on(server, load, tmp_path):
    async def behave(request, body, n):
        return refuse(400, "gone") if request.path == COMPLETIONS and n == 3 else None

    server.behave = behave
    lm = load(journal=tmp_path / "j", batch_size=1)
    # One request at a time, so that two have been settled when the third is refused.
    with pytest.raises(ServerError):
        generate(lm)
    lm._engine.close()
    server.behave = None
    before = len(server.bodies(COMPLETIONS))
    again = load(journal=tmp_path / "j", batch_size=1)
    responses = generate(again)
    made = again.get_model_info()["sae_steered"]["journal"]
    assert len(server.bodies(COMPLETIONS)) - before == made["made"] == 3 - made["resumed"]
    whole = load()
    assert responses == generate(whole)
    told, fresh = receipt(again), receipt(whole)
    assert told.pop("resumed", 0) == made["resumed"]
    assert told["edits"] == fresh["edits"]
    assert told["rows"] == fresh["rows"]


def test_the_command_line_says_it_in_one_line(repo_root, tmp_path):
    program = tmp_path / "lm_eval"
    program.write_text(
        "from harness_ext.autoload import install; install()\n"
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    )
    command = [sys.executable, str(program), "--model", "sae_steered", "--tasks", "steer_arith"]
    command += ["--model_args", "backend=server,base_url=http://127.0.0.1:9/v1"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repo_root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "sae_steered: error: http://127.0.0.1:9/sae_steered/info: cannot connect" in done.stderr
