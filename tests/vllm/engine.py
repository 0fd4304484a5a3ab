"""The tests' side of an engine that runs in a process of its own (`host`)."""

import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    # More threads than quiet cores spin against each other.
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_COLOR": "0",
    # Lets tests look at a worker of another process by a function of their own.
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
PLAIN = {"VLLM_PLUGINS": ""}


class EngineFailure(Exception):
    """An engine said no, or died; the message is its own."""


class Engine:
    """A process with an engine; every method of `host.Host` is called by its name."""

    def __init__(self, folder: Path, cache: Path, environment: dict[str, str]) -> None:
        """Start the process, not yet an engine.

        Args:
            folder: for its socket and its log.
            cache: of compiled graphs.
            environment: beside `ENVIRONMENT`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        dropped = ("PYTEST_CURRENT_TEST", "PYTHONWARNINGS")
        env = {key: value for key, value in os.environ.items() if key not in dropped}
        env |= ENVIRONMENT | {"VLLM_CACHE_ROOT": str(cache), "PYTHONPATH": str(ROOT)} | environment
        address = str(folder / "line")
        with Listener(address) as listener, self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.vllm.host", address],
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                listener._listener._socket.settimeout(120)  # pyright: ignore
                self._line: Connection = listener.accept()
            except BaseException:
                self.kill()
                raise

    def call(self, method: str, *args: Any, timeout: float = 600.0, **kwargs: Any) -> Any:
        """Return what `Host.<method>` returns.

        Raises:
            EngineFailure: it raised, died, or took too long.
        """
        self._line.send((method, args, kwargs))
        if not self._line.poll(timeout):
            self.kill()
            raise EngineFailure(f"{method} took over {timeout} s\n{self.tail()}")
        try:
            good, value = self._line.recv()
        except EOFError:
            self.kill()
            raise EngineFailure(f"the engine died in {method}\n{self.tail()}") from None
        if not good:
            raise EngineFailure(f"{value}\n{self.tail()}")
        return value

    def generate(self, requests: list[dict[str, Any]], **kwargs: Any) -> list[dict[str, Any]]:
        """Return the outputs of requests that run at once."""
        return self.call("generate", requests, **kwargs)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def tail(self, n: int = 60) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-n:])

    def close(self) -> None:
        """End the process, gently if it listens."""
        self._line.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self.kill()

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
