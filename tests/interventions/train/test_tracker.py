import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from interventions.errors import TrainingError
from interventions.train.config import LogConfig, TrainerConfig
from interventions.train.files import StepFolder
from interventions.train.tracker import tracked
from interventions.train.trainer import train

_CONFIG = LogConfig(to="wandb", project="p", every=5)


class _Library(types.ModuleType):
    """Notes what it is told, as W&B and trackio are told it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: dict = {}
        self.points: list = []
        self.ended = 0

    def init(self, **arguments):
        self.begun = arguments

    def log(self, figures, step):
        self.points.append((step, figures))

    def finish(self):
        self.ended += 1


def test_a_library_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    config = LogConfig(to="trackio", project="p")
    with (
        pytest.raises(TrainingError, match="trackio is not installed; pip install trackio"),
        tracked(config, "n", "k", {}),
    ):
        pass
    with tracked(None, "n", "k", {}) as nothing:
        assert nothing is None


def test_figures_of_the_steps_arrive_and_the_run_is_ended(monkeypatch, tmp_path):
    library = _Library()
    monkeypatch.setitem(sys.modules, "wandb", library)
    config = TrainerConfig(d_sae=16, k=2, tokens_seen=32 * 20, batch_size=32, gemm="float32")
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    with tracked(_CONFIG, "name", "key", {"seed": 1}) as tracker:
        train(StepFolder(tmp_path, "k"), data, config, 0, tracker=tracker)
    assert library.begun["project"] == "p"
    assert (library.begun["id"], library.begun["resume"]) == ("key", "allow")
    assert [step for step, _ in library.points] == [5, 10, 15, 20]
    assert set(library.points[0][1]) == {"fvu", "l0", "dead", "tokens"}
    assert library.points[-1][1]["tokens"] == 640
    assert library.ended == 1


def test_a_library_that_cannot_begin_is_one_line(monkeypatch):
    library = _Library()

    def refuse(**_):
        raise RuntimeError("no key\nsecond line")

    library.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", library)
    with pytest.raises(TrainingError, match=r"cannot begin a run: no key; WANDB_MODE") as caught:
        tracked(_CONFIG, "n", "k", {}).__enter__()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_the_real_library_keeps_a_run_on_this_machine(library, tmp_path):
    pytest.importorskip(library)
    code = (
        "from interventions.train.config import LogConfig\n"
        "from interventions.train.tracker import tracked\n"
        f"with tracked(LogConfig(to='{library}', project='p'), 'n', 'key', {{'seed': 1}}) as t:\n"
        "    for step in range(3): t.log(step, {'fvu': 0.5, 'l0': 3.0})\n"
    )
    environment = {
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept = [path for path in tmp_path.rglob("*") if path.suffix in (".wandb", ".db")]
    assert kept
