"""Files of a run: written whole or not at all, and never mixed between settings."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from interventions.errors import TrainingError


class StepFolder:
    """The folder of one step, which belongs to one fingerprint of everything before it."""

    def __init__(self, path: Path, key: str) -> None:
        """Open or make the folder.

        Raises:
            TrainingError: the folder holds the files of other settings, or cannot be made.
        """
        self.path, self.key = path, key
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{path} cannot be made: {error}; name another --out") from error
        marker = path / "key.txt"
        if marker.is_file():
            found = marker.read_text().strip()
            if found != key:
                raise TrainingError(
                    f"{path} holds files of other settings ({found}, now {key}); remove it or"
                    f" name another --out"
                )
        else:
            write_text(marker, key + "\n")

    @property
    def done(self) -> dict[str, Any] | None:
        """What the step reported when it finished, or None."""
        path = self.path / "done.json"
        return json.loads(path.read_text()) if path.is_file() else None

    @property
    def spent(self) -> float:
        """Seconds of the attempts before this one, but for those that were killed outright."""
        path = self.path / "spent.txt"
        return float(path.read_text()) if path.is_file() else 0.0

    def spend(self, seconds: float) -> None:
        """Remember how many seconds the step has taken so far."""
        write_text(self.path / "spent.txt", f"{seconds:.3f}\n")

    def finish(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Return `report` after writing it; from now on the step is skipped."""
        write_text(self.path / "done.json", json.dumps(report, indent=2) + "\n")
        return dict(report)


def write_text(path: Path, text: str) -> None:
    """Write `text`, so that a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, so that a kill leaves the old file or the new one.

    Equal tensors and metadata give equal bytes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, dict(metadata or {}))
    if metadata and len(metadata) > 1:
        _sort_metadata(temporary)
    temporary.chmod(0o644)
    os.replace(temporary, path)


def _sort_metadata(path: Path) -> None:
    # safetensors writes metadata in the order of a hash map, another one each time.
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise TrainingError(
                f"{path}: the sorted header takes {len(text)} bytes and the file has {size}; use"
                f" plain text in metadata"
            )
        file.seek(8)
        file.write(text.ljust(size))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file."""
    return load_file(path)


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
