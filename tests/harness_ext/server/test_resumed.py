"""`backend=server` against a server that is slow or breaks: what passes, and a run that goes on."""

import pytest

from harness_ext.errors import ServerError
from tests.harness_ext.server.asking import (
    COMPLETIONS,
    NEVER,
    PROMPTS,
    expected,
    generate,
    receipt,
    tags,
)
from tests.steered_server import drop, refuse


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
