"""The leaderboard command on vLLM: killed, resumed, and on two engines of one host."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_ext.journal import Journal
from harness_ext.leaderboard.board import read_board
from tests import tiny_models
from tests.vllm.tiny import CONFIG, D_MODEL
from tests.vllm_lm.conftest import ENVIRONMENT

ARGUMENTS: dict[str, Any] = {
    "backend": "vllm",
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 8,
    "enforce_eager": True,
    "gpu_memory_utilization": 0.2,
}
LIMIT = 4
PROGRAM = "from harness_ext.cli import main; raise SystemExit(main())"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaderboard")
    more = {**CONFIG["llama"], "max_position_embeddings": 512}
    model = tiny_models.save_model(folder / "model", "llama", **more)
    sae = tiny_models.save_sae(
        folder / "sae", layer=1, d_model=D_MODEL, max_act=6.0, median_norm=8.0
    )
    config = {
        "model": {**ARGUMENTS, "pretrained": str(model)},
        "chat_template": False,
        "sae": str(sae.path),
        "features": [0, 5, 9],
        "edits": [{"op": "add", "value": 30}],
        "tasks": [
            {"name": "steer_arith_hint", "limit": LIMIT, "gen_kwargs": {"max_gen_toks": 24}},
            {"name": "steer_arith", "limit": LIMIT, "gen_kwargs":
             {"max_gen_toks": 12, "do_sample": True, "temperature": 0.8}},
        ],
        "nulls": {"random_features": 2, "random_directions": 2},
        "prompts": [{"id": "say", "text": "Mention any hint.", "place": "question"}],
        "statistics": {"draws": 200},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def start(place: Path, name: str, **arguments: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", PROGRAM, "leaderboard", "run", str(place / "config.yaml")]
    command += ["--output", str(place / name), "--json"]
    if arguments:
        command += ["--model-args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    root = str(Path(__file__).parents[2])
    env = os.environ | ENVIRONMENT | {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    with (place / f"{name}.err").open("ab") as log:
        return subprocess.Popen(
            command, cwd=place, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def written(folder: Path) -> int:
    lines = [line for f in folder.glob("*.jsonl") for line in f.read_bytes().split(b"\n")]
    return sum(bool(line) and not line.startswith(b'{"key":"' + b"0" * 32) for line in lines)


def ended(process: "subprocess.Popen[bytes]", place: Path, name: str) -> Path:
    log = place / f"{name}.err"
    assert process.wait(timeout=400) == 0, log.read_text(errors="replace")[-4000:]
    return place / name


def same(one: Path, other: Path) -> None:
    a, b = read_board(one), read_board(other)
    assert [(r.id, r.fingerprint, r.mean_change) for r in a.rows] == [
        (r.id, r.fingerprint, r.mean_change) for r in b.rows
    ]
    assert a.records == b.records


@pytest.fixture(scope="module")
def plain(place: Path) -> Path:
    return ended(start(place, "plain"), place, "plain")


def test_all_rows_go_through_one_engine(plain: Path) -> None:
    board = read_board(plain)
    n = len(board.rows) * LIMIT * 5
    assert written(plain / "store") == n
    for row in board.rows:
        assert {r.intervention for r in board.records[row.id]} == {row.fingerprint}
        assert len(board.of(row.id, "steer_arith_hint")) == 4 * LIMIT
        assert len(board.of(row.id, "steer_arith")) == LIMIT
    texts = [str([r.final for r in board.records[row.id]]) for row in board.rows]
    assert len(set(texts)) > len(texts) // 2, "the rows do not differ"
    # The store tells in which order they ended: any stretch of it holds many rows.
    with Journal.open(plain / "store") as journal:
        (file,) = (plain / "store").glob("*.jsonl")
        keys = [json.loads(line)["key"] for line in file.read_text().splitlines()][1:]
        entries = [journal.get(key) for key in keys]
    order = [entry.response.intervention for entry in entries if entry]  # type: ignore[union-attr]
    assert len(set(order[: n // 4])) >= len(board.rows) - 2


def test_killed_and_resumed(place: Path, plain: Path) -> None:
    n, store = written(plain / "store"), place / "killed" / "store"
    process = start(place, "killed", batch_size=4)
    deadline = time.monotonic() + 400
    while written(store) < n // 3:
        assert process.poll() is None, (place / "killed.err").read_text(errors="replace")[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # and the engine that it started
    process.wait()
    held = written(store)
    assert held < n, "killed too late to test anything"
    out = ended(start(place, "killed"), place, "killed")
    same(plain, out)
    assert written(store) == n, "something was generated twice"
    (told,) = (json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines())
    assert (told["made"], told["resumed"]) == (n - held, held)


def test_two_engines_of_one_host(place: Path, plain: Path) -> None:
    out = ended(start(place, "two", data_parallel_size=2), place, "two")
    same(plain, out)
    assert read_board(out).info.engine["data_parallel_size"] == 2
