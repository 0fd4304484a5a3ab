"""Requests through the openai client, and what came of them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from tests.vllm_server.server import HEADERS, MODEL, Server, xargs

PROMPT = "Tell me about your weekend. My weekend was"
TOKENS = 24
MARGIN = 1e-3
"""Two tokens this close in log-probability may change places with the shape of the batch."""


@dataclass(frozen=True)
class Answer:
    """Of one choice."""

    text: str
    tokens: list[int]
    prompt: list[int]
    logprobs: list[dict[str, float]]

    def same(self, other: "Answer") -> bool:
        """Return whether the tokens are the same up to the first near tie."""
        for mine, theirs, logprobs in zip(self.tokens, other.tokens, self.logprobs, strict=False):
            if mine != theirs:
                first, second = sorted(logprobs.values(), reverse=True)[:2]
                return first - second < MARGIN
        return len(self.tokens) == len(other.tokens)


def body(spec: Any = None, tag: str | None = None, **keys: Any) -> dict[str, Any]:
    named = {} if tag is None else {"tag": tag}
    steered = {} if spec is None else xargs(spec, **named)
    return {
        "model": MODEL, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "logprobs": 2,
        "extra_body": {"return_token_ids": True, "ignore_eos": True, **steered}, **keys,
    }  # fmt: skip


def answers(completion: Any) -> list[Answer]:
    return [
        Answer(
            choice.text,
            choice.token_ids,
            choice.prompt_token_ids,
            choice.logprobs.top_logprobs if choice.logprobs else [],
        )
        for choice in completion.choices
    ]


def one(server: Server, spec: Any = None, **keys: Any) -> Answer:
    (answer,) = answers(server.client().completions.create(**body(spec, **keys)))
    return answer


async def together(server: Server, bodies: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what each request got, an error included; all are in flight at once."""
    async with server.async_client() as client:

        async def ask(request: dict[str, Any]) -> Any:
            try:
                return answers(await client.completions.create(**request))
            except openai.APIStatusError as error:
                return error

        found = await asyncio.gather(*(ask(request) for request in bodies.values()))
    return dict(zip(bodies, found, strict=True))


def raw(server: Server, path: str, request: dict[str, Any]) -> httpx.Response:
    """Return the response to a request as it is on the wire."""
    request = {**request, **request.get("extra_body", {})}
    request.pop("extra_body", None)
    return httpx.post(f"{server.url}{path}", json=request, headers=HEADERS, timeout=300)
