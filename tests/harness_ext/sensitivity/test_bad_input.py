"""What cannot be run is one line and exit code 2; an interrupt one line and 130."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from harness_ext import cli
from tests.harness_ext.sensitivity.runs import FEATURES, command, texts, without
from tests.llm_server import serve

NOBODY = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sae-names", "nope"], "unknown SAE name 'nope'"),
        (["--sae-names", "py_4k_btopk_s0"], "is of EleutherAI/pythia-160m-deduped, --model is"),
        (["--facts", "nowhere"], "--facts and --text both say where examples come from"),
        (["--feature-indices", "3", "48"], "feature 48 is outside 0..47 of"),
        (["--sae-path", "nowhere"], "SAE 'nowhere' does not exist"),
        (["--tries", "1"], f"writer at {NOBODY}: connection failed"),
        (["--base-url", "host"], "the LLM base URL is 'host'; give http(s)://"),
        (["--context-size", "20"], "--context-size 20 holds no example: windows have 21 tokens"),
        (
            ["--n-top-ex-for-generation", "0", "--n-iw-ex-for-generation", "0"],
            "the writer would see no example",
        ),
        (["--output-path", "/dev/null/x"], "--output-path /dev/null/x cannot be written"),
    ],
)
def test_what_cannot_be_used_is_one_line(place, tmp_path, capsys, more, message):
    assert cli.main(command(place, tmp_path, NOBODY, *more)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("sae-steered sensitivity: error: ")
    assert message in last


def test_facts_that_are_not_there_are_one_line(place, tmp_path, capsys):
    given = without(command(place, tmp_path, NOBODY, "--facts", "nowhere"), "--text")
    assert cli.main(given) == 2
    assert "nowhere holds no facts" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--features", "-2"),
        ("--alive", "-1"),
        ("--samples", "0"),
        ("--attempts", "0"),
        ("--max-workers", "0"),
        ("--n-top-ex-for-generation", "-4"),
        ("--total-tokens", "1.5"),
        ("--price", "-1"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_loaded(
    tmp_path, capsys, option, value
):
    given = [option, value, "2"] if option == "--price" else [option, value]
    with pytest.raises(SystemExit, match="2"):
        cli.main(command(tmp_path / "no model", tmp_path, NOBODY, *given))
    assert f"argument {option}: " in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("missing", "message"),
    [("--base-url", "no LLM endpoint; give a base URL"), ("--llm-model", "set PROCESSOR")],
)
def test_an_endpoint_without_address_key_or_model_is_refused(
    place, tmp_path, capsys, monkeypatch, missing, message
):
    for name in ("OPENAI_API_KEY", "OPENROUTER_API_KEY", "OPENAI_BASE_URL", "PROCESSOR"):
        monkeypatch.delenv(name, raising=False)
    given = command(place, tmp_path, NOBODY)
    at = given.index(missing)
    assert cli.main(given[:at] + given[at + 2 :]) == 2
    assert message in capsys.readouterr().err


def test_a_feature_without_examples_costs_no_request_and_keeps_its_row(place, tmp_path, capsys):
    # So few tokens that some features are silent.
    few = ["--total-tokens", "200", "--json", "--feature-indices", *map(str, range(48))]
    with serve(lambda n, body: texts()) as server:
        assert cli.main(command(place, tmp_path, server.url, *few)) == 0
        sent = len(server.bodies)
    data = json.loads(capsys.readouterr().out)[0]
    silent = [row for row in data["features"] if row["status"] == "no examples"]
    assert 0 < len(silent) == 48 - sent == data["n_without_texts"]
    assert data["n_features"] == 48
    assert all(row["generated"]["value"] is row["original"]["value"] is None for row in silent)


def test_an_interrupt_is_one_line_and_the_same_command_asks_for_the_rest(place, tmp_path, capfd):
    third, done = threading.Event(), threading.Event()

    def reply(n, body):
        if n == 2:
            third.set()
            done.wait(60)
        return texts()

    program = "from harness_ext.cli import main; raise SystemExit(main())"
    with serve(reply) as server:
        given = command(place, tmp_path, server.url, "--max-workers", "1")
        with subprocess.Popen(
            [sys.executable, "-c", program, *given],
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # A suite that a shell runs in the background ignores interrupts, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            assert third.wait(120)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            said = process.stderr.read().decode()
            code = process.wait(60)
        done.set()
        assert code == 130
        assert said.strip().splitlines()[-1] == "sae-steered sensitivity: interrupted"
        assert "Traceback" not in said
        assert cli.main([*given, "--json"]) == 0
    used = json.loads(capfd.readouterr().out)[0]["llm"]["usage"]
    assert (used["asked"], used["cached"], used["sent"]) == (len(FEATURES), 2, 1)
