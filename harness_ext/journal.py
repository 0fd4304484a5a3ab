"""A response journal: what a model returned, kept so that a killed run goes on where it was.

A folder of append-only files, one a process. Why not one SQLite file: its pages have no checksum,
so a flipped byte can go unnoticed or make all that follows unreadable, and its write-ahead log
does not work on network file systems, where several machines may fill one journal. Here a record
is one line with its own checksum, a writer never waits for another, and damage stays in one line.

    with Journal.open("runs/j") as journal:
        key = response_key(backend="hf", model=..., intervention=..., prompt=ids, ...)
        entry = journal.get(key)
        if entry is None:
            entry = Entry(generate(...), counts)
            journal.put(key, entry)
"""

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness_ext.journal_entry import Entry, JournalError, from_data, response_key, to_data
from harness_ext.journal_lines import FACTS_KEY, FORMAT, Line, from_line, read_lines, to_line
from harness_ext.journal_locks import Locks

logger = logging.getLogger(__name__)

__all__ = ["Entry", "Journal", "JournalError", "response_key"]

_SYNC_SECONDS = 5.0
_LOCK_FILE = "claims.lock"


class Journal:
    """Responses by key, in a folder that several processes may fill at once.

    Attributes:
        path: the folder.
        facts: plain data on what writes here (versions, device), recorded in each file.
        problems: what was found damaged, one message each; also logged as warnings.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], locks: Locks) -> None:
        """Use `Journal.open`."""
        self.path, self.facts = path, dict(facts)
        self.problems: list[str] = []
        self._locks = locks
        self._mutex = threading.RLock()
        self._index: dict[str, tuple[str, int, int]] = {}
        self._read_to: dict[str, int] = {}
        self._facts_at: dict[str, tuple[int, int]] = {}
        self._served: set[str] = set()
        self._open_for_reading: tuple[str, int] | None = None
        self._own, self._fd, self._size, self._pid = "", -1, 0, os.getpid()
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> Self:
        """Return the journal in the folder `path`, which is made if it is not there.

        Args:
            path: folder.
            facts: plain data on what writes here, recorded with the responses.

        Raises:
            JournalError: the folder cannot be made, read or written, or another version of this
                program wrote it.
        """
        if not str(path):
            raise JournalError("journal '' has no name; name a folder")
        # `journal=1` in model arguments arrives as a number.
        folder = Path(str(path)).expanduser()
        if folder.exists() and not folder.is_dir():
            raise JournalError(f"journal '{folder}' is a file; name a folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):  # an old lock file may be open to all
                raise PermissionError(13, "Permission denied")
            locks = Locks(folder / _LOCK_FILE)
        except OSError as error:
            raise JournalError(
                f"journal '{folder}' cannot be opened: {error.strerror or error}; name a folder"
                f" that can be written"
            ) from None
        self = cls(folder, facts or {}, locks)
        try:
            self.refresh()
        except BaseException:
            locks.close()
            raise
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._index)

    def __bool__(self) -> bool:
        # An empty journal is a journal: `if journal` asks whether there is one.
        return True

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def keys(self) -> list[str]:
        """Return the keys of all intact responses."""
        return list(self._index)

    def get(self, key: str) -> Entry | None:
        """Return the entry of `key`, or None if there is none, or it was damaged meanwhile."""
        with self._mutex:
            place = self._index.get(key)
            if place is None:
                return None
            name, offset, length = place
            data = from_line(self._read(name, offset, length), key)
            if data is None:
                del self._index[key]
                self._report(f"{self.path / name}: record at byte {offset} is damaged")
                return None
            self._served.add(name)
        return from_data(data)

    def put(self, key: str, entry: Entry) -> None:
        """Keep `entry` under `key`; it survives the death of this process from here on.

        Nothing happens if there is an intact entry under the key.

        Raises:
            JournalError: the disk is full or the file cannot be written (all earlier responses
                are kept), or the entry is not plain data.
        """
        self.put_many([(key, entry)])

    def put_many(self, items: Iterable[tuple[str, Entry]]) -> None:
        """Keep several entries with one write.

        Raises:
            JournalError: as `put`; those that were written whole are kept.
        """
        rows = {}
        for key, entry in items:
            if len(key) != 32 or not key.isalnum() or key == FACTS_KEY:
                raise JournalError(f"'{key}' is not a journal key; make it with response_key")
            rows[key] = to_line(key, to_data(key, entry))
        with self._mutex:
            # What is there already holds, so that every reading gives the same response.
            new = [(key, line) for key, line in rows.items() if key not in self._index]
            if new:
                self._write(new)
            for key in rows:
                self._locks.free(key)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring everything to the disk, so that it survives a power cut as well.

        Raises:
            JournalError: the disk is full or failed.
        """
        with self._mutex:
            self._synced = time.monotonic()
            if self._fd >= 0 and self._pid == os.getpid():
                try:
                    os.fsync(self._fd)
                except OSError as error:
                    raise self._write_error(error) from None

    def close(self) -> None:
        """Flush, and let go of the files and claims."""
        try:
            self.flush()
        finally:
            for fd in (self._fd, self._open_for_reading[1] if self._open_for_reading else -1):
                if fd >= 0:
                    os.close(fd)
            self._fd, self._open_for_reading = -1, None
            self._locks.close()

    def refresh(self) -> int:
        """Return how many responses other processes have added since the last look.

        Raises:
            JournalError: a file cannot be read, or was written by a newer version.
        """
        with self._mutex:
            before = len(self._index)
            try:
                for path in sorted(self.path.glob("*.jsonl")):
                    # The own file is indexed as it is written.
                    if path.name != self._own and path.stat().st_size > self._read_to.get(
                        path.name, 0
                    ):
                        self._scan(path)
            except OSError as error:
                if isinstance(error, JournalError):
                    raise
                raise JournalError(f"journal '{self.path}' cannot be read: {error}") from None
            return len(self._index) - before

    def claim(self, key: str) -> bool:
        """Return whether this process may generate `key` now; False if another one is at it.

        A claim ends with `put`, with `release`, or with the process, however it dies.
        """
        with self._mutex:
            return self._locks.take(key)

    def release(self, key: str) -> None:
        """Give a claim back without a response."""
        with self._mutex:
            self._locks.free(key)

    def sources(self) -> list[dict[str, Any]]:
        """Return the distinct facts recorded by the writers of the responses read so far."""
        found: dict[str, dict[str, Any]] = {}
        for name in sorted(self._served - {self._own}):
            place = self._facts_at.get(name)
            data = from_line(self._read(name, *place), FACTS_KEY) if place else None
            facts = (data or {}).get("facts", {})
            found[json.dumps(facts, sort_keys=True)] = facts
        return list(found.values())

    def _scan(self, path: Path) -> None:
        name = path.name
        for line in read_lines(path, self._read_to.get(name, 0)):
            if line.state == "partial":
                if not self._locks.taken_elsewhere(name):
                    self._report(
                        f"{path}: the last record is cut off ({line.length} bytes at byte"
                        f" {line.offset}): its writer was killed; the response is made again"
                    )
                    self._read_to[name] = line.offset + line.length
                return
            if line.state == "bad":
                self._report(
                    f"{path}: record at byte {line.offset} ({line.length} bytes) is damaged, its"
                    f" checksum is wrong; the response is made again"
                )
            elif line.key == FACTS_KEY:
                self._check_format(path, line)
            else:
                # The first one holds, so that reading the journal again gives the same response.
                self._index.setdefault(line.key, (name, line.offset, line.length))
            self._read_to[name] = line.offset + line.length

    def _check_format(self, path: Path, line: Line) -> None:
        data = from_line(self._read(path.name, line.offset, line.length), FACTS_KEY) or {}
        if data.get("format") != FORMAT:
            raise JournalError(
                f"{path} has journal format {data.get('format')} and this version reads {FORMAT};"
                f" name another folder"
            )
        self._facts_at[path.name] = (line.offset, line.length)

    def _read(self, name: str, offset: int, length: int) -> bytes:
        try:
            if self._open_for_reading is None or self._open_for_reading[0] != name:
                fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
                if self._open_for_reading is not None:
                    os.close(self._open_for_reading[1])
                self._open_for_reading = (name, fd)
            return os.pread(self._open_for_reading[1], length, offset)
        except OSError as error:
            self._report(f"{self.path / name} cannot be read: {error.strerror}")
            return b""

    def _report(self, message: str) -> None:
        self.problems.append(message)
        logger.warning("journal: %s", message)

    def _write(self, rows: Sequence[tuple[str, bytes]]) -> None:
        if self._fd < 0 or self._pid != os.getpid():
            self._begin_file()
        blob = b"".join(line for _, line in rows)
        written, failure = 0, None
        try:
            while written < len(blob):
                written += os.write(self._fd, blob[written:])
        except OSError as error:
            failure = error
        for key, line in rows:
            if len(line) > written:
                break
            self._index.setdefault(key, (self._own, self._size, len(line)))
            self._size += len(line)
            written -= len(line)
        if failure is not None:
            # What was written of a record must not stand before the next one.
            os.ftruncate(self._fd, self._size)
            raise self._write_error(failure) from None

    def _begin_file(self) -> None:
        """A file of this process alone: after a fork the child gets its own."""
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"
        self._own = f"{name}-{secrets.token_hex(4)}.jsonl"
        self._pid, self._size = os.getpid(), 0
        header = to_line(FACTS_KEY, {"format": FORMAT, "facts": self.facts})
        self._locks.take(self._own)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path / self._own, flags, 0o666)
        except OSError as error:
            raise self._write_error(error) from None
        try:
            self._write([(FACTS_KEY, header)])
        except JournalError:
            os.close(self._fd)
            self._fd = -1
            (self.path / self._own).unlink(missing_ok=True)
            raise
        finally:
            self._index.pop(FACTS_KEY, None)

    def _write_error(self, error: OSError) -> JournalError:
        return JournalError(
            f"journal '{self.path}' cannot be written: {error.strerror or error}; all"
            f" {len(self._index)} responses in it are kept: make room and start the same command"
            f" again"
        )
