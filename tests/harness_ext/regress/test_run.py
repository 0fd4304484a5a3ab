"""`regress run` and real results of lm-eval, with a tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_ext.cli import main
from harness_ext.errors import RecordError
from harness_ext.regress.baseline import read_baseline
from harness_ext.regress.runs import load_runs
from tests.tiny_models import save_model, save_sae


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict[str, Any]:
    model = save_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512)
    sae = save_sae(tmp_path_factory.mktemp("sae"))
    return {
        "baseline": "baseline.json",
        "model": {"pretrained": str(model), "device": "cpu", "dtype": "float32"},
        "specs": [
            {
                "name": "pushed",
                "sae": {"path": str(sae.path)},
                "check_model": False,
                "edits": [{"op": "add", "feature": 0, "value": 2.0}],
            }
        ],
        "tasks": ["steer_arith_hint"],
        "limit": 3,
        "gen_kwargs": {"max_gen_toks": 6},
        "chat_template": False,
        "margins": {"acc_none": 0.1, "mean_tokens": 3},
    }


def write(config: dict[str, Any], folder: Path, **changes: Any) -> str:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({**config, **changes}))
    return str(file)


@pytest.fixture(scope="module")
def made(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("regress")
    argv = ["regress", "run", write(config, folder), "--update", "--output", str(folder / "out")]
    assert main(argv) == 0
    return folder


def test_update_writes_the_baseline_beside_the_config(made):
    baseline = read_baseline(made / "baseline.json")
    assert list(baseline.runs) == ["baseline", "pushed"]
    assert len(baseline.runs["pushed"].tasks["steer_arith_hint"].questions) == 3
    plain, pushed = (baseline.runs[name].identity for name in baseline.runs)
    assert plain["sae"] == []
    assert len(pushed["sae"]) == 1
    assert pushed["intervention"]["edits"][0]["feature"] == 0
    assert plain["decoding"]["steer_arith_hint"]["generation_kwargs"]["max_gen_toks"] == 6
    assert plain["data"]["steer_arith_hint"]


def test_nothing_of_the_machine_is_in_the_baseline(made):
    text = (made / "baseline.json").read_text()
    assert "/tmp" not in text
    assert str(Path.home()) not in text


@pytest.mark.slow
def test_the_same_config_passes(made, config, capsys):
    assert main(["regress", "run", write(config, made), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["outcome"] == "passed"
    assert {c["run"] for c in verdict["checks"]} == {"baseline", "pushed"}
    assert all(c["loss"] <= 0 for c in verdict["checks"] if c["p"] is not None)


@pytest.mark.slow
def test_another_sae_edit_and_decoding_are_named_unless_they_are_what_is_tested(
    made, config, capsys, tmp_path
):
    other = save_sae(tmp_path / "other", seed=7)
    spec = {
        **config["specs"][0],
        "sae": {"path": str(other.path)},
        "edits": [{"op": "add", "feature": 0, "value": 3.0}],
    }
    file = write(config, made, specs=[spec], gen_kwargs={"max_gen_toks": 4})
    assert main(["regress", "run", file, "--output", str(tmp_path / "out")]) == 2
    told = " ".join(capsys.readouterr().out.split())
    assert "differs in decoding, sae, intervention" in told
    assert "max_gen_toks: 6 in the baseline, 4 in the run" in told
    assert "edits[0].value: 2.0 in the baseline, 3.0 in the run" in told
    again = ["regress", "check", str(tmp_path / "out"), "--baseline", str(made / "baseline.json")]
    assert main([*again, "--changed", "sae"]) == 2
    capsys.readouterr()
    assert main([*again, "--changed", "sae,intervention,decoding"]) in (0, 1)
    told = " ".join(capsys.readouterr().out.split())
    assert "differs on purpose, not compared: sae, intervention, decoding" in told


def test_a_missing_baseline_is_reported_before_anything_is_generated(config, tmp_path, capsys):
    assert main(["regress", "run", write(config, tmp_path, model={"pretrained": "/no"})]) == 2
    assert "baseline.json" in capsys.readouterr().err


def test_a_margin_of_no_use_is_reported_before_anything_is_generated(made, config, capsys):
    gone = {"pretrained": "/no"}
    for margins, says in (({"acc_placebo": 0.1}, "update --metric"), ({"acc_none": 5}, "any run")):
        assert main(["regress", "run", write(config, made, model=gone, margins=margins)]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.slow
def test_an_earlier_run_in_the_folder_is_not_checked_in_its_place(made, config, tmp_path, capsys):
    shutil.copytree(made / "out", tmp_path / "out")
    renamed = [{**config["specs"][0], "name": "renamed"}]
    argv = ["regress", "run", write(config, made, specs=renamed)]
    assert main([*argv, "--output", str(tmp_path / "out"), "--json"]) == 2
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["differences"] == [
        ["pushed", "run", "the run has no 'pushed'; it has 'baseline', 'renamed'"]
    ]


def test_of_several_results_the_newest_counts(made, tmp_path):
    shutil.copytree(made / "out", tmp_path / "out")
    folder = tmp_path / "out" / "baseline"
    old = next(folder.glob("samples_*.jsonl"))
    stamp = old.stem.rsplit("_", 1)[1]
    results = folder / f"results_{stamp}.json"
    newer = "2099-01-01T00-00-00.000000"
    lines = old.read_text().splitlines()[:2]
    (folder / f"samples_steer_arith_hint_{newer}.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copy(results, folder / f"results_{newer}.json")
    run = load_runs([tmp_path / "out"])["baseline"]
    assert len({r.qid for r in run.records}) == 2


def test_two_runs_of_one_name_are_refused(made, tmp_path):
    shutil.copytree(made / "out", tmp_path / "out")
    results = next((tmp_path / "out" / "pushed").glob("results_*.json"))
    told = json.loads(results.read_text())
    told["config"]["sae_steered"]["edits"]["edits"][0]["value"] = 9.0
    copy = tmp_path / "out" / "again"
    shutil.copytree(results.parent, copy)
    (copy / results.name).write_text(json.dumps(told))
    with pytest.raises(RecordError, match="two runs are called 'pushed'"):
        load_runs([tmp_path / "out"])


def test_results_without_samples_are_refused(made, tmp_path):
    results = next((made / "out" / "baseline").glob("results_*.json"))
    shutil.copy(results, tmp_path)
    with pytest.raises(RecordError, match="--log_samples"):
        load_runs([tmp_path])
    (tmp_path / results.name).write_text("{}")
    with pytest.raises(RecordError, match="not a results file"):
        load_runs([tmp_path])
