"""The HTTP routes of a steered server: an endpoint plugin of vLLM.

vLLM loads it where `VLLM_PLUGINS` names `sae_steered`, and there alone.
"""

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from interventions.backends.vllm import adapter
from interventions.backends.vllm.config import KEY
from interventions.backends.vllm.plugin import client_error
from interventions.backends.vllm.service import (
    CheckBody,
    NormsBody,
    ReceiptBody,
    Service,
    error_body,
    read_body,
)
from interventions.errors import SpecError, SteeringError

_LONGEST_BODY = 16 << 20

_POSTS: dict[str, tuple[type, Callable[..., Awaitable[dict[str, Any]]]]] = {
    "check": (CheckBody, Service.check),
    "receipt": (ReceiptBody, Service.receipt),
    "median_norm": (NormsBody, Service.median_norm),
}


class Endpoint:
    """vLLM's `EndpointPlugin`: routes under `/sae_steered/`."""

    name = KEY
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the routes, and have bad specs refused before a response begins."""
        from fastapi import Request
        from fastapi.responses import JSONResponse
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
        from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
        from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

        adapter.wrap(OpenAIServingCompletion, "create_completion", _checks_first)
        # `/v1/messages` goes through it, too.
        adapter.wrap(OpenAIServingChat, "create_chat_completion", _checks_first)
        adapter.wrap(OpenAIServingResponses, "create_responses", _checks_first)
        batch = adapter.optional(
            "vllm.entrypoints.openai.chat_completion.batch_serving", "OpenAIServingChatBatch"
        )
        if batch is not None:
            adapter.wrap(batch, "create_batch_chat_completion", _refuses)

        async def answer(request: Request, ask: Callable[[Service], Awaitable[Any]]) -> Any:
            if not _may_ask(request.headers.get("authorization"), app.state.sae_steered_keys):
                return JSONResponse({"error": "Unauthorized"}, status_code=401)
            try:
                return JSONResponse(await ask(app.state.sae_steered))
            except SteeringError as error:
                return JSONResponse(error_body(error), status_code=400)

        async def info(request: Request) -> Any:
            return await answer(request, Service.info)

        app.add_api_route(f"/{KEY}/info", info, methods=["GET"], response_class=JSONResponse)

        def add(path: str, kind: Any, method: Any) -> None:
            async def post(request: Request) -> Any:
                async def ask(service: Service) -> Any:
                    return await method(service, read_body(kind, await _body(request)))

                return await answer(request, ask)

            app.add_api_route(
                f"/{KEY}/{path}", post, methods=["POST"], response_class=JSONResponse, name=path
            )

        for path, (kind, method) in _POSTS.items():
            add(path, kind, method)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep the engine for the routes."""
        from vllm import envs

        # vLLM guards `/v1` and a few more paths by its API keys, but not those of plugins.
        keys = getattr(args, "api_key", None) or [envs.VLLM_API_KEY]
        state.sae_steered_keys = [_digest(key) for key in keys if key]
        state.sae_steered = Service(engine_client)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _may_ask(header: str | None, keys: list[bytes]) -> bool:
    if not keys:
        return True
    scheme, _, given = (header or "").partition(" ")
    # Every key is compared, so that the time taken tells nothing.
    right = [secrets.compare_digest(_digest(given), key) for key in keys]
    return scheme.lower() == "bearer" and any(right)


async def _body(request: Any) -> bytes:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _LONGEST_BODY:
            raise SpecError(f"the body has more than {_LONGEST_BODY} bytes; ask in parts")
    return data


def _checks_first(original: Any) -> Any:
    """Refuse a bad spec before the response begins: a stream's status is sent with its first byte.

    It also keeps the reading of SAE files out of the server's event loop.
    """

    async def create(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        entry = _entry(request)
        if entry is not None:
            try:
                if getattr(request, "use_beam_search", False):
                    raise SpecError(
                        "beam search does not carry `vllm_xargs`, its beams would run unsteered;"
                        " leave out `use_beam_search`"
                    )
                await Service(self.engine_client).admit(entry)
            except SteeringError as error:
                raise client_error(str(error)) from None
        return await original(self, request, *args, **kwargs)

    return create


def _refuses(original: Any) -> Any:
    """Refuse to steer on a route that drops `vllm_xargs`: it would answer unsteered, status 200."""

    async def create(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if _entry(request) is not None:
            raise client_error(
                "this route does not carry `vllm_xargs`, its answers would be unsteered; use"
                " /v1/chat/completions"
            )
        return await original(self, request, *args, **kwargs)

    return create


def _entry(request: Any) -> Any:
    xargs = getattr(request, "vllm_xargs", None)
    return xargs.get(KEY) if isinstance(xargs, Mapping) else None
