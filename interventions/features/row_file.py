"""Rows of tokens on disk: what a pass has read is there for later steps without the text."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from interventions.errors import FeatureError
from interventions.text.rows import Row

_WORD = 4


class RowFile:
    """Rows in the order they were read: a length, the ids and the documents, 4 bytes each.

    Text that comes over the network is fetched once, and memory does not grow with it.
    """

    def __init__(self, path: Path, keep: int) -> None:
        """Open or make the file, and drop what a killed pass wrote after its last checkpoint.

        Args:
            path: in a folder that is there.
            keep: rows that stay.

        Raises:
            FeatureError: the file has fewer rows.
        """
        self.path = path
        self._file = path.open("a+b")
        size, at, there = path.stat().st_size, 0, 0
        while there < keep and at + _WORD <= size:
            self._file.seek(at)
            at += _WORD + 2 * _WORD * int.from_bytes(self._file.read(_WORD), "little")
            there += 1
        if there < keep or at > size:
            self._file.close()
            raise FeatureError(
                f"{path} has not the {keep} rows that were read; remove {path.parent} to begin anew"
            )
        self._file.truncate(at)

    def add(self, row: Row) -> None:
        """Write a row behind the others."""
        for part in (torch.tensor([len(row.ids)]), row.ids, row.document):
            self._file.write(part.to(torch.int32).numpy().tobytes())

    def sync(self) -> None:
        """Return when all rows are on disk; a checkpoint that counts them may follow."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows from the first; only one is in memory at a time."""
        self._file.flush()
        with self.path.open("rb") as file:
            while head := file.read(_WORD):
                size = int.from_bytes(head, "little")
                yield Row(_longs(file.read(_WORD * size)), _longs(file.read(_WORD * size)))

    def remove(self) -> None:
        """Delete the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; it stays on disk."""
        self._file.close()


def _longs(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.int32).long()
