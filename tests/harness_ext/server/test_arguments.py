"""`backend=server`: keys, arguments and the command line."""

import json
import logging
import os
import subprocess
import sys

import pytest
from aiohttp import web

from harness_ext.errors import ServerError
from interventions.errors import (
    SpecError,
)
from tests.harness_ext.server.asking import generate, one_line
from tests.steered_server import refuse


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
