"""Whole runs on text of the user's: stored and streamed, killed outright, several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from interventions.errors import TextError, TrainingError
from interventions.train.config import TrainConfig
from interventions.train.files import read_tensors
from interventions.train.pipeline import run
from interventions.train.run import Run, load_trained

TOKENS = 14_000
ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> Path:
    """Return a JSONL file of tokens, so that the rows are known."""
    generator = torch.Generator().manual_seed(8)
    path = tmp_path_factory.mktemp("text") / "tokens.jsonl"
    lines = [
        json.dumps({"ids": torch.randint(0, 250, (48,), generator=generator).tolist()})
        for _ in range(TOKENS // 48)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def make(tiny_model_dir, text_file):
    def settings(**changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "name": "tiny",
            "model": str(tiny_model_dir),
            "hook_point": "blocks.2.hook_resid_post",
            "seed": 1,
            "threads": 1,
            "device": "cpu",
            "text": {
                "context": 48,
                "sources": [{"path": str(text_file), "tokens": "ids"}],
            },
            "harvest": {"holdout_tokens": 1000, "chunk_rows": 64, "batch_tokens": 1024},
            "trainer": {
                "d_sae": 64,
                "k": 4,
                "tokens_seen": 40_000,
                "batch_size": 128,
                "lr": 3e-3,
                "checkpoint_steps": 20,
                "gemm": "float32",
                "aux_rows": 32,
                "threshold_rows": 64,
            },
            "evaluate": {"tokens": 800, "loss_tokens": 200, "stats_tokens": 2000},
        }
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
        return values

    return settings


def test_text_alone_makes_an_sae(make, tmp_path):
    config = TrainConfig.model_validate(make())
    reports = run(config, tmp_path)
    found = reports["harvest"]
    assert found["held_tokens"] >= 1000
    assert found["calibrate_tokens"] >= 1000
    total = sum(found[f"{part}_tokens"] for part in ("train", "held", "calibrate"))
    assert TOKENS - 48 - 100 < total < TOKENS  # one row between is left out
    assert reports["evaluate"]["guarded"]["l0"] == pytest.approx(4, rel=0.2)
    sae = load_trained(Run(config, tmp_path).result)
    assert sae.d_sae == 64
    card = (Run(config, tmp_path).result / "README.md").read_text()
    assert "tokens.jsonl (weight 1)" in card


def test_streamed_text_makes_one_too_and_stores_the_held_out_part_only(make, tmp_path):
    trainer = {"tokens_seen": 9_000}
    config = TrainConfig.model_validate(
        make(harvest={"store": False, "buffer_tokens": 2048}, trainer=trainer)
    )
    reports = run(config, tmp_path)
    assert not list((tmp_path / "harvest").glob("train_*"))
    assert reports["harvest"]["streamed"] is True
    assert reports["stats"]["tokens"] == 2000
    assert reports["evaluate"]["guarded"]["l0"] == pytest.approx(4, rel=0.3)
    assert load_trained(Run(config, tmp_path).result).max_act is not None


def test_documents_that_are_held_out_are_not_trained_on_in_later_epochs(make, tmp_path):
    config = TrainConfig.model_validate(make(text={"epochs": 3}))
    parts, rest = Run(config, tmp_path).split_text()
    held = {tuple(row.tolist()) for some in parts.values() for row in some}
    seen = [tuple(row.tolist()) for row in rest]
    assert len(seen) > 2 * len(set(seen))
    assert not held & set(seen)


def test_excluded_ids_are_not_trained_on(make, tmp_path):
    config = TrainConfig.model_validate(make(harvest={"exclude": list(range(100)), "guard": None}))
    run(config, tmp_path, until="harvest")
    this = Run(config, tmp_path)
    stored = read_tensors(tmp_path / "harvest" / "train_00000.safetensors")
    assert (stored["tokens"] < 100).any()
    chosen = TrainConfig.model_validate(make(harvest={"exclude": "special"}))
    assert Run(chosen, tmp_path).without == (0, 1, 2)
    assert this.limit is None
    tokens = [read_tensors(path)["tokens"] for path in (tmp_path / "harvest").glob("train_*")]
    expected = int((torch.cat(tokens) >= 100).sum())
    assert len(this.source(config.trainer).acts) == expected  # type: ignore[attr-defined]


def test_too_little_text_and_text_that_ends_are_one_line(make, tmp_path):
    config = TrainConfig.model_validate(make(harvest={"holdout_tokens": 9000}))
    with pytest.raises(TextError, match=r"more than twice harvest\.holdout_tokens=9000"):
        run(config, tmp_path / "a")
    config = TrainConfig.model_validate(make(harvest={"store": False, "buffer_tokens": 2048}))
    with pytest.raises(TrainingError, match=r"the text ended after .* raise\s+text\.epochs"):
        run(config, tmp_path / "b")


def test_text_that_changes_between_two_attempts_is_refused(make, text_file, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_text(text_file.read_text())
    source = {"sources": [{"path": str(copy), "tokens": "ids"}]}
    streamed = {"store": False, "buffer_tokens": 2048}
    config = TrainConfig.model_validate(make(text=source, harvest=streamed))
    run(config, tmp_path / "out", until="harvest")
    copy.write_text("\n".join(reversed(text_file.read_text().splitlines())))
    with pytest.raises(TrainingError, match="begins otherwise than when"):
        run(config, tmp_path / "out")
    config = TrainConfig.model_validate(make(text=source))
    run(config, tmp_path / "stored", until="harvest")
    (tmp_path / "stored" / "harvest" / "done.json").unlink()
    copy.write_text(text_file.read_text())
    with pytest.raises(TrainingError, match="holds other text than the config gives now"):
        run(config, tmp_path / "stored")


def _command(settings: dict[str, Any], folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    script = ROOT / "scripts" / "train.py"
    return [str(script), str(path), "--out", str(folder / name), "--until"]


_CASES: dict[str, dict[str, Any]] = {
    "own": {"trainer": {"tokens_seen": 200_000}},
    "streamed": {
        "harvest": {"store": False, "buffer_tokens": 2048},
        "text": {"epochs": 40},
        "trainer": {"tokens_seen": 120_000},
    },
    "saelens": {"trainer": {"tokens_seen": 60_000, "backend": "saelens", "aux_rows": 256,
                            "threshold_rows": 128}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", list(_CASES))
def test_kill_9_and_the_same_command_again_end_with_the_same_bytes(case, make, tmp_path):
    if case == "saelens":
        pytest.importorskip("sae_lens")
    settings = make(**_CASES[case])
    command = _command(settings, tmp_path, "killed")
    folder = tmp_path / "killed" / "train"
    complaints = (tmp_path / "stderr.txt").open("w+")
    with (
        complaints,
        subprocess.Popen(
            [sys.executable, *command, "train"], env=ENVIRONMENT, stderr=complaints
        ) as started,
    ):
        deadline = time.monotonic() + 300
        while not (folder / "checkpoint.safetensors").is_file():
            assert started.poll() is None, Path(complaints.name).read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        started.send_signal(signal.SIGKILL)
    assert started.returncode == -signal.SIGKILL
    assert not (folder / "done.json").is_file()
    subprocess.run(
        [sys.executable, *command, "train"], env=ENVIRONMENT, check=True, capture_output=True
    )
    config = TrainConfig.model_validate(settings)
    reports = run(config, tmp_path / "whole", until="train")
    name = "inference/sae_weights.safetensors" if case == "saelens" else "dictionary.safetensors"
    whole = tmp_path / "whole" / "train" / name
    assert (folder / name).read_bytes() == whole.read_bytes()
    report = json.loads((folder / "done.json").read_text())
    assert report["resumed"] is True
    assert report["curve"] == reports["train"]["curve"]
    assert (report["fvu"], report["l0"]) == (reports["train"]["fvu"], reports["train"]["l0"])


@pytest.mark.slow
def test_two_processes_end_where_one_does_on_the_joined_batch(make, tmp_path):
    settings = make(trainer={"tokens_seen": 8_000})
    command = _command(settings, tmp_path, "two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, *command, "save", "--json"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    config = TrainConfig.model_validate(settings)
    reports = run(config, tmp_path / "one")
    printed = json.loads(done.stdout)  # by one of the two
    assert printed["harvest"]["median_norm"] == reports["harvest"]["median_norm"]
    for path in (tmp_path / "one" / "harvest").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "two" / "harvest" / path.name).read_bytes()
    one = read_tensors(tmp_path / "one" / "train" / "dictionary.safetensors")
    two = read_tensors(tmp_path / "two" / "train" / "dictionary.safetensors")
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=2e-3, atol=2e-3, msg=name)
    fvu = reports["evaluate"]["guarded"]["fvu"]
    assert printed["evaluate"]["guarded"]["fvu"] == pytest.approx(fvu, rel=1e-2)


@pytest.mark.slow
def test_two_processes_make_one_sae_from_a_stream(make, tmp_path):
    harvest = {"store": False, "buffer_tokens": 2048}
    settings = make(harvest=harvest, trainer={"tokens_seen": 8_000})
    command = _command(settings, tmp_path, "two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *launcher, *command, "train"],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=500,
        check=True,
    )
    folder = tmp_path / "two" / "train"
    report = json.loads((folder / "done.json").read_text())
    assert report["steps"] == 8_000 // 128
    assert report["l0"] == pytest.approx(4, rel=0.3)
    row, _ = read_tensors(folder / "checkpoint.safetensors")["position"].tolist()
    assert row * 48 >= 2048  # it is past the first buffer: rows of both processes are counted
    alone = run(TrainConfig.model_validate(settings), tmp_path / "one", until="train")
    assert report["fvu"] == pytest.approx(alone["train"]["fvu"], rel=0.15)


@pytest.mark.slow
def test_a_whole_run_with_the_trainer_of_saelens(make, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    trainer = {
        "architecture": "topk",
        "tokens_seen": 20_000,
        "d_sae": None,
        "expansion": 3,
        "aux_rows": 256,
        "threshold_rows": 128,
    }
    config = TrainConfig.model_validate(make(trainer=trainer))
    reports = run(config, tmp_path)
    folder = Run(config, tmp_path).result
    assert reports["evaluate"]["guarded"]["l0"] <= 4
    assert reports["calibrate"]["threshold_instead"] > 0
    assert "bf16" not in reports["evaluate"]
    card = (folder / "README.md").read_text()
    assert "A sparse autoencoder (architecture topk, k = 4)" in card
    assert "Stored in fp32." in card
    log = json.loads((folder / "training_log.json").read_text())
    assert log["config"]["trainer"]["d_sae"] == 96
    TrainConfig.model_validate(log["config"])
    theirs = sae_lens.SAE.load_from_disk(str(folder), device="cpu")
    ours = load_trained(folder)
    resid = Run(config, tmp_path).source(config.trainer.resolved(32)).acts[:200].float()  # type: ignore[attr-defined]
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(resid), theirs.encode(resid), rtol=1e-4, atol=1e-3)
    assert theirs.cfg.metadata.trained_as == "topk"
    assert ours.max_act is not None
