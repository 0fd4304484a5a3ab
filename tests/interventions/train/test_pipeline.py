import json
import shutil

import pytest
import yaml

from interventions.errors import ModelNotFoundError, TrainingError
from interventions.train import pipeline
from interventions.train.config import TrainConfig, load_config
from interventions.train.pipeline import STEPS, Run, load_trained, run


def _config(model: str) -> dict:
    return {
        "name": "tiny",
        "model": model,
        "hook_point": "blocks.2.hook_resid_post",
        "seed": 1,
        "threads": 1,
        "generate": {"tokens": 9000, "batch_size": 32, "max_new_tokens": 24},
        "docs": {"tokens": 6000, "packages": ["stdlib"]},
        "harvest": {"context": 64, "chunk_rows": 64, "holdout_every": 4},
        "trainer": {
            "d_sae": 128,
            "k": 6,
            "tokens_seen": 60_000,
            "batch_size": 256,
            "lr": 3e-3,
            "checkpoint_steps": 50,
            "gemm": "float32",
        },
        "evaluate": {"tokens": 2000, "loss_tokens": 400},
    }


@pytest.fixture(scope="module")
def settings(tiny_model_dir):
    return _config(str(tiny_model_dir))


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    config = TrainConfig.model_validate(settings)
    return config, out, run(config, out)


def test_one_command_makes_an_sae_that_loads_and_reconstructs(finished):
    config, out, reports = finished
    assert tuple(reports) == STEPS
    found = reports["evaluate"]["guarded"]
    assert found["fvu"] < 0.6
    assert found["l0"] == pytest.approx(6, rel=0.2)
    # Of a random model the losses mean nothing, but each arm must differ from the others.
    losses = {round(value, 6) for name, value in found.items() if name.startswith("loss_")}
    assert len(losses) == 4
    assert all("wall_s" in report for report in reports.values())
    folder = Run(config, out).result
    sae = load_trained(folder)
    assert (sae.d_model, sae.d_sae) == (32, 128)
    assert sae.max_act is not None
    assert sae.median_norm == pytest.approx(reports["harvest"]["median_norm"])
    log = json.loads((folder / "training_log.json").read_text())
    assert log["config"]["seed"] == 1
    assert log["steps"]["docs"]["sources"][0]["licence"] == "PSF-2.0"
    card = (folder / "README.md").read_text()
    assert f"{found['fvu']:.4f}" in card


def test_a_finished_run_does_nothing_again(finished, monkeypatch):
    config, out, reports = finished

    def refuse(*_: object) -> dict:
        raise AssertionError("a finished step ran again")

    monkeypatch.setattr(pipeline, "_ACTIONS", dict.fromkeys(STEPS, refuse))
    assert run(config, out) == reports


def test_same_seed_gives_the_same_bytes_and_a_kill_between_steps_too(finished, tmp_path):
    config, out, _ = finished
    for step in STEPS[:3]:
        run(config, tmp_path, until=step)
    run(config, tmp_path)
    for name in ("sae_weights.safetensors", "stats.safetensors", "cfg.json"):
        mine, first = Run(config, tmp_path).result / name, Run(config, out).result / name
        assert mine.read_bytes() == first.read_bytes(), name


def test_other_settings_in_the_same_folder_are_refused(finished, settings, tmp_path):
    _, out, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    other = TrainConfig.model_validate({**settings, "seed": 2})
    with pytest.raises(TrainingError, match="files of other settings"):
        run(other, copy)
    trainer = {**settings["trainer"], "k": 5}
    other = TrainConfig.model_validate({**settings, "trainer": trainer})
    with pytest.raises(TrainingError, match="train holds files of other settings"):
        run(other, copy)


def test_a_model_that_is_not_there_is_one_line(settings, tmp_path):
    config = TrainConfig.model_validate({**settings, "model": str(tmp_path / "nothing")})
    with pytest.raises(ModelNotFoundError, match="cannot load the model") as caught:
        run(config, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_the_command_measures_an_sae_on_the_held_out_text(finished, settings, tmp_path, capsys):
    from harness_ext.cli import main

    config, out, reports = finished
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert load_config(path) == config
    folder = str(Run(config, out).result)
    command = ["train", str(path), "--out", str(out)]
    assert main([*command, "--evaluate", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["guarded"]["fvu"] == pytest.approx(reports["evaluate"]["guarded"]["fvu"])
    assert main(command) == 0
    assert "evaluate.guarded.fvu" in capsys.readouterr().out
    assert main([*command, "--evaluate", str(tmp_path)]) == 2
    assert "holds no sae_weights.safetensors" in capsys.readouterr().err
