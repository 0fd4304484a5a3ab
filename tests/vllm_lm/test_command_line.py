"""lm-eval's program on vLLM: killed at any moment, and started again."""

import os
import signal
import time

import pytest

from tests.vllm_lm.programs import errors, finish, model_args, start

STEERED = {"sae_feature_idx": 3036, "sae_strength": 1.0, "hook_points": "all", "max_edits": 4}
N = 10
OPTIONS = ("--limit", str(N), "--gen_kwargs", "do_sample=True,temperature=0.8,max_gen_toks=24")


def lines(folder):
    """Return how many responses were ever written, duplicates included."""
    found = [line for file in folder.glob("*.jsonl") for line in file.read_bytes().splitlines()]
    return sum(not line.startswith(b'{"key":"' + b"0" * 32) for line in found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, engines):
    engines.close()
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def whole(folder):
    """A run without a journal that nobody kills."""
    out = folder / "whole"
    return finish(start(out, model_args(**STEERED), *OPTIONS), out)


def test_killed_and_resumed(folder, whole, say):
    journal, out = folder / "journal", folder / "killed"
    arguments = model_args(**STEERED, journal=journal, batch_size=2)
    process = start(out, arguments, *OPTIONS)
    deadline = time.monotonic() + 300
    while lines(journal) < 3:
        assert process.poll() is None, errors(out)[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # and what it started: as a job that is taken away
    process.wait()
    held = lines(journal)
    assert 3 <= held < N, "killed too late to test anything"
    out = folder / "resumed"
    resumed = finish(start(out, arguments, *OPTIONS), out)
    say(f"killed with {held} of {N} responses kept")
    told = resumed["steered"]["journal"]
    assert (told["resumed"], told["made"]) == (held, N - held)
    assert lines(journal) == N, "something was generated twice"
    assert resumed["responses"] == whole["responses"]
    assert resumed["results"] == whole["results"]
    receipt, reference = resumed["steered"]["receipt"], whole["steered"]["receipt"]
    assert receipt["resumed"] == held
    assert receipt["rows"] == reference["rows"] == N
    # Rows from the prefix cache are not run again, and how many those are is chance.
    for edit, other in zip(receipt["edits"], reference["edits"], strict=True):
        total = edit["selected"] + receipt["cached_tokens"]
        assert edit["selected"] == edit["expected"] <= total
        assert abs(total - other["selected"] - reference["cached_tokens"]) <= N * 64
    out = folder / "again"
    again = finish(start(out, arguments, *OPTIONS), out)
    assert again["responses"] == whole["responses"]
    assert again["steered"]["journal"]["made"] == 0
    assert lines(journal) == N
