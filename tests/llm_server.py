"""An OpenAI-compatible server in a thread that does what a test tells it, wrong things included."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Action:
    """What to answer; `reset` closes the connection at once, `drip` sends a byte every 0.1 s."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    reset: bool = False
    drip: bool = False


Behaviour = Callable[[int, dict[str, Any]], Action]


def completion(content: Any, **changes: Any) -> Action:
    """Return a whole reply whose message is `content` (a dict becomes JSON)."""
    text = json.dumps(content) if isinstance(content, dict) else content
    body = {
        "id": "x", "object": "chat.completion", "created": 0, "model": "served-model",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }  # fmt: skip
    body.update(changes)
    return Action(body=json.dumps(body).encode())


def failure(status: int, message: str = "no", headers: dict | None = None, **more: Any) -> Action:
    body = {"error": {"message": message, **more}}
    return Action(status, json.dumps(body).encode(), headers or {})


def fields_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the user message of a request."""
    return json.loads(body["messages"][1]["content"])


@dataclass
class Server:
    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[Server]:
    """Yield a running server; `behaviour(n, body)` says what the n-th request gets."""
    lock = threading.Lock()
    running = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            # A client that gives up closes its idle connections with a reset.
            with suppress(ConnectionError):
                super().handle()

        def finish(self) -> None:
            with suppress(ConnectionError):
                super().finish()

        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                server.times.append(time.monotonic())
                running += 1
                server.most_at_once = max(server.most_at_once, running)
            try:
                self.answer(behaviour(number, body))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with lock:
                    running -= 1

        def answer(self, action: Action) -> None:
            time.sleep(action.delay)
            if action.reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                return
            self.send_response(action.status)
            headers = {"Content-Type": "application/json", **action.headers}
            headers.setdefault("Content-Length", str(len(action.body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if not action.drip:
                self.wfile.write(action.body)
                return
            for byte in action.body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.1)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server = Server(f"http://127.0.0.1:{httpd.server_address[1]}/v1")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
