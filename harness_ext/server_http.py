"""HTTP to a server of vLLM: hundreds of requests in flight, bounded retries, one-line errors."""

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from harness_ext.engine import whole
from harness_ext.errors import ServerError
from interventions.errors import SpecError

logger = logging.getLogger(__name__)


KEY_ENV = "VLLM_API_KEY"
"""Environment variable of the key where no other is named; the server reads the same one."""

_CONNECT_SECONDS = 10.0
_LONGEST_WAIT = 30.0
_MAX_ERROR_CHARS = 700
# vLLM closes idle connections after 5 seconds; a request must not go into one that is closing.
_KEEP_SECONDS = 2.0
# A line of a stream may repeat the whole prompt as token ids.
_LINE_BYTES = 1 << 24


class Lost(Exception):
    """The connection, or the server, failed in a way that may pass: the request is sent again."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class ServerHTTP:
    """Asks one server; to be opened and used in one event loop.

    Attributes:
        url: of the server, without `/v1`.
    """

    def __init__(
        self, base_url: str, *, api_key_env: str | None, timeout: float, tries: int
    ) -> None:
        """Prepare; sends nothing.

        Args:
            base_url: of the server, with or without `/v1`.
            api_key_env: environment variable of the key, `VLLM_API_KEY` if None.
            timeout: seconds without a byte after which a request is sent again.
            tries: of one request, the first included.

        Raises:
            SpecError: no URL, no key in the named variable, or no number.
        """
        self.url = _check_url(base_url)
        self._key_env = api_key_env or KEY_ENV
        self._key = os.environ.get(self._key_env, "")
        if api_key_env and not self._key:
            raise SpecError(f"api_key_env={api_key_env}: that environment variable is not set")
        self._timeout, self._tries = _seconds(timeout), whole("tries", tries)
        self._session: aiohttp.ClientSession
        self._fresh: aiohttp.ClientSession

    async def open(self) -> None:
        """Prepare the connections."""

        def session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=connector,
                headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_SECONDS, sock_read=self._timeout
                ),
                read_bufsize=_LINE_BYTES,
            )

        # The window of requests is the limit, not the pool.
        self._session = session(aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_SECONDS))
        self._fresh = session(aiohttp.TCPConnector(limit=0, force_close=True))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
        await self._fresh.close()

    async def ask(
        self,
        path: str,
        body: Any = None,
        read: Callable[[aiohttp.ClientResponse], Awaitable[Any]] | None = None,
        *,
        tries: int | None = None,
        once: bool = False,
    ) -> Any:
        """Return the answer to a request, by default what its JSON says.

        Args:
            path: begins with `/`.
            body: JSON of a POST, or a function that returns it for each try; None is a GET.
            read: reads a response with status 200; may raise `Lost`.
            tries: at most, in place of the usual number.
            once: the server must not do it twice: sent again only if it certainly was not done.

        Raises:
            ServerError: the server refused it, or did not answer in all tries.
        """
        problem = ""
        tries = tries or self._tries
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(tries),
                retry=retry_if_exception_type(Lost),
                wait=_wait,
                before_sleep=self._tell,
                reraise=True,
            ):
                with attempt:
                    data = body() if callable(body) else body
                    return await self._try(path, data, read or _read_json, once)
        except Lost as error:
            problem = str(error)
        raise ServerError(f"{self.url}{path}: {problem} ({tries} tries)")

    async def _try(self, path: str, body: Any, read: Callable[..., Any], once: bool) -> Any:
        session = self._fresh if once else self._session
        method = "GET" if body is None else "POST"
        try:
            async with session.request(
                method, f"{self.url}{path}", json=body, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise await self._refused(path, response, once)
                return await read(response)
        except aiohttp.ClientConnectorError as error:
            problem, undone = f"cannot connect: {error.os_error.strerror or error}", True
        except TimeoutError as error:
            problem, undone = _line(str(error)) or "nothing came in time", False
        except (aiohttp.ClientError, ConnectionError) as error:
            problem, undone = f"the connection broke: {_line(str(error) or repr(error))}", False
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ServerError(
                f"{self.url}{path}: not what a server of vLLM answers ({type(error).__name__}:"
                f" {_line(str(error))})"
            ) from None
        if once and not undone:
            raise ServerError(f"{self.url}{path}: {problem}")
        raise Lost(problem)

    async def _refused(
        self, path: str, response: aiohttp.ClientResponse, once: bool
    ) -> ServerError | Lost:
        """Return what to raise for a status that is not 200."""
        status = response.status
        text = self._redact(_message(await response.text(errors="replace")))
        said = f"HTTP {status} {_line(text)}".rstrip()
        if status in (408, 429, 503) or (status >= 500 and not once):
            return Lost(said, _retry_after(response.headers))
        if status in (401, 403):
            has = "refuses the key in" if self._key else "wants a key; set"
            said = f"HTTP {status}: the server {has} {self._key_env}"
        elif 300 <= status < 400:
            said += "; it redirects, give the final base_url"
        error = ServerError(f"{self.url}{path}: {said}")
        error.status = status
        return error

    def _redact(self, text: str) -> str:
        for spelling in {self._key, quote(self._key, safe="")} if len(self._key) > 3 else ():
            text = text.replace(spelling, "***")
        return text

    async def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("%s: %s; again in %.1f s", self.url, error, state.upcoming_sleep)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the events of a stream.

    Raises:
        Lost: it ended early, or the server reports an error of its own in it.
        ServerError: it reports another error.
    """
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            code = event["error"].get("code") if isinstance(event["error"], dict) else None
            said = _line(_message(data.decode(errors="replace")))
            if isinstance(code, int) and 400 <= code < 500:
                raise ServerError(f"{response.url}: {said}")
            raise Lost(said)
        yield event
    raise Lost("the stream ended early")


async def _read_json(response: aiohttp.ClientResponse) -> Any:
    return json.loads(await response.read())


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    after = error.after if isinstance(error, Lost) else None
    if after is not None:
        return min(after, _LONGEST_WAIT)
    return wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT)(state)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _message(text: str) -> str:
    """Return what an error's body says."""
    try:
        data = json.loads(text)
    except ValueError:
        return text
    for key in ("error", "message", "detail"):
        if isinstance(data, dict) and key in data:
            data = data[key]
    return data if isinstance(data, str) else json.dumps(data)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_ERROR_CHARS else line[:_MAX_ERROR_CHARS] + " ..."


def _seconds(timeout: Any) -> float:
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SpecError(f"timeout={timeout}: not a number of seconds over 0")
    return seconds


def _check_url(base_url: str) -> str:
    url = str(base_url).strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine, parts = False, None
    if not fine or parts is None or parts.query or parts.fragment:
        raise SpecError(f"base_url '{base_url}' is no URL such as http://localhost:8000/v1")
    if parts.username or parts.password:
        raise SpecError(
            f"base_url of {parts.hostname} holds a password, which would stand in the results; set"
            f" {KEY_ENV} instead"
        )
    return url
