"""Figures of a run sent to W&B or trackio, where the settings ask for it."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from interventions.errors import TrainingError
from interventions.train.config import LogConfig


class Tracker:
    """A run of W&B or trackio; both have the same three calls."""

    def __init__(self, config: LogConfig, name: str, key: str, settings: Mapping[str, Any]) -> None:
        """Begin a run, or go on with it.

        Args:
            config: which library, which project.
            name: of the run, where the settings name none.
            key: the same for a run that is continued.
            settings: stored with the run.

        Raises:
            TrainingError: the library is not installed, or cannot begin a run.
        """
        self.every = config.every
        try:
            self._library: Any = importlib.import_module(config.to)
        except ImportError as error:
            raise TrainingError(
                f"log.to: {config.to} is not installed; pip install {config.to}, or take `log` out"
                f" of the config"
            ) from error
        name = config.run or name
        arguments: dict[str, Any] = {"project": config.project, "config": dict(settings)}
        if config.to == "wandb":
            arguments |= {"name": name, "id": key, "resume": "allow"}
        else:
            arguments |= {"name": f"{name}-{key}", "resume": "allow"}
        try:
            with redirect_stdout(sys.stderr):  # stdout is for the report
                self._library.init(**arguments)
        except Exception as error:  # each library has its own, and none of them is the run's fault
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise TrainingError(
                f"log.to: {config.to} cannot begin a run: {first[0]}; WANDB_MODE=offline keeps W&B"
                f" on this machine"
            ) from error

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Send figures of one step."""
        self._library.log(dict(figures), step=step)

    def close(self) -> None:
        """End the run."""
        with redirect_stdout(sys.stderr):
            self._library.finish()


@contextmanager
def tracked(
    config: LogConfig | None, name: str, key: str, settings: Mapping[str, Any]
) -> Iterator[Tracker | None]:
    """Yield a tracker that is closed afterwards, or None where none is asked for."""
    if config is None:
        yield None
        return
    tracker = Tracker(config, name, key, settings)
    try:
        yield tracker
    finally:
        tracker.close()
