"""Passes over text that are killed with SIGKILL: nothing is lost, and the result is the same."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.interventions.features.facts_cases import make_text
from tests.tiny_models import save_model, save_sae

pytestmark = pytest.mark.slow  # eleven processes, each of which imports everything

# The process kills itself right after a checkpoint that is neither the first nor the last.
KILLED = """
import os, signal, sys
from interventions.features import aggregate, facts, firings
from interventions.features.checkpoint import Checkpoint
from harness_ext.cli import main
facts._ROWS_TOGETHER, aggregate._AT_ONCE, firings._ROWS_AT_ONCE = 8, 4, 8
Checkpoint.due = property(lambda self: True)
last, save, saved = int(sys.argv[1]), Checkpoint.save, []
def counted(self, sums, **more):
    written = save(self, sums, **more)
    saved.append(1)
    if len(saved) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return written
Checkpoint.save = counted
status = main(sys.argv[2:])
print("saves", len(saved))
raise SystemExit(status)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    save_model(folder / "model")
    save_sae(folder / "sae", median_norm=2.0)
    make_text(folder)
    lines = (folder / "text.jsonl").read_text().splitlines()
    (folder / "base.jsonl").write_text("\n".join(lines[:14]))
    (folder / "exp.jsonl").write_text("\n".join(lines[14:30]))
    return folder


@pytest.fixture(scope="module")
def run(base, repo_root):
    environment = {**os.environ, "SAE_STEERED_CACHE": str(base / "cache")}

    def call(kill_at, *command):
        given = [*command, "--model", str(base / "model"), "--sae-path", str(base / "sae")]
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(kill_at), *given, "--no-check"],
            cwd=repo_root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


def saves(done):
    assert done.returncode in (0, 1), done.stderr
    return int(done.stdout.split("saves")[-1])


def test_facts_that_were_killed_twice_end_with_the_same_bytes(base, run):
    text = ["--text", str(base / "text.jsonl"), "--tokens", "1200", "--context", "48"]
    whole = saves(run(0, "facts", *text, "--out", str(base / "whole")))
    assert whole >= 4
    cut = ["facts", *text, "--out", str(base / "cut")]
    for _ in range(2):
        assert run(2, *cut).returncode == -signal.SIGKILL
        assert not (base / "cut" / "info.json").exists()
    # The killed ones left two blocks each: the third has that many fewer to do.
    assert saves(run(0, *cut)) == whole - 4
    names = {path.name for path in (base / "whole").iterdir()}
    assert names == {path.name for path in (base / "cut").iterdir()}
    for name in names:
        assert (base / "whole" / name).read_bytes() == (base / "cut" / name).read_bytes(), name


def test_a_contrast_that_was_killed_ends_with_the_same_ranking(base, run):
    sets = ["--base", str(base / "base.jsonl"), "--exp", str(base / "exp.jsonl")]
    command = ["score", "contrast", *sets, "--permutations", "99", "--max-q", "1"]
    whole = saves(run(0, *command, "--out", str(base / "whole.json")))
    cut = [*command, "--out", str(base / "cut.json")]
    assert run(2, *cut).returncode == -signal.SIGKILL
    assert not (base / "cut.json").exists()
    assert saves(run(0, *cut)) == whole - 2
    found = [json.loads((base / f"{name}.json").read_text()) for name in ("whole", "cut")]
    assert found[0] == found[1]
    assert found[0]["features"]
    # Sums of a pass go when its result is written.
    assert not list(base.glob(".*.run-*"))


def test_both_passes_of_sensitivity_go_on_where_they_were_killed(base, run, tmp_path):
    text = ["--text", str(base / "text.jsonl"), "--total-tokens", "1200", "--context-size", "48"]
    some = ["--features", "5", "--alive", "2", "--dry-run", "--json"]
    writer = ["--llm-model", "nobody", "--base-url", "http://127.0.0.1:9/v1"]
    command = ["sensitivity", *text, *some, *writer]
    whole = saves(run(0, *command, "--output-path", str(tmp_path / "whole")))
    # Each pass saves as often as the other.
    assert whole % 2 == 0
    assert whole >= 8
    cut = [*command, "--output-path", str(tmp_path / "cut")]
    # The first is killed in the first pass, the second in the second one.
    assert run(2, *cut).returncode == -signal.SIGKILL
    assert run(whole // 2, *cut).returncode == -signal.SIGKILL
    assert not list((tmp_path / "cut").glob("*/.text/examples-*"))
    assert saves(run(0, *cut)) == whole // 2 - 2
    found = []
    for name in ("whole", "cut"):
        (path,) = (tmp_path / name).glob("*/.text/examples-*.json")
        found.append(json.loads(path.read_text()))
        assert found[-1].pop("seconds") > 0
        assert not list(path.parent.glob("firings-*"))
    assert found[0] == found[1]
    assert any(examples for *_, examples in found[0]["features"])
