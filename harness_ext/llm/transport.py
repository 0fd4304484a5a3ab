"""One request to an OpenAI-compatible endpoint: bounded retries, fallbacks, clear errors.

No exception leaves with the client library's own one behind it: that one holds the request, and
the request holds the key.
"""

import asyncio
import email.utils
import json
import logging
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from harness_ext.errors import LLMRequestError
from harness_ext.llm.cache import digest
from harness_ext.llm.settings import LLMSettings
from harness_ext.llm.verdicts import Reply, Structured

log = logging.getLogger(__name__)
STRUCTURED: tuple[Structured, ...] = ("json_schema", "json_object", "none")
_MAX_ERROR_CHARS = 300
# They log one line a request, and at level DEBUG the headers of replies, which may echo a key.
_HTTP_LOGGERS = ("openai", "httpx", "httpcore", "httpx2", "httpcore2")


@dataclass(frozen=True)
class Ask:
    """A request: the messages and the JSON schema of the reply.

    Attributes:
        messages: of the chat.
        schema: of the reply; None for plain text.
        schema_name: for the endpoint.
        temperature: of the sampling.
        sample: number of the reply, where several to the same messages are wanted.
    """

    messages: tuple[dict[str, str], ...]
    schema: dict[str, Any] | None
    schema_name: str = ""
    temperature: float = 0
    sample: int = 0

    def key(self, settings: LLMSettings) -> str:
        """Return the sha256 of all that decides the reply.

        How the endpoint is made to keep to the schema is left out: that is found out by trying,
        and a second run must find the replies of the first.
        """
        return digest(
            {
                "base_url": settings.base_url,
                "model": settings.model,
                "messages": list(self.messages),
                "schema": self.schema,
                "max_tokens": settings.max_tokens,
                "temperature": self.temperature,
                **({"sample": self.sample} if self.sample else {}),
            }
        )


class _Transient(Exception):
    def __init__(self, message: str, *, after: float | None = None, malformed: bool = False):
        super().__init__(message)
        self.after = after
        self.malformed = malformed


class _Adapted(Exception):
    """The endpoint refused an option that can be left out; ask again without it."""


class Transport:
    """Sends requests; an async context manager.

    Attributes:
        sent: HTTP requests that were sent, tries included.
        retries: how many of them were tries after the first.
        structured: how replies are kept to their schema, lowered where the endpoint refuses.
    """

    def __init__(self, settings: LLMSettings) -> None:
        self.settings = settings
        self.sent = 0
        self.retries = 0
        self.structured: Structured = "json_schema"
        self._token_option = "max_tokens"
        self._temperature = True
        self._not_before = 0.0
        self._client: openai.AsyncOpenAI
        self._levels: list[tuple[logging.Logger, int]] = []

    async def __aenter__(self) -> "Transport":
        loggers = [logging.getLogger(name) for name in _HTTP_LOGGERS]
        self._levels = [(logger, logger.level) for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        # Redirects are not followed: a trace and a key go where the user said, or nowhere.
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False, timeout=self.settings.timeout_s
        )
        self._client = openai.AsyncOpenAI(
            api_key=self.settings.api_key.get_secret_value(),
            base_url=self.settings.base_url,
            max_retries=0,
            timeout=self.settings.timeout_s,
            http_client=http,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._client.close()
        finally:
            for logger, level in self._levels:
                logger.setLevel(level)

    async def send(self, ask: Ask, key: str) -> Reply | str:
        """Return the reply, or, where every try brought an unusable one, what was wrong with it.

        Raises:
            LLMRequestError: The endpoint refused the request, or gave no answer in all tries.
        """
        problem: _Transient | None = None
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(self.settings.tries),
                retry=retry_if_exception_type(_Transient),
                wait=self._wait,
                before_sleep=self._before_sleep,
                reraise=True,
            ):
                with attempt:
                    return await self._try(ask, key)
        except _Transient as err:
            problem = err
        tries = self.settings.tries
        if problem is not None and problem.malformed:
            return f"{problem} ({tries} tries)"
        raise LLMRequestError(
            f"{self.settings.name}: {problem} ({tries} tries); what was answered is kept, "
            "run the same command again to go on"
        )

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        after = error.after if isinstance(error, _Transient) else None
        if after is not None:
            return after
        return wait_random_exponential(multiplier=0.5, max=self.settings.max_wait_s)(state)

    async def _before_sleep(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.upcoming_sleep
        self.retries += 1
        if isinstance(error, _Transient) and error.after is not None:
            # The endpoint told one request to wait: the others hold too.
            self._not_before = max(self._not_before, time.monotonic() + wait)
        log.info("%s: %s; again in %.1f s", self.settings.name, error, wait)

    async def _try(self, ask: Ask, key: str) -> Reply:
        while True:
            try:
                return await self._post(ask, key)
            except _Adapted:
                continue

    async def _post(self, ask: Ask, key: str) -> Reply:
        pause = self._not_before - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        mode = self.structured if ask.schema is not None else "none"
        temperature, token_option = self._temperature, self._token_option
        options: dict[str, Any] = {token_option: self.settings.max_tokens}
        if temperature:
            options["temperature"] = ask.temperature
        if mode == "json_schema":
            options["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": ask.schema_name, "strict": True, "schema": ask.schema},
            }
        elif mode == "json_object":
            options["response_format"] = {"type": "json_object"}
        problem: Exception
        self.sent += 1
        try:
            # The library's timeouts are a read's; a server that drips bytes would never end.
            async with asyncio.timeout(self.settings.timeout_s):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self.settings.model,
                    messages=list(ask.messages),  # type: ignore[arg-type]
                    **options,
                )
                return self._reply(raw.content, mode, key)
        except TimeoutError:
            problem = _Transient(f"no reply within {self.settings.timeout_s:g} s")
        except openai.APIStatusError as err:
            problem = self._of_status(
                err.status_code, err.message, err.body, dict(err.response.headers), options
            )
        except openai.APITimeoutError:
            problem = _Transient(f"no reply within {self.settings.timeout_s:g} s")
        except openai.APIConnectionError as err:
            problem = _Transient(self._clean(f"connection failed ({err.__cause__ or err})"))
        raise problem

    def _reply(self, content: bytes, mode: Structured, key: str) -> Reply:
        try:
            body = json.loads(content)
            error = body.get("error")
            if error and not body.get("choices"):
                # OpenRouter reports failures of the provider behind it with status 200.
                code = error.get("code") if isinstance(error, dict) else None
                status = code if isinstance(code, int) else 500
                raise self._of_status(status, f"Error code: {status} - {error}", error, {}, {})
            choice = body["choices"][0]
            message = choice["message"]
            usage = body.get("usage") or {}
            return Reply(
                text=self.settings.redact(message.get("content") or ""),
                model=self.settings.redact(str(body.get("model") or self.settings.model)),
                endpoint=self.settings.base_url,
                finish_reason=choice.get("finish_reason"),
                refusal=self.settings.redact(message["refusal"])
                if message.get("refusal")
                else None,
                prompt_tokens=usage.get("prompt_tokens"),
                completion_tokens=usage.get("completion_tokens"),
                structured=mode,
                request=key,
            )
        except (ValueError, LookupError, TypeError, AttributeError) as err:
            what = f"{type(err).__name__} in {content[:80]!r}"
        raise _Transient(self._clean(f"unusable reply: {what}"), malformed=True)

    def _of_status(
        self, status: int, message: str, body: Any, headers: dict[str, str], options: dict[str, Any]
    ) -> Exception:
        """Return what to raise for a status that is not success."""
        error = body.get("error", body) if isinstance(body, dict) else None
        error = error if isinstance(error, dict) else {}
        text = error.get("message")
        # The client library quotes the whole body in some versions.
        said = self._clean(f"Error code: {status} - {text}" if text else message)
        code = error.get("code")
        if code == "insufficient_quota":  # a 429 that no waiting heals
            return LLMRequestError(f"{self.settings.name}: {said}; add credit or change the key")
        if status in (408, 409, 429) or status >= 500:
            after = _retry_after(headers)
            if after is not None and after > self.settings.max_wait_s:
                return LLMRequestError(
                    f"{self.settings.name}: {said}; it asks to wait {after:.0f} s, the limit is "
                    f"{self.settings.max_wait_s:g} s; run again later, or raise max_wait_s"
                )
            return _Transient(said, after=after)
        if status in (400, 404, 415, 422) and self._adapt(message, options):
            return _Adapted()
        return LLMRequestError(f"{self.settings.name}: {said}; {self._remedy(status)}")

    def _adapt(self, message: str, options: dict[str, Any]) -> bool:
        """Return whether an option that the endpoint refuses was taken out of what is sent."""
        text = message.lower()
        kind = options.get("response_format", {}).get("type")
        words = ("response_format", "json_schema", "json_object", "structured", "guided", "grammar")
        if kind is not None and any(word in text for word in words):
            if self.structured == kind:
                self.structured = STRUCTURED[STRUCTURED.index(kind) + 1]
                log.warning(
                    "%s refuses response_format %s; asking with %s, replies are checked all the "
                    "same (%s)", self.settings.name, kind, self.structured, self._clean(message)
                )  # fmt: skip
            return True
        if "max_tokens" in options and "max_completion_tokens" in text:
            self._token_option = "max_completion_tokens"
            return True
        if "temperature" in options and "temperature" in text:
            if self._temperature:
                self._temperature = False
                log.warning(
                    "%s refuses temperature %g; its own default is used",
                    self.settings.name,
                    options["temperature"],
                )
            return True
        return False

    def _remedy(self, status: int) -> str:
        source = self.settings.key_from
        if status in (401, 403):
            return (
                "set OPENAI_API_KEY or OPENROUTER_API_KEY"
                if source == "none"
                else f"check the key in {source}"
            )
        if status == 404:
            return "check the model's name and that the base URL ends where /chat/completions goes"
        if 300 <= status < 400:
            return "it redirects; give the final base URL"
        return "nothing was tried again"

    def _clean(self, text: str) -> str:
        """Return a server's text on one line, short, and without the key."""
        line = " ".join(self.settings.redact(text).split())
        return line if len(line) <= _MAX_ERROR_CHARS else line[:_MAX_ERROR_CHARS] + " …"


def _retry_after(headers: dict[str, str]) -> float | None:
    """Return the seconds that the endpoint asks to wait, from seconds or a date; else None."""
    lower = {name.lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(lower[name]) / unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        when = email.utils.parsedate_to_datetime(lower["retry-after"]).timestamp()
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return max(0.0, when - time.time())
