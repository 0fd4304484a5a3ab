"""The leaderboard command killed at random moments, or started twice: one board, nothing twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from harness_ext.journal import Journal
from harness_ext.leaderboard.board import read_board
from tests.harness_ext.leaderboard.boards import tiny_config
from tests.harness_ext.leaderboard.test_run import written

pytestmark = pytest.mark.slow

BATCH = 4
RUNNER = """
import functools, sys
from lm_eval.tasks import TaskManager
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
from harness_ext.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def start(tiny, tmp_path_factory, repo_root):
    """Return a function that starts the command on a folder."""
    place = tmp_path_factory.mktemp("kill")
    config = tiny_config(*tiny, tasks=[{"name": "steer_arith_hint", "limit": 3, "gen_kwargs":
                                        {"max_gen_toks": 16}}])  # fmt: skip
    config["model"]["batch_size"] = BATCH
    (place / "config.yaml").write_text(yaml.safe_dump(config))

    def run(name):
        command = [sys.executable, "-c", RUNNER, "leaderboard", "run", str(place / "config.yaml")]
        env = os.environ | {"PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
        out = place / name
        with (place / f"{name}.err").open("ab") as errors:
            process = subprocess.Popen(
                [*command, "--output", str(out), "--json"],
                env=env | {"HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )
        return process, out

    return run


@pytest.fixture(scope="module")
def plain(start):
    """Return the folder of a run that nobody kills."""
    return ended(*start("plain"))


def ended(process, out):
    assert process.wait(timeout=300) == 0, out.with_suffix(".err").read_text()[-4000:]
    return out


def same(one, other):
    """Return whether two folders hold the same rows, records and statistics."""
    a, b = read_board(one), read_board(other)
    # A direction lies in its own folder, and its name is no part of its fingerprint.
    assert [row.model_copy(update={"spec": None}) for row in a.rows] == [
        row.model_copy(update={"spec": None}) for row in b.rows
    ]
    assert a.records == b.records
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    assert results[0] == results[1]
    return len(a.rows) * 12


def test_killed_at_random_moments_it_ends_with_the_same_board(plain, start):
    n = same(plain, plain)
    assert written(plain) == n
    generator = random.Random(os.environ.get("KILL_SEED", "5"))
    moments = sorted(generator.sample(range(1, n - BATCH), 3))
    held = []
    for moment in moments:
        process, out = start("killed")
        while written(out) < moment and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, out.with_suffix(".err").read_text()[-3000:]
        held.append(written(out))
    process, out = start("killed")
    same(plain, ended(process, out))
    assert 0 < held[0] <= held[-1] < n
    with Journal.open(out / "store") as journal:
        assert len(journal) == n
    # A record that was cut off at a kill is in a file and does not count.
    assert written(out) - n <= len(moments)
    made = [json.loads(line)["made"] for line in (out / "runs.jsonl").read_text().splitlines()]
    assert sum(made) <= n - held[-1] + len(moments)


def test_two_processes_share_a_folder_and_end_with_the_same_board(plain, start):
    first, out = start("shared")
    while not written(out) and first.poll() is None:
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # in the middle of a batch, until the other one is at work
    second, _ = start("shared")
    deadline = time.monotonic() + 200
    while len(list((out / "store").glob("*.jsonl"))) < 2 and time.monotonic() < deadline:
        assert second.poll() is None, out.with_suffix(".err").read_text()[-3000:]
        time.sleep(0.002)
    first.send_signal(signal.SIGCONT)
    ended(first, out)
    n = same(plain, ended(second, out))
    assert written(out) == n, "something was generated twice"
    made = [json.loads(line)["made"] for line in (out / "runs.jsonl").read_text().splitlines()]
    assert len(made) == 2
    assert sum(made) == n
    assert min(made) > BATCH
