"""`backend=server` against a server that is broken, wrong or lying: what ends a run."""

import asyncio
import json
import socket

import pytest
from aiohttp import web

from harness_ext.errors import ServerError
from interventions.errors import (
    HookPointError,
    ModelMismatchError,
    ReceiptError,
    SpecError,
)
from tests.harness_ext.server.asking import (
    COMPLETIONS,
    EDIT,
    PROMPTS,
    generate,
    one_line,
    receipt,
)
from tests.steered_server import drop, refuse


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
