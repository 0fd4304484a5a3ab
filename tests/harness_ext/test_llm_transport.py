import json
import logging
import pickle
import time
import traceback

import pytest

from harness_ext.errors import LLMRequestError
from harness_ext.llm.session import run_batch
from harness_ext.llm.settings import LLMSettings, read_settings
from harness_ext.llm.transport import Ask
from harness_ext.llm.verdicts import Reply
from tests.llm_server import Action, completion, failure, serve

KEY = "sk-test-0123456789-secret-key"
SCHEMA = {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
    "additionalProperties": False,
}  # fmt: skip


def ask(text="hello"):
    return Ask(({"role": "user", "content": text},), SCHEMA, "test")


@pytest.fixture
def settings(tmp_path):
    def make(url, **limits) -> LLMSettings:
        limits = {"max_wait_s": 0.05, "timeout_s": 5.0, "tries": 3, **limits}
        return read_settings(
            model="judge-model", base_url=url, cache=tmp_path / "cache",
            env={"OPENAI_API_KEY": KEY}, **limits,
        )  # fmt: skip

    return make


def send(settings, *asks):
    jobs = [lambda session, a=a: session.ask(a) for a in (asks or (ask(),))]
    return run_batch(settings, jobs, label="test", progress=False)


def once(action, then=None):
    """Return a behaviour: `action` for the first request, a good reply for the others."""
    return lambda n, body: action if n == 0 else (then or completion('{"a": 1}'))


def test_a_reply_carries_text_model_usage_and_the_request_says_what_it_must(settings):
    with serve(lambda n, body: completion('{"a": 1}')) as server:
        [reply], usage = send(settings(server.url))
    assert reply == Reply(
        text='{"a": 1}', model="served-model", endpoint=server.url, finish_reason="stop",
        prompt_tokens=100, completion_tokens=20, structured="json_schema", request=reply.request,
    )  # fmt: skip
    assert (usage.asked, usage.sent, usage.cached, usage.prompt_tokens) == (1, 1, 0, 100)
    [body] = server.bodies
    assert body["model"] == "judge-model"
    assert body["temperature"] == 0
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "test", "strict": True, "schema": SCHEMA},
    }
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "action",
    [
        failure(500),
        failure(502, "bad gateway"),
        failure(503),
        failure(529),
        failure(408),
        failure(429),
        Action(reset=True),
        Action(body=b'{"choices": [{"message": {"content": "cut'),
        Action(body=b"<html>proxy</html>"),
        Action(body=b"[]"),
        Action(body=b"\xff\xfe"),
        completion("", choices=[]),
        completion("", choices=None),
        completion("", choices=[{"index": 0}]),
        completion("", choices=[], error={"code": 502, "message": "provider is down"}),
        Action(body=b'{"a"', headers={"Content-Length": "400"}, reset=False, delay=0),
    ],
    ids=lambda a: f"{a.status}-{a.body[:24]!r}{'-reset' if a.reset else ''}",
)
def test_passing_faults_are_tried_again(settings, action):
    # Fewer bytes than announced, then silence: the time limit ends it.
    limits = {"timeout_s": 2} if action.headers else {}
    with serve(once(action)) as server:
        [reply], usage = send(settings(server.url, **limits))
    assert isinstance(reply, Reply)
    assert (usage.sent, usage.retries) == (2, 1)


def test_retry_after_in_seconds_is_waited_for_by_all_requests(settings):
    action = failure(429, "slow down", {"Retry-After": "1"})
    with serve(once(action)) as server:
        replies, usage = send(settings(server.url, concurrency=1, max_wait_s=2), ask("1"), ask("2"))
    assert all(isinstance(r, Reply) for r in replies)
    assert server.times[1] - server.times[0] >= 1.0
    assert usage.sent == 3


def test_retry_after_as_a_date_is_understood(settings):
    from email.utils import formatdate

    with serve(once(failure(503, "", {"Retry-After": formatdate(time.time() + 2)}))) as server:
        send(settings(server.url, max_wait_s=5))
    assert 0.5 < server.times[1] - server.times[0] < 4


def test_a_wait_over_the_limit_ends_with_both_numbers(settings):
    with serve(once(failure(429, "quota", {"Retry-After": "3600"}))) as server:
        with pytest.raises(LLMRequestError, match=r"asks to wait 3600 s, the limit is 2 s"):
            send(settings(server.url, max_wait_s=2))
        assert len(server.bodies) == 1


def test_tries_have_a_bound(settings):
    with serve(lambda n, body: failure(500, "broken for good")) as server:
        with pytest.raises(LLMRequestError, match=r"500 - broken for good \(3 tries\).*run the"):
            send(settings(server.url))
        assert len(server.bodies) == 3


def test_a_slow_server_is_given_up_after_the_time_limit(settings):
    with serve(lambda n, body: Action(delay=3)) as server:
        with pytest.raises(LLMRequestError, match=r"no reply within 0.3 s \(2 tries\)"):
            send(settings(server.url, timeout_s=0.3, tries=2))
        assert len(server.bodies) == 2


def test_a_server_that_drips_bytes_is_given_up_too(settings):
    slow = Action(body=completion('{"a": 1}').body, drip=True)
    with serve(lambda n, body: slow) as server:
        with pytest.raises(LLMRequestError, match=r"no reply within 0.5 s"):
            send(settings(server.url, timeout_s=0.5, tries=2))
        assert len(server.bodies) == 2


def test_an_unusable_reply_that_stays_is_one_answer_not_the_end(settings):
    def behaviour(n, body):
        if body["messages"][0]["content"] == "filtered":
            return completion("", choices=[])
        return completion('{"a": 1}')

    with serve(behaviour) as server:
        (bad, good), _ = send(settings(server.url), ask("filtered"), ask("fine"))
        assert isinstance(good, Reply)
        assert bad.startswith("unusable reply: IndexError")
        assert "(3 tries)" in bad
        # It is not kept: the next run asks for it again.
        _, usage = send(settings(server.url), ask("filtered"), ask("fine"))
    assert usage.cached == 1
    assert usage.sent == 3


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (failure(401, "Incorrect API key"), r"401.*check the key in OPENAI_API_KEY"),
        (failure(403, "not yours"), r"403.*check the key"),
        (failure(404, "The model `x` does not exist"), r"does not exist.*check the model's name"),
        (failure(400, "maximum context length is 2048 tokens"), r"maximum context length"),
        (failure(413, "too large"), r"413.*nothing was tried again"),
        (failure(402, "no credit"), r"402"),
        (Action(301, b"", {"Location": "http://127.0.0.1:1/v1"}), r"give the final base URL"),
        (failure(429, "pay", code="insufficient_quota"), r"pay; add credit"),
        (completion("", choices=[], error={"code": 401, "message": "who?"}), r"401.*who"),
    ],
    ids=lambda v: v.status if isinstance(v, Action) else "",
)
def test_what_no_try_heals_ends_at_once(settings, action, message):
    with serve(lambda n, body: action) as server:
        with pytest.raises(LLMRequestError, match=message) as caught:
            send(settings(server.url, concurrency=1), *(ask(str(i)) for i in range(20)))
        assert len(server.bodies) == 1
    assert "\n" not in str(caught.value)
    assert f"judge-model at {server.url}" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_nobody_listens(settings, tmp_path):
    with serve(lambda n, body: Action()) as server:
        pass
    with pytest.raises(LLMRequestError, match=r"connection failed.*\(2 tries\)"):
        send(settings(server.url, tries=2))


@pytest.mark.parametrize(
    ("refused", "modes"),
    [
        ({"json_schema"}, ["json_schema", "json_object"]),
        ({"json_schema", "json_object"}, ["json_schema", "json_object", None]),
    ],
)
def test_structured_output_is_lowered_where_it_is_refused_and_said_once(
    settings, refused, modes, caplog
):
    def behaviour(n, body):
        kind = body.get("response_format", {}).get("type")
        if kind in refused:
            return failure(400, f"response_format {kind} is not supported")
        return completion('{"a": 1}')

    with serve(behaviour) as server:
        replies, usage = send(settings(server.url, concurrency=1), ask("1"), ask("2"), ask("3"))
        sent = [b.get("response_format", {}).get("type") for b in server.bodies]
        assert sent == [*modes, modes[-1], modes[-1]]
        assert {r.structured for r in replies} == {modes[-1] or "none"}
        assert usage.retries == 0
        warned = [r for r in caplog.records if "refuses response_format" in r.message]
        assert len(warned) == len(refused)
        # The way of asking is not part of what is asked: the next run sends nothing.
        _, usage = send(settings(server.url), ask("1"), ask("2"), ask("3"))
    assert (usage.sent, usage.cached) == (0, 3)


def test_options_of_other_endpoints(settings, caplog):
    def behaviour(n, body):
        if "max_tokens" in body:
            return failure(400, "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return failure(400, "Unsupported value: 'temperature' does not support 0")
        return completion('{"a": 1}')

    with serve(behaviour) as server:
        send(settings(server.url, concurrency=1), ask("1"), ask("2"))
    assert [sorted({"max_tokens", "max_completion_tokens", "temperature"} & set(b))
            for b in server.bodies] == [
        ["max_tokens", "temperature"], ["max_completion_tokens", "temperature"],
        ["max_completion_tokens"], ["max_completion_tokens"],
    ]  # fmt: skip
    assert "refuses temperature 0" in caplog.text


def test_requests_are_concurrent_and_bounded(settings):
    def behaviour(n, body):
        return Action(body=completion('{"a": 1}').body, delay=0.1)

    with serve(behaviour) as server:
        send(settings(server.url, concurrency=5), *(ask(str(i)) for i in range(20)))
    assert 3 <= server.most_at_once <= 5


def test_equal_requests_are_sent_once_and_a_rerun_sends_nothing(settings):
    with serve(lambda n, body: completion('{"a": 1}')) as server:
        replies, usage = send(settings(server.url), *(ask(str(i % 3)) for i in range(9)))
        assert (usage.asked, usage.sent) == (3, 3)
        again, usage = send(settings(server.url), *(ask(str(i % 3)) for i in range(9)))
        assert (usage.asked, usage.sent, usage.cached) == (3, 0, 3)
        assert again == replies
        assert len(server.bodies) == 3
        # Everything that decides a reply is part of its name.
        other = settings(server.url).model_copy(update={"model": "other"})
        assert send(other, ask("0"))[1].sent == 1
        assert send(settings(server.url, max_tokens=99), ask("0"))[1].sent == 1


def test_what_came_before_an_error_is_kept(settings):
    healed = []

    def behaviour(n, body):
        return completion('{"a": 1}') if n < 4 or healed else failure(401)

    with serve(behaviour) as server:
        asks = [ask(str(i)) for i in range(10)]
        with pytest.raises(LLMRequestError):
            send(settings(server.url, concurrency=1), *asks)
        assert len(server.bodies) == 5
        healed.append(True)
        _, usage = send(settings(server.url), *asks)
    assert (usage.cached, usage.sent) == (4, 6)


def test_it_runs_inside_a_running_event_loop(settings):
    import asyncio

    async def inside(config):
        return send(config)

    with serve(lambda n, body: completion('{"a": 1}')) as server:
        [reply], _ = asyncio.run(inside(settings(server.url)))
    assert isinstance(reply, Reply)


# The key.


ECHO = f"you sent {KEY} and that is wrong"


@pytest.mark.parametrize(
    "behaviour",
    [
        lambda n, body: completion(f'{{"a": 1, "b": "{KEY}"}}', model=f"m-{KEY}"),
        lambda n, body: failure(401, ECHO),
        lambda n, body: failure(400, ECHO),
        lambda n, body: failure(500, ECHO),
        lambda n, body: failure(400, f"{ECHO} response_format"),
        lambda n, body: failure(429, ECHO, {"Retry-After": "9999"}),
        lambda n, body: Action(body=ECHO.encode()),
        lambda n, body: Action(401, ECHO.encode(), {"Content-Type": "text/plain"}),
        lambda n, body: Action(307, b"", {"Location": f"http://127.0.0.1:1/?k={KEY}"}),
        lambda n, body: completion("", choices=[], error={"code": 401, "message": ECHO}),
        lambda n, body: Action(reset=True),
        lambda n, body: completion("", choices=[{"message": {"refusal": ECHO}}]),
    ],
    ids=range(12),
)
def test_the_key_is_in_no_file_log_error_or_repr(
    settings, behaviour, tmp_path, caplog, capfd, monkeypatch
):
    caplog.set_level(logging.DEBUG)
    written = [repr(settings("http://127.0.0.1:1/v1")), str(settings("http://127.0.0.1:1/v1"))]
    with serve(behaviour) as server:
        config = settings(server.url, tries=2)
        written += [config.model_dump_json(), repr(config.model_dump()), config.name]
        try:
            result = send(config, ask("1"), ask("2"))
            written.append(repr(result))
        except LLMRequestError as err:
            seen = err
            while seen is not None:
                written += [str(seen), repr(seen), repr(vars(seen))]
                written.append("".join(traceback.format_exception(seen)))
                seen = seen.__cause__ or seen.__context__
        assert KEY in server.headers[0]["authorization"]
    out, errors = capfd.readouterr()
    written += [out, errors, caplog.text]
    written += [p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    assert len("".join(written)) > 500
    assert not [text for text in written if KEY in text]


def test_a_damaged_entry_is_found_and_asked_again(settings, tmp_path, caplog):
    with serve(lambda n, body: completion('{"a": 1}')) as server:
        send(settings(server.url))
        [path] = (tmp_path / "cache").rglob("*.json")
        whole = path.read_text()
        swapped = json.loads(whole)
        swapped["reply"]["text"] = '{"a": 2}'
        for damage in ("", whole[:40], "null", json.dumps(swapped), "\x00\xff"):
            path.write_text(damage)
            caplog.clear()
            [reply], usage = send(settings(server.url))
            assert reply.text == '{"a": 1}'
            assert (usage.sent, usage.corrupt, usage.cached) == (1, 1, 0)
            assert "is damaged" in caplog.text
            assert path.read_text() == whole
    assert path.stat().st_mode & 0o077 == 0


def test_several_processes_share_a_cache(settings, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path\n"
        "from harness_ext.llm.cache import ReplyCache, digest\n"
        "from harness_ext.llm.verdicts import Reply\n"
        "cache = ReplyCache(Path(sys.argv[1]))\n"
        "for turn in range(60):\n"
        "    for i in range(5):\n"
        "        key = digest(i)\n"
        "        found = cache.get(key)\n"
        "        assert found is None or found.text == 'x' * 5000 + str(i)\n"
        "        cache.put(key, Reply(text='x' * 5000 + str(i), model='m', endpoint='e',\n"
        "                             structured='none', request=key))\n"
        "print(cache.corrupt)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c")], stdout=-1, text=True)
        for _ in range(4)
    ]
    assert [p.communicate(timeout=60)[0].strip() for p in running] == ["0"] * 4
    assert len(list((tmp_path / "c").rglob("*.json"))) == 5
    assert not list((tmp_path / "c").rglob("*.tmp"))
