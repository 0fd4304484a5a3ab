"""`sae-steered leaderboard`: plan, run, score, report, and what it says of mistakes."""

import json
import shutil

import pytest
import yaml

from harness_ext.cli import main
from tests.harness_ext.leaderboard.boards import tiny_config

pytestmark = pytest.mark.usefixtures("only_our_tasks")


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "board.yaml"
    data = tiny_config(*tiny, prompts=[], statistics={"draws": 200, "metrics": ["mean_tokens"]})
    path.write_text(yaml.safe_dump(data))
    return path


def test_plan_run_score_and_report(file, tmp_path, capsys):
    out = str(tmp_path / "o")
    assert main(["leaderboard", "plan", str(file), "--output", out, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["requests"], plan["kept"]) == (7 * 16, 0)
    assert not (tmp_path / "o").exists()
    assert main(["leaderboard", "run", str(file), "--output", out]) == 0
    shown, told = capsys.readouterr()
    assert "steer_arith_hint, mean_tokens: 2 candidates, 4 random rows" in shown
    assert "No discovery; smallest detectable effect" in shown or "at q 0.05" in shown
    assert "112 requests, 0 responses in the store." in told
    assert main(["leaderboard", "run", str(file), "--output", out, "--dry-run"]) == 0
    assert "112 responses in the store" in capsys.readouterr().out
    first = (tmp_path / "o" / "results.json").read_text()
    assert main(["leaderboard", "score", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(first)
    assert main(["leaderboard", "score", out, "--metrics", "acc_none", "--draws", "300"]) == 0
    assert "steer_arith_hint, acc_none" in capsys.readouterr().out
    assert json.loads((tmp_path / "o" / "results.json").read_text())["metrics"] == ["acc_none"]
    site = tmp_path / "site"
    assert main(["leaderboard", "report", out, "--output", str(site), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)
    assert str(site / "index.html") in files
    assert (site / "index.html").is_file()


def test_every_number_comes_from_the_store_alone(file, tmp_path, capsys):
    out = tmp_path / "o"
    assert main(["leaderboard", "run", str(file), "--output", str(out), "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    names = ["results.json", "lm_eval.json", "rows.json", "info.json", "leaderboard.csv"]
    kept = {name: (out / name).read_bytes() for name in names}
    shutil.rmtree(out / "records")
    for name in names:
        (out / name).unlink()
    assert main(["leaderboard", "score", str(out)]) == 2
    assert "--from-store" in capsys.readouterr().err.strip().splitlines()[-1]
    assert main(["leaderboard", "score", str(out), "--from-store", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == before
    assert {name: (out / name).read_bytes() for name in names} == kept
    last = json.loads((out / "runs.jsonl").read_text().splitlines()[-1])
    assert (last["made"], last["resumed"]) == (0, 7 * 16)


def test_mistakes_end_in_one_line(file, tmp_path, capsys):
    wrong = {
        "no leaderboard": ["score", str(tmp_path)],
        "own file again": ["score", str(tmp_path), "--from-store"],
        "cannot be read": ["run", str(tmp_path / "none.yaml")],
        "unknown backend 'x'": ["run", str(file), "--output", str(tmp_path / "o"), "--model-args",
                                "backend=x"],
    }  # fmt: skip
    for message, arguments in wrong.items():
        assert main(["leaderboard", *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("sae-steered leaderboard: error: ")
        assert message in error


def test_damaged_files_and_folders_that_cannot_be_made_are_named(file, tmp_path, capsys):
    out = tmp_path / "o"
    assert main(["leaderboard", "run", str(file), "--output", str(out)]) == 0
    kept = (out / "rows.json").read_text()
    (out / "rows.json").write_text(kept[:50])
    (out / "results.json").write_text("{")
    (tmp_path / "taken").write_text("")
    wrong = [
        (["score", str(out)], "rows.json is damaged"),
        (["report", str(out)], "results.json cannot be used (Invalid JSON"),
        (["score", str(out), "--output", str(tmp_path / "taken")], "cannot be made: File exists"),
    ]
    for arguments, message in wrong:
        assert main(["leaderboard", *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("sae-steered leaderboard: error: ")
        assert message in error
        (out / "rows.json").write_text(kept)
