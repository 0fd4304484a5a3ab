"""Comparison by math_verify in processes of their own, under limits that hold in any thread.

math_verify's own time limit is an alarm: it raises an error outside the main thread, does not
stop a long integer power, and replaces the alarm of the program. A process can be killed.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

from harness_ext.errors import VerifierError

Verdict = Literal["equal", "different", "answer_unreadable", "gold_unreadable", "limit"]

CPU_SECONDS = 4.0
WALL_SECONDS = 60.0  # only for a process that hangs without computing
START_SECONDS = 120.0  # a cold disk, a machine at full load
MEMORY_BYTES = 2 * 1024**3
MAX_PROCESSES = 4
_WORKER = Path(__file__).with_name("math_worker.py")


class _Process:
    """One worker; not shared between threads while it is in use."""

    def __init__(self) -> None:
        env = {
            **os.environ,
            # What this program can import, the worker can: also with an edited sys.path.
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "SAE_STEERED_AUTOLOAD": "0",
        }
        self.timed_out = False
        self.process = subprocess.Popen(
            # -P: the folder of the script holds modules named like those of libraries.
            [sys.executable, "-P", str(_WORKER), str(CPU_SECONDS), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
        )
        first = self._read(START_SECONDS)
        if not (first and first.get("ready")):
            self.close()
            why = (first or {}).get("failed") or f"exit code {self.process.returncode}"
            raise VerifierError(
                f"the process that compares answers did not start ({why}); "
                f"check that `{sys.executable} -c 'import math_verify'` works"
            )

    def ask(self, gold: str, answer: str) -> Verdict | None:
        """Return the verdict, or None if the process ended before it gave one."""
        request = json.dumps({"gold": gold, "answer": answer}) + "\n"
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(request.encode())
            self.process.stdin.flush()
        except (BrokenPipeError, OSError):
            return None
        reply = self._read(WALL_SECONDS)
        return reply["verdict"] if reply else None

    def _read(self, seconds: float) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        timer = threading.Timer(seconds, self._kill)
        timer.daemon = True
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        return json.loads(line) if line.endswith(b"\n") else None

    def _kill(self) -> None:
        self.timed_out = True
        self.process.kill()

    def reached_its_limit(self) -> bool:
        """Return whether it was its own limit that ended the process, which is closed."""
        out_of_time = getattr(signal, "SIGPROF", None)
        ended_by_itself = self.process.wait()  # its pipe is closed, so this does not last
        self.close()
        return self.timed_out or (out_of_time is not None and ended_by_itself == -out_of_time)

    def close(self) -> None:
        """End the process and wait for it."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue  # it ended with a request unread
        self.process.kill()
        self.process.wait()


class _Pool:
    """Idle workers, started when asked for, at most `MAX_PROCESSES` at a time."""

    def __init__(self) -> None:
        self.places = threading.BoundedSemaphore(MAX_PROCESSES)
        self.lock = threading.Lock()
        self.idle: list[_Process] = []
        self.all: list[_Process] = []

    def compare(self, gold: str, answer: str) -> Verdict:
        with self.places:
            for _ in range(2):
                worker = self._take()
                verdict = worker.ask(gold, answer)
                with self.lock:
                    if verdict is None:
                        self.all.remove(worker)
                    else:
                        self.idle.append(worker)
                if verdict is not None:
                    return verdict
                if worker.reached_its_limit():
                    return "limit"
                # Ended by somebody else, perhaps while it was idle: that says nothing about
                # this pair, so it gets one more worker.
            return "limit"

    def _take(self) -> _Process:
        with self.lock:
            if self.idle:
                return self.idle.pop()
        worker = _Process()
        with self.lock:
            self.all.append(worker)
        return worker

    def close(self) -> None:
        with self.lock:
            workers, self.all, self.idle = self.all, [], []
        for worker in workers:
            worker.close()


_pool = _Pool()
_inherited: list[_Pool] = []


def _after_fork() -> None:
    """Leave the parent's workers to the parent: two readers of one pipe would mix answers."""
    global _pool
    _inherited.append(_pool)  # kept, so that no destructor closes what is not ours
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def close() -> None:
    """End the workers of this program; the next comparison starts new ones."""
    _pool.close()


def compare(gold: str, answer: str) -> Verdict:
    """Return what math_verify says of two LaTeX expressions without delimiters.

    Works in any thread and after a fork. A comparison ends after `CPU_SECONDS` of processor time
    or with `MEMORY_BYTES` in use, as `limit`.

    Args:
        gold: the reference; math_verify is not symmetric for equations.
        answer: what is compared with it.

    Raises:
        VerifierError: the worker cannot be started (math_verify is not installed, for one).
    """
    return _pool.compare(gold, answer)
