"""Driving a trainer: checkpoints, exact resume, progress, figures."""

import json
from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from interventions.train.files import StepFolder, read_tensors, write_tensors, write_text
from interventions.train.progress import Progress
from interventions.train.tracker import Tracker
from interventions.train.world import World


class Driven(Protocol):
    """What `drive` needs of a trainer."""

    steps: int
    batch_size: int
    figures: dict[str, float]

    @property
    def step(self) -> int:
        """Steps taken."""
        ...

    def batches(self) -> Iterator[Tensor]:
        """Yield batches from the current position on, until `steps` are done."""
        ...

    def train_step(self, x: Tensor) -> None:
        """Change the weights by one step."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        ...


def drive(
    trainer: Driven,
    folder: StepFolder,
    checkpoint_steps: int,
    world: World,
    tracker: Tracker | None = None,
) -> list[dict[str, Any]]:
    """Return the figures at every checkpoint, after the last step.

    `checkpoint.safetensors` is written every `checkpoint_steps`; a run that was killed goes on
    from it and takes the same steps that it would have taken.
    """
    checkpoint, history = folder.path / "checkpoint.safetensors", folder.path / "curve.json"
    curve: list[dict[str, Any]] = []
    if checkpoint.is_file():
        trainer.load_state(read_tensors(checkpoint))
        if history.is_file():
            # Written before the checkpoint: it may be ahead by one.
            found = json.loads(history.read_text())
            curve = [point for point in found if point["step"] <= trainer.step]
            # The last figures, for a run that was stopped after its last step.
            trainer.figures = {k: v for k, v in curve[-1].items() if k != "step"} if curve else {}
    world.barrier()  # nobody writes a checkpoint before all have read the old one
    batch = trainer.batch_size
    with Progress("train" if world.first else "", trainer.steps * batch, "tok") as bar:
        for x in trainer.batches():
            trainer.train_step(x)
            if not world.first:
                continue
            figures = trainer.figures
            bar.to(trainer.step * batch, **{name: f"{v:.3g}" for name, v in figures.items()})
            if tracker is not None and trainer.step % tracker.every == 0:
                tracker.log(trainer.step, {**figures, "tokens": trainer.step * batch})
            if trainer.step % checkpoint_steps == 0:
                curve.append({"step": trainer.step, **figures})
                write_text(history, json.dumps(curve))
                write_tensors(checkpoint, trainer.state())
    return curve
