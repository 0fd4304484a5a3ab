"""A server that speaks as vLLM with the plugin does, runs no model, and misbehaves as it is told.

It listens on a real port: what a client does about lost connections, statuses and lies is tested
without vLLM. What vLLM itself answers is tested in `tests/vllm_lm`.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from aiohttp import web

from interventions.backends.vllm.identity import checkpoint_digest
from interventions.plan import ModelFacts, Plan, make_plan
from interventions.spec import parse_spec
from tests import tiny_models

POINT = "blocks.1.hook_resid_post"
CACHED = 2
"""Tokens of each prompt that are said to come from the prefix cache."""


def next_token(prompt: list[int], n: int) -> int:
    """Return the n-th token of the response to a prompt."""
    return 10 + (sum(prompt) + 7 * n * n) % 60


def drop(request: web.Request) -> None:
    """Close the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()


def refuse(status: int, message: str, **headers: str) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return web.json_response({"error": error}, status=status, headers=headers)


@dataclass
class Server:
    """What runs, what it was asked, and what it is told to do.

    Attributes:
        url: where it listens.
        asked: path and body of each request, in order.
        behave: `await behave(request, body, n)` answers the n-th request of its path in place of
            the server, or returns None.
        info: changes of `/sae_steered/info`.
        twist: changes an answer of `/v1/completions` in place.
        lie: changes the facts of a receipt in place.
    """

    folder: str
    url: str = ""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    behave: Callable[..., Any] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    twist: Callable[[dict[str, Any]], None] | None = None
    lie: Callable[[dict[str, Any]], None] | None = None
    together: int = 0
    most_together: int = 0
    aborted: int = 0

    def __post_init__(self) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.identity = checkpoint_digest(self.folder, torch.float32)
        self.accounts: dict[str, list[dict[str, Any]]] = {}

    def bodies(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    def plan(self, spec: Any) -> Plan:
        facts = ModelFacts(self.folder, tiny_models.D_MODEL, tiny_models.N_LAYERS)
        return make_plan(parse_spec(spec), facts).with_identity(self.identity)

    def account(self, body: dict[str, Any], n_rows: int, cached: int) -> None:
        """Keep what a worker would: every row from `cached` on was edited."""
        entry = json.loads((body.get("vllm_xargs") or {}).get("sae_steered", "{}"))
        if not entry:
            return
        plan = self.plan(entry["spec"])
        facts = {
            "fingerprint": plan.fingerprint,
            "prompt_len": entry.get("prompt_len", len(body["prompt"])),
            "begins_with_bos": False,
            "spans": [[cached, n_rows]],
            "counts": {"0": [[n_rows - cached, 0, 1] for _ in plan.layers[0].selectors]},
        }
        if self.lie is not None:
            self.lie(facts)
        self.accounts.setdefault(entry["tag"], []).append(facts)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        path = request.path
        self.asked.append((path, body))
        self.headers.append(request.headers)
        if self.behave is not None:
            answer = await self.behave(request, body, len(self.bodies(path)))
            if answer is not None:
                return answer
        routes: dict[str, Any] = {
            "/v1/models": self.models,
            "/tokenize": self.tokenize,
            "/sae_steered/info": self.about,
            "/sae_steered/check": self.check,
            "/sae_steered/receipt": self.receipt,
            "/sae_steered/median_norm": self.norms,
            "/v1/completions": self.complete,
        }
        if path not in routes:
            return web.json_response({"detail": "Not Found"}, status=404)
        return await routes[path](request, body)

    async def models(self, request: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response({"data": [{"id": "tiny", "root": self.folder}]})

    async def tokenize(self, request: web.Request, body: Any) -> web.StreamResponse:
        assert body["add_special_tokens"] is False
        tokens = self.tokenizer.encode(body["prompt"], add_special_tokens=False)
        return web.json_response({"tokens": tokens})

    async def about(self, request: web.Request, body: Any) -> web.StreamResponse:
        told = {
            "model": "tiny", "identity": self.identity, "dtype": "float32", "variant": {},
            "d_model": tiny_models.D_MODEL, "n_layers": tiny_models.N_LAYERS,
            "hook_points": [POINT], "max_edits": 8, "saes": "any", "max_model_len": 160,
            "max_num_seqs": 4, "data_parallel_size": 1, "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1, "vllm": "0.0", "sae_steered": "0.0", "graph": "1.1",
        }  # fmt: skip
        return web.json_response(told | self.info)

    async def check(self, request: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response({"fingerprint": self.plan(body["spec"]).fingerprint})

    async def norms(self, request: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response({"median_norm": dict.fromkeys(body["hook_points"], 5.0)})

    async def receipt(self, request: web.Request, body: Any) -> web.StreamResponse:
        found = {tag: self.accounts.pop(tag, []) for tag in body["tags"]}
        worker = {"hook_points": [0], "requests": found, "failures": []}
        return web.json_response({"engines": [[worker]]})

    async def complete(self, request: web.Request, body: Any) -> web.StreamResponse:
        self.together += 1
        self.most_together = max(self.together, self.most_together)
        try:
            await asyncio.sleep(0.01)
            return await (self.stream if body.get("stream") else self.whole)(request, body)
        finally:
            self.together -= 1

    async def whole(self, request: web.Request, body: Any) -> web.StreamResponse:
        prompt, n = body["prompt"], body["max_tokens"]
        ids = [next_token(prompt, i) for i in range(n)]
        scores = None
        if body.get("prompt_logprobs") is not None:
            scores = [None] + [
                {str(token): {"logprob": -0.5, "rank": 1}, "1": {"logprob": -0.5 - token % 2}}
                for token in prompt[1:]
            ]
        choice = {
            "index": 0, "text": "", "finish_reason": "length", "stop_reason": None,
            "token_ids": ids, "prompt_token_ids": prompt, "prompt_logprobs": scores,
        }  # fmt: skip
        answer: dict[str, Any] = {"choices": [choice], "usage": {"prompt_tokens": len(prompt)}}
        self.account(body, len(prompt) + n - 1, 0 if scores else CACHED)
        if self.twist is not None:
            self.twist(answer)
        return web.json_response(answer)

    async def stream(self, request: web.Request, body: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        prompt, n = body["prompt"], body["max_tokens"]
        made = 0

        async def send(event: dict[str, Any]) -> None:
            await response.write(f"data: {json.dumps(event)}\n\n".encode())

        try:
            for made in range(1, n + 1):
                choice = {
                    "index": 0, "text": "", "token_ids": [next_token(prompt, made - 1)],
                    "finish_reason": "length" if made == n else None, "stop_reason": None,
                    **({"prompt_token_ids": prompt} if made == 1 else {}),
                }  # fmt: skip
                event = {"choices": [choice]}
                if self.twist is not None:
                    self.twist(event)
                await send(event)
                await asyncio.sleep(0.003)
            usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": 2}}
            await send({"choices": [], "usage": usage})
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            self.aborted += 1
            raise
        finally:
            self.account(body, len(prompt) + made - 1, CACHED)
        return response


@contextmanager
def running(folder: str | Path) -> Iterator[Server]:
    """Run a server of the model in a folder, in a thread."""
    server, loop = Server(str(folder)), asyncio.new_event_loop()
    started = threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", server.handle)
        # A handler is cancelled when its client has left, as vLLM's are.
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def run() -> None:
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
