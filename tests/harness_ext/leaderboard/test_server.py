"""All rows through one server, and two clients of two servers that fill one store."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from harness_ext.leaderboard.board import BASELINE, read_board
from harness_ext.leaderboard.config import parse_config
from harness_ext.leaderboard.run import run
from interventions.errors import ReceiptError
from tests.harness_ext.leaderboard.boards import tiny_config
from tests.harness_ext.leaderboard.test_kill import RUNNER
from tests.harness_ext.leaderboard.test_run import written
from tests.steered_server import running

pytestmark = pytest.mark.usefixtures("only_our_tasks")
COMPLETIONS = "/v1/completions"


@pytest.fixture
def servers(tiny):
    with running(tiny[0]) as first, running(tiny[0]) as second:
        for one in (first, second):
            one.info["max_model_len"] = 512
        yield first, second


def config_of(tiny, url, limit=3):
    data = tiny_config(*tiny, tasks=[{"name": "steer_arith_hint", "limit": limit,
                                      "gen_kwargs": {"max_gen_toks": 4}}])  # fmt: skip
    data["model"] = {"backend": "server", "pretrained": tiny[0], "base_url": f"{url}/v1"}
    return data


def test_requests_of_all_rows_are_in_one_queue(servers, tiny, tmp_path):
    server = servers[0]
    board = run(parse_config(config_of(tiny, server.url)), tmp_path)
    assert board is not None
    bodies = [body for path, body in server.asked if path == COMPLETIONS]
    assert len(bodies) == len(board.rows) * 12
    specs = [json.dumps((body.get("vllm_xargs") or {}).get("sae_steered", "none"), sort_keys=True)
             .split('tag')[0] for body in bodies]  # fmt: skip
    # Any window of the queue holds every row, the baseline and the prompt among them.
    assert len(set(specs[: len(board.rows)])) == len({row.fingerprint for row in board.rows})
    assert server.most_together > 4
    for row in board.rows:
        assert {r.intervention for r in board.records[row.id]} == {row.fingerprint}
    assert written(tmp_path) == len(bodies)


def test_a_row_that_was_not_edited_fails_the_run_and_what_was_made_is_kept(servers, tiny, tmp_path):
    server, lied = servers[0], []

    def lie(facts):
        if len(lied) == 40:
            facts["counts"]["0"][0][0] -= 1
        lied.append(facts)

    server.lie = lie
    config = parse_config(config_of(tiny, server.url))
    with pytest.raises(ReceiptError):
        run(config, tmp_path)
    kept = written(tmp_path)
    server.lie = None
    board = run(config, tmp_path)
    assert board is not None
    assert 0 < kept < written(tmp_path) == len(board.rows) * 12
    assert len(board.records[BASELINE]) == 12


@pytest.mark.slow
def test_two_clients_of_two_servers_share_a_store(servers, tiny, tmp_path, repo_root):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_of(tiny, "http://nowhere", 8)))
    processes = []
    for number, server in enumerate(servers):
        command = [sys.executable, "-c", RUNNER, "leaderboard", "run"]
        command += [str(tmp_path / "config.yaml"), "--output", str(tmp_path / "board"), "--json"]
        command += ["--model-args", f"base_url={server.url}/v1"]
        with (tmp_path / f"{number}.txt").open("wb") as log:
            env = os.environ | {"PYTHONPATH": str(repo_root), "HF_HUB_OFFLINE": "1"}
            processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    for number, process in enumerate(processes):
        assert process.wait(timeout=200) == 0, (tmp_path / f"{number}.txt").read_text()[-3000:]
    asked = [sum(path == COMPLETIONS for path, _ in server.asked) for server in servers]
    board = read_board(tmp_path / "board")
    assert sum(asked) == written(tmp_path / "board") == len(board.rows) * 32
    alone = run(parse_config(config_of(tiny, servers[0].url, 8)), tmp_path / "alone")
    assert alone is not None
    assert alone.records == board.records
    lines = (tmp_path / "board" / "runs.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["made"] for line in lines) == len(board.rows) * 32
    print("made by each client", asked)  # noqa: T201
