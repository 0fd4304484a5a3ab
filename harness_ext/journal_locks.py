"""Locks that end with the process that holds them, so that `kill -9` leaves none behind.

Byte ranges of one file, which stays empty: POSIX record locks may lie past its end. They are not
inherited by forked workers, unlike `flock`, so a killed parent's claims are free at once even if
a worker outlives it. They are advice: without them work may be done twice, never wrongly.
"""

import hashlib
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

_RANGE = 1 << 61


class Locks:
    """Named exclusive locks in one file; free for everybody when the process ends."""

    def __init__(self, path: Path) -> None:
        """Open, or make, the lock file.

        Raises:
            OSError: it cannot be made.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._held: set[str] = set()
        self._pid = os.getpid()
        self._works = True

    def take(self, name: str) -> bool:
        """Return whether `name` is now held by this process; False if another process holds it."""
        if self._pid != os.getpid():  # a fork holds nothing
            self._held, self._pid = set(), os.getpid()
        if name in self._held:
            return True
        taken = self._lock(name)
        if taken:
            self._held.add(name)
        return taken

    def free(self, name: str) -> None:
        """Let `name` go, if it is held."""
        if name in self._held:
            self._held.remove(name)
            self._unlock(name)

    def taken_elsewhere(self, name: str) -> bool:
        """Return whether another process holds `name`."""
        if name in self._held:
            return False
        if self._lock(name):
            self._unlock(name)
            return False
        return True

    def close(self) -> None:
        """Free everything."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._held.clear()

    def _lock(self, name: str) -> bool:
        if not self._works:
            return True
        try:
            import fcntl

            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(name))
        except (BlockingIOError, PermissionError):
            return False
        except (ImportError, OSError) as error:
            # A file system without locks, or a system without POSIX ones.
            self._works = False
            logger.warning(
                "no file locks here (%s): processes that share the journal may do the same work"
                " twice; use a local file system if several run at once",
                error,
            )
        return True

    def _unlock(self, name: str) -> None:
        if self._works and self._fd >= 0:
            import fcntl

            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _place(name))


def _place(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) % _RANGE
