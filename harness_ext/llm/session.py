"""Many requests at once: bounded, each distinct one sent once, answered from disk where known."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from harness_ext.errors import LLMRequestError
from harness_ext.llm.cache import ReplyCache
from harness_ext.llm.settings import LLMSettings
from harness_ext.llm.transport import Ask, Transport
from harness_ext.llm.verdicts import Reply

T = TypeVar("T")


@dataclass(frozen=True)
class Usage:
    """What a batch cost.

    Attributes:
        asked: distinct requests.
        cached: how many of them were answered from disk.
        sent: HTTP requests, tries included.
        retries: tries after the first.
        corrupt: damaged cache entries that were found and asked again.
        prompt_tokens: tokens of the requests that were sent, as far as the endpoint says.
        completion_tokens: tokens of the replies, likewise.
    """

    asked: int = 0
    cached: int = 0
    sent: int = 0
    retries: int = 0
    corrupt: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        mine, theirs = vars(self), vars(other)
        return Usage(**{name: mine[name] + theirs[name] for name in mine})


class Session:
    """Asks one endpoint within one event loop."""

    def __init__(self, settings: LLMSettings, transport: Transport) -> None:
        self.settings = settings
        self._transport = transport
        self._cache = ReplyCache(settings.cache)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._replies: dict[str, asyncio.Task[Reply | str]] = {}
        self._failed: LLMRequestError | None = None
        self._cached = self._prompt_tokens = self._completion_tokens = 0

    async def ask(self, ask: Ask) -> Reply | str:
        """Return the reply, or what was wrong with all that the endpoint sent.

        Raises:
            LLMRequestError: The endpoint refused, or did not answer.
        """
        key = ask.key(self.settings)
        if key not in self._replies:
            self._replies[key] = asyncio.create_task(self._fetch(ask, key))
        return await self._replies[key]

    async def _fetch(self, ask: Ask, key: str) -> Reply | str:
        known = self._cache.get(key)
        if known is not None:
            self._cached += 1
            return known
        async with self._slots:
            if self._failed is not None:  # the batch has ended: send nothing more
                raise self._failed
            try:
                reply = await self._transport.send(ask, key)
            except LLMRequestError as err:
                self._failed = err
                raise
        if isinstance(reply, Reply):
            self._cache.put(key, reply)
            self._prompt_tokens += reply.prompt_tokens or 0
            self._completion_tokens += reply.completion_tokens or 0
        return reply

    @property
    def usage(self) -> Usage:
        """Return what the session has cost so far."""
        return Usage(
            asked=len(self._replies),
            cached=self._cached,
            sent=self._transport.sent,
            retries=self._transport.retries,
            corrupt=self._cache.corrupt,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
        )


def run_batch(
    settings: LLMSettings,
    jobs: Sequence[Callable[[Session], Awaitable[T]]],
    *,
    label: str,
    progress: bool = True,
    unit: str = "verdict",
) -> tuple[list[T], Usage]:
    """Return the results of all jobs in their order, and what they cost.

    The first error ends the batch; replies that came before it are kept on disk. It runs in a
    thread with its own event loop, so it may be called where one is running already.

    Args:
        settings: the endpoint.
        jobs: functions that ask within a session.
        label: what the progress bar says.
        progress: show one on stderr.
        unit: what the bar counts.

    Raises:
        LLMRequestError: The endpoint refused a request, or did not answer it.
    """
    if not jobs:
        return [], Usage()
    outcome: list[tuple[list[T], Usage] | BaseException] = []
    ended = threading.Event()
    loop = asyncio.new_event_loop()
    main = loop.create_task(_gather(settings, jobs, label, progress, unit))

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            outcome.append(loop.run_until_complete(main))
        except BaseException as err:
            outcome.append(err)
        finally:
            try:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()
            finally:
                ended.set()

    threading.Thread(target=work, name="llm-batch", daemon=True).start()
    # Not the thread's join(): in Python 3.11 one that is interrupted takes the thread for ended,
    # and the process would exit while the thread still holds locks that the exit needs.
    try:
        ended.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(RuntimeError):  # it has just ended by itself
            loop.call_soon_threadsafe(main.cancel)
        ended.wait()
        raise
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


async def _gather(
    settings: LLMSettings,
    jobs: Sequence[Callable[[Session], Awaitable[T]]],
    label: str,
    progress: bool,
    unit: str,
) -> tuple[list[T], Usage]:
    results: dict[int, T] = {}
    async with Transport(settings) as transport:
        session = Session(settings, transport)
        with tqdm(total=len(jobs), desc=label, unit=unit, disable=not progress) as bar:

            async def one(i: int) -> None:
                results[i] = await jobs[i](session)
                bar.update()

            tasks = [asyncio.create_task(one(i)) for i in range(len(jobs))]
            try:
                await asyncio.gather(*tasks)
            finally:
                await _end([*tasks, *session._replies.values()])
        return [results[i] for i in range(len(jobs))], session.usage


async def _end(tasks: Sequence[asyncio.Task]) -> None:
    """Cancel what still runs and wait for it, so that nothing outlives the client."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
