"""Running sums on disk, so that a pass over text that was killed goes on where it had been."""

import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from interventions.errors import FeatureError, TrainingError
from interventions.train.files import StepFolder, read_tensors, write_tensors

_COST = 20


class Checkpoint:
    """The latest running sums of one pass, in a folder that belongs to one key.

    The key is `interventions.fingerprint.digest` of everything that the sums depend on: subject,
    text, settings. Whatever says how far the pass has come (rows, batches) is a tensor like the
    others, written in the same atomic file, so that the two cannot disagree.
    """

    def __init__(self, folder: Path, key: str, *, every: float = 60.0) -> None:
        """Open or make the folder.

        Args:
            folder: of this pass alone.
            key: of everything that the sums depend on.
            every: seconds between two writes of `save`, at least; more where a write takes long.
                0 writes every time.

        Raises:
            FeatureError: the folder holds the sums of another pass, or cannot be made.
        """
        try:
            self._folder = StepFolder(folder, key)
        except TrainingError as error:
            raise FeatureError(str(error)) from None
        self._path = folder / "sums.safetensors"
        self._every = self._pause = every
        self._written = time.monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """Return the sums that were saved last, on the CPU, or None where there are none."""
        return read_tensors(self._path) if self._path.is_file() else None

    @property
    def due(self) -> bool:
        """Whether `save` would write now; lets a caller spare the copy from the device."""
        return time.monotonic() - self._written >= self._pause

    def save(self, sums: Mapping[str, Tensor], *, force: bool = False) -> bool:
        """Return whether the sums were written; they are where `every` seconds have passed.

        Args:
            sums: by name; on any device.
            force: write whatever the clock says.
        """
        if not (force or self.due):
            return False
        begin = time.monotonic()
        write_tensors(self._path, {name: tensor.cpu() for name, tensor in sums.items()})
        self._written = time.monotonic()
        # What grows with the text may come to take long: never more than a twentieth of the time.
        if self._every:
            self._pause = max(self._every, _COST * (self._written - begin))
        return True

    def clear(self) -> None:
        """Remove the sums and the folder, once the result is written elsewhere."""
        # What a kill cut off in the middle of a write has the name and a number.
        halves = self._folder.path.glob(f".{self._path.name}.*")
        for path in (self._path, self._folder.path / "key.txt", *halves):
            path.unlink(missing_ok=True)
        # Something else was put there: not ours to remove.
        if not any(self._folder.path.iterdir()):
            self._folder.path.rmdir()
