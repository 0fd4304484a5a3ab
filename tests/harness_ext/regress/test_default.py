"""The committed example, run as a user runs it, on the embedded model."""

import json
from pathlib import Path

import pytest
import yaml

from harness_ext.cli import main
from harness_ext.regress.baseline import read_baseline

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "examples" / "regress" / "default.yaml"
WORKFLOW = ROOT / ".github" / "workflows" / "regress.yml"

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """The example with an edit that drowns the model, under the same name."""
    folder = tmp_path_factory.mktemp("damaged")
    config = yaml.safe_load(CONFIG.read_text())
    edits = [{"op": "clamp", "feature": 3036, "strength": 3.0}]
    config["specs"] = [{**config["specs"][0], "edits": edits}]
    config["baseline"] = str(CONFIG.parent / config["baseline"])
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["regress", "run", str(file), "--output", str(folder / "out")]) == 2
    return folder / "out"


def test_the_committed_baseline_is_that_of_the_config():
    config = yaml.safe_load(CONFIG.read_text())
    baseline = read_baseline(CONFIG.parent / config["baseline"])
    assert list(baseline.runs) == ["baseline", "music"]
    for run in baseline.runs.values():
        assert len(run.tasks["steer_arith_hint"].questions) == config["limit"]


def test_the_workflow_runs_that_command():
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["regress"]["steps"]
    commands = " ".join(step.get("run", "") for step in steps)
    assert "sae-steered regress run examples/regress/default.yaml" in commands


def test_the_example_passes(tmp_path, capsys):
    junit, summary = tmp_path / "regress.xml", tmp_path / "summary.md"
    argv = ["regress", "run", str(CONFIG), "--junit", str(junit), "--summary", str(summary)]
    assert main([*argv, "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["outcome"] == "passed"
    assert junit.is_file()
    assert "passed" in summary.read_text()


def test_a_damaging_edit_is_not_comparable_and_regresses_where_that_is_tested(damaged, capsys):
    baseline = str(CONFIG.parent / "default_baseline.json")
    argv = ["regress", "check", str(damaged), "--baseline", baseline]
    assert main(argv) == 2
    assert "intervention" in capsys.readouterr().out
    argv += ["--margin", "truncation=0.05", "--margin", "mean_tokens=10"]
    assert main([*argv, "--changed", "intervention"]) == 1
    assert "REGRESSED" in capsys.readouterr().out
