"""Keeps an engine's queue filled, and takes what has ended in groups."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from harness_ext.journal import Entry
from harness_ext.journal_work import Work

Item = TypeVar("Item")

_GROUP = 32
_SECONDS = 2.0


def drive(
    work: Work[Item],
    window: int,
    submit: Callable[[Item], "Future[Any]"],
    settle: Callable[[Sequence[tuple[Item, Any]]], list[Entry]],
    deliver: Callable[[Item, Sequence[Entry]], None],
) -> None:
    """Do all jobs of a `Work`, many at once.

    What has ended is settled 32 at a time, or after two seconds: a receipt takes a round trip to
    every worker. A process that is killed loses that much, and what was in flight.

    Args:
        work: hands out jobs and keeps their entries.
        window: most jobs in flight.
        submit: starts a job.
        settle: checks finished jobs, given with their futures, and returns their entries.
        deliver: told each job with its entries, once they are kept.
    """
    pending: dict[Future[Any], Item] = {}
    done: list[tuple[Item, Future[Any]]] = []
    settled = time.monotonic()
    try:
        while True:
            if len(pending) <= window - max(1, window // 8):
                room = window - len(pending)
                for item in work.take(lambda left, room=room: min(len(left), room)):
                    pending[submit(item)] = item
            if not pending and not done:
                return
            if pending:
                ended, _ = wait(pending, timeout=_SECONDS, return_when=FIRST_COMPLETED)
                done += [(pending.pop(future), future) for future in ended]
            due = len(done) >= _GROUP or time.monotonic() - settled > _SECONDS
            if done and (due or not pending):
                for _, future in done:
                    future.result()  # raises what the engine raised
                entries = [[entry] for entry in settle(done)]
                work.finish([item for item, _ in done], entries)
                for (item, _), kept in zip(done, entries, strict=True):
                    deliver(item, kept)
                done, settled = [], time.monotonic()
    finally:
        for future in pending:
            future.cancel()
