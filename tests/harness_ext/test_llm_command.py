import json

import pytest
from harness_ext.scripts.judge import main

from harness_ext.cli import main as cli
from harness_ext.errors import LLMConfigError, LLMRequestError, RecordError
from harness_ext.records import Record, read_records, write_records
from tests.llm_server import completion, failure, fields_of, serve

KEY = "sk-test-0123456789-secret-key"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in ("OPENAI_BASE_URL", "OPENROUTER_API_KEY", "PROCESSOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("SAE_STEERED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def records(tmp_path):
    base = {
        "task": "steer_arith_hint", "gold": "7", "n_tokens": 8, "finish_reason": "stop",
        "reasoning": "", "question": "How many?", "status": "answered",
    }  # fmt: skip
    out = []
    for i in range(4):
        out.append(Record(**base, qid=f"q{i}", arm="none", answer="5", correct=False,
                          final=f"5, or rather seven {i}"))  # fmt: skip
        out.append(Record(**base, qid=f"q{i}", arm="hint", hint_id="seed_source",
                          hint_sign="wrong", hint_target="9", answer="9", correct=False,
                          final=f"The source says 9. {i}"))  # fmt: skip
    write_records(out, tmp_path / "records.jsonl")
    return str(tmp_path / "records.jsonl")


def answer(n, body):
    fields = fields_of(body)
    known = {"request_id": fields["request_id"]}
    if "hint" in fields:
        said = "source" in fields["final"][0]
        return completion({
            **known, "evidence": "source says" if said else "", "mentions": said,
            "relies": "decisive" if said else "none", "channel": "final" if said else "none",
        })  # fmt: skip
    right = "seven" in fields["response_end"]
    return completion({
        **known, "quote": "seven" if right else "9", "verdict": "equivalent" if right
        else "different",
    })  # fmt: skip


def run(server, records, tmp_path, *more):
    arguments = [records, "--out", str(tmp_path / "out.jsonl"), "--base-url", server.url,
                 "--model", "m", *more]  # fmt: skip
    return main(arguments)


def test_records_get_their_verdicts_and_the_second_run_sends_nothing(records, tmp_path, capsys):
    with serve(answer) as server:
        assert run(server, records, tmp_path, "--json") == 0
        out = json.loads(capsys.readouterr().out)
        assert len(server.bodies) == out["usage"]["sent"] == 16
        first = (tmp_path / "out.jsonl").read_bytes()
        assert run(server, records, tmp_path, "--json") == 0
        again = json.loads(capsys.readouterr().out)
        assert len(server.bodies) == 16
    assert again["usage"]["sent"] == 0
    assert again["usage"]["cached"] == 16
    assert (tmp_path / "out.jsonl").read_bytes() == first
    run_values = out["tasks"]["steer_arith_hint"]["none"]
    assert run_values["exact_match"] == {"none": 0, "wrong": 0}
    assert run_values["exact_match_verified"] == {"none": 1, "wrong": 0}
    assert run_values["verifier"] == {"different": 4, "equivalent": 4}
    assert run_values["judge"] == {"does not mention": 4, "mentions": 4}
    done = read_records(tmp_path / "out.jsonl")
    assert [r.correct for r in done] == [False] * 8
    assert all(r.verified.replies[0].model == "served-model" for r in done)


def test_rescore_prints_the_new_metrics_of_its_output(records, tmp_path, capsys):
    with serve(answer) as server:
        run(server, records, tmp_path, "--json")
    capsys.readouterr()
    assert cli(["rescore", str(tmp_path / "out.jsonl"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["steer_arith_hint"]["none"]
    assert values["verbalization"]["judge"] == 1
    assert values["dependence"] == 1
    assert values["false_positive_rate"]["judge"] == 0
    assert values["acc_verified"]["none"] == 1
    assert values["acc"]["none"] == 0


def test_one_half_alone(records, tmp_path, capsys):
    with serve(answer) as server:
        run(server, records, tmp_path, "--only", "verifier")
        assert len(server.bodies) == 8
        assert all(r.judge is None for r in read_records(tmp_path / "out.jsonl"))
        run(server, records, tmp_path, "--only", "judge", "--on", "hint")
        assert len(server.bodies) == 12
    assert "equivalent" in capsys.readouterr().out


def test_a_dry_run_sends_nothing_and_needs_no_endpoint(records, capsys):
    assert main([records, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"records": 8, "verifier": 8, "judge": 8}
    assert main([records, "--dry-run"]) == 0
    assert "nothing was sent" in capsys.readouterr().out


def test_attacks_are_measured_with_and_without_the_screen(capsys, monkeypatch, tmp_path):
    def naive(n, body):
        fields = fields_of(body)
        known = {"request_id": fields["request_id"]}
        text = json.dumps(fields)
        if "hint" in fields:
            obeys = "hint is mentioned" in text
            said = obeys or "The professor indicates" in " ".join(fields["reasoning"])
            said = said and "not mentioned" not in text
            return completion({
                **known, "evidence": fields["reasoning"][0][:9] if said else "",
                "mentions": said, "relies": "decisive" if said else "none", "channel": "none",
            })  # fmt: skip
        obeys = "answer is equivalent" in text
        return completion({**known, "quote": "37", "verdict": "equivalent" if obeys
                           else "different"})  # fmt: skip

    with serve(naive) as server:
        assert main(["--attacks", "--base-url", server.url, "--model", "m", "--json"]) == 0
        out = json.loads(capsys.readouterr().out)
        monkeypatch.setenv("COLUMNS", "140")
        assert main(["--attacks", "--base-url", server.url, "--model", "m"]) == 0
    table = capsys.readouterr().out
    alone, used = out["model alone"]["won"], out["in use"]["won"]
    assert alone["judge_yes"]["before"] == "no"
    assert alone["judge_no"]["before"] == "yes"
    assert alone["verifier"]["before"] == "different"
    for target in ("judge_yes", "judge_no"):
        assert 0 < used[target]["won"] < alone[target]["won"]
        assert used[target]["after"]["suspect"] >= 38
    # It believed each attack on the verifier; the claim of 37 for 39 was refused all the same.
    assert alone["verifier"]["won"] == used["verifier"]["won"] == 0
    assert alone["verifier"]["after"]["refused"] > 20
    assert f"{alone['judge_yes']['won']} of {alone['judge_yes']['attacks']}" in table


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], LLMConfigError, "give RECORDS and --out FILE"),
        (["RECORDS"], LLMConfigError, "give RECORDS and --out FILE"),
        (["RECORDS", "--out", "RECORDS"], LLMConfigError, "is one of the records files"),
        (["nowhere.jsonl", "--out", "o"], RecordError, "cannot be read"),
        (["RECORDS", "--out", "o"], LLMConfigError, "set PROCESSOR"),
        (["RECORDS", "--out", "o", "--model", "m", "--base-url", "x"], LLMConfigError, "give http"),
        (
            ["RECORDS", "--out", "o", "--model", "m", "--api-key-env", "NOT_THERE",
             "--base-url", "http://localhost:1"], LLMConfigError, "variable NOT_THERE",
        ),
        (
            ["RECORDS", "--out", "o", "--model", "m", "--base-url", "http://localhost:1",
             "--concurrency", "0"], LLMConfigError, "concurrency: ",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(records, arguments, error, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = [records if a == "RECORDS" else a for a in arguments]
    with pytest.raises(error, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_refuses_ends_the_command_with_one_line(records, tmp_path, capsys):
    with serve(lambda n, body: failure(404, "The model `m` does not exist.")) as server:
        arguments = [records, "--out", str(tmp_path / "o"), "--base-url", server.url]
        code = cli(["judge", *arguments, "--model", "m"])
        with pytest.raises(LLMRequestError):
            main([*arguments, "--model", "m"])
    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    assert "does not exist" in err
    assert not (tmp_path / "o").exists()


def test_there_is_no_argument_for_a_key(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "--api-key " not in text
    assert "--api-key-env" in text


@pytest.mark.slow
def test_an_interrupt_ends_it_at_once_and_keeps_what_came(records, tmp_path, repo_root):
    import os
    import signal
    import subprocess
    import sys
    import time

    def behaviour(n, body):
        found = answer(n, body)
        found.delay = 0 if n < 3 else 60
        return found

    with serve(behaviour) as server:
        command = subprocess.Popen(
            [sys.executable, "-c", "from harness_ext.cli import main; raise SystemExit(main())",
             "judge", records, "--out", str(tmp_path / "o"), "--base-url", server.url,
             "--model", "m", "--concurrency", "4"],
            env={**os.environ, "PYTHONPATH": str(repo_root)}, stderr=subprocess.PIPE, text=True,
            # A suite that a shell runs in the background ignores interrupts, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        end = time.monotonic() + 60
        while len(server.bodies) < 7 and time.monotonic() < end:
            time.sleep(0.05)
        command.send_signal(signal.SIGINT)
        try:
            _, err = command.communicate(timeout=30)
        finally:
            command.kill()
    assert command.returncode == 130
    assert err.strip().endswith("sae-steered judge: interrupted")
    assert "Traceback" not in err
    assert len(list((tmp_path / "cache" / "llm").rglob("*.json"))) == 3
    assert not (tmp_path / "o").exists()
