"""Servers and engines that are set up otherwise: nothing runs unsteered without a word."""

import asyncio
import importlib.util
import json
import subprocess
import sys

import pytest

from tests.vllm_server import specs
from tests.vllm_server.ask import body, one, raw, together
from tests.vllm_server.server import ENVIRONMENT, POINTS, serve

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (docs/vllm.md)"
    ),
]


def test_an_engine_ends_what_no_frontend_compiled_and_lives_on(repo_root):
    run = subprocess.run(
        [sys.executable, "-m", "tests.vllm_server.second_gate"],
        cwd=repo_root, env=ENVIRONMENT, capture_output=True, text=True, timeout=420,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    # vLLM logs to the same stream.
    (line,) = [line for line in run.stdout.splitlines() if line.startswith('{"ended"')]
    found = json.loads(line)
    assert found["ended"] == {
        "plain": "length",
        "text": "error",
        "spec": "error",
        "number": "error",
        "old": "error",
        "compiled": "length",
        "plain again": "length",
    }
    assert found["text"]
    assert "the plugin sae_steered must be active in the frontend" in run.stderr + run.stdout
    assert "graph version 0.0" in run.stderr + run.stdout


def test_without_vllm_plugins_a_server_has_no_routes_and_without_a_config_it_refuses(tmp_path):
    with serve(tmp_path / "log", None, plugins=None) as server:
        assert server.get("/sae_steered/info").status_code == 404
        assert one(server).text
        answer = raw(server, "/v1/completions", body(specs.CLAMP))
        assert answer.status_code == 400
        assert "not started to be steered" in answer.json()["error"]["message"]
        assert one(server).text


def test_a_server_with_routes_and_without_a_config_says_so(tmp_path):
    with serve(tmp_path / "log", None) as server:
        for answer in (
            server.get("/sae_steered/info"),
            server.post("/sae_steered/check", {"spec": specs.CLAMP}),
            server.post("/sae_steered/receipt", {"tags": ["a"]}),
            raw(server, "/v1/completions", body(specs.CLAMP, stream=True)),
        ):
            assert answer.status_code == 400
            assert "not started to be steered" in answer.json()["error"]["message"]


def test_two_engines_of_one_server_both_steer_and_both_hand_in_receipts(tmp_path):
    config = {"hook_points": POINTS[:1]}
    with serve(tmp_path / "log", config, "--data-parallel-size", "2") as server:
        assert server.get("/sae_steered/info").json()["data_parallel_size"] == 2
        alone = {name: one(server, spec) for name, spec in specs.MIXED.items()}
        tags = {name: f"dp {name}" for name, spec in specs.MIXED.items() if spec and spec["edits"]}
        found = asyncio.run(
            together(server, {name: body(specs.MIXED[name], tags.get(name)) for name in alone})
        )
        assert alone["clamp"].tokens != alone["none"].tokens
        assert all(found[name][0].same(alone[name]) for name in alone)
        answer = server.post("/sae_steered/receipt", {"tags": list(tags.values())}).json()
        engines = [
            {tag: facts for tag, facts in ranks[0]["requests"].items() if facts}
            for ranks in answer["engines"]
        ]
        assert len(engines) == 2
        assert all(engines), "both engines ran some of the requests"
        assert sorted([*engines[0], *engines[1]]) == sorted(tags.values())
        norms = server.post("/sae_steered/median_norm", {"hook_points": POINTS[:1]})
        assert norms.json()["median_norm"][POINTS[0]] == pytest.approx(168, rel=0.02)
