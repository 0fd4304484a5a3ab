"""Work that a journal makes resumable: what it holds is read, the rest is shared out and kept.

Every backend drives its generation by this loop:

    with Work(journal, jobs, keys_of, on_stored) as work:
        while batch := work.take(size_of):
            work.finish(batch, [[Entry(...)] for job in batch])

An engine that answers out of order takes everything at once and finishes jobs one by one.
"""

import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from harness_ext.errors import for_command_line
from harness_ext.journal import Entry, Journal, JournalError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_POLL_SECONDS = 0.2
_TELL_SECONDS = 30.0
_SEEN = 4096
"""Jobs that a batch is chosen from: more than any engine has in flight at once."""


class Work(Generic[Item]):
    """Jobs, of which each is read from the journal or handed out exactly once.

    Jobs with the same key are done once. What another process is generating at this moment is
    left to it, and read when it is there; if that process dies, it is handed out here.

    Attributes:
        resumed: jobs that were read.
        made: jobs that were finished here.
    """

    def __init__(
        self,
        journal: Journal | None,
        items: Sequence[Item],
        keys_of: Callable[[Item], Sequence[str]],
        on_stored: Callable[[Item, list[Entry]], None],
    ) -> None:
        """Prepare.

        Args:
            journal: None hands out everything, in order.
            items: the jobs, in the order in which they are to be done.
            keys_of: keys of a job's responses; not called without a journal.
            on_stored: told each job that is read, with its entries, in the order of its keys.
        """
        self._journal, self._on_stored = journal, on_stored
        pairs = ((item, [] if journal is None else list(keys_of(item))) for item in items)
        self._left: deque[tuple[Item, list[str]]] = deque(pairs)
        self._elsewhere: list[tuple[Item, list[str]]] = []
        self._begun = False
        self._claimed: dict[int, list[str]] = {}
        self.resumed = self.made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._journal is not None:
            for keys in self._claimed.values():
                self._journal.release(keys[0])

    def take(self, size_of: Callable[[Sequence[Item]], int]) -> list[Item]:
        """Return the next jobs to do, or [] when all are done.

        Waits for jobs that other processes are at. While jobs of an earlier call are unfinished
        it does not wait, and [] may also mean that the rest hangs on those.

        Args:
            size_of: from jobs, in order, to how many of the first ones are done together.

        Raises:
            JournalError: the journal cannot be read.
        """
        journal = self._journal
        if journal is None:
            return [item for item, _ in self._next(size_of)]
        told = time.monotonic()
        while True:
            journal.refresh()
            if not self._begun:  # what is there already is told before anything is made
                self._begun = True
                self._left = deque(pair for pair in self._left if not self._collected(pair))
            elif not self._left:
                # Back from the others: finished, or theirs no longer.
                self._left = deque(pair for pair in self._elsewhere if not self._collected(pair))
                self._elsewhere = []
            batch = self._claim(journal, size_of)
            if batch and journal.refresh() and self._any_stored(journal, batch):
                # Another process finished one between the last look and the claim.
                self._give_back(journal, batch)
                continue
            if batch or self._claimed or not (self._left or self._elsewhere):
                self._claimed |= {id(item): keys for item, keys in batch}
                return [item for item, _ in batch]
            if self._left:
                continue
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                logger.info(
                    "waiting for %d responses that another process is making", len(self._elsewhere)
                )
            time.sleep(_POLL_SECONDS)

    def finish(self, items: Sequence[Item], entries: Sequence[Sequence[Entry]]) -> None:
        """Keep what was made of some jobs; they survive the death of this process from here on.

        Args:
            items: jobs that `take` returned, any of them, in any order.
            entries: of each, in the order of its keys.

        Raises:
            JournalError: the disk is full, or the journal cannot be written.
        """
        self.made += len(items)
        if self._journal is None:
            return
        rows = []
        for item, made in zip(items, entries, strict=True):
            rows += list(zip(self._claimed.pop(id(item)), made, strict=True))
        try:
            self._journal.put_many(rows)
        except JournalError as error:
            raise for_command_line(error) from None

    def _collected(self, pair: tuple[Item, list[str]]) -> bool:
        """Return whether the journal held a job, which is handed over then."""
        journal, (item, keys) = self._journal, pair
        assert journal is not None
        found = [journal.get(key) for key in keys] if _stored(journal, keys) else [None]
        entries = [entry for entry in found if entry is not None]
        if len(entries) < len(found):
            return False
        self.resumed += 1
        self._on_stored(item, entries)
        return True

    def _next(self, size_of: Callable[[Sequence[Item]], int]) -> list[tuple[Item, list[str]]]:
        """Return the next jobs in order, taken from those that are left."""
        # A view of some: a hundred thousand jobs are not copied for every batch.
        seen = [item for item, _ in itertools.islice(self._left, _SEEN)]
        size = min(size_of(seen), len(seen)) if seen else 0
        return [self._left.popleft() for _ in range(size)]

    def _claim(
        self, journal: Journal, size_of: Callable[[Sequence[Item]], int]
    ) -> list[tuple[Item, list[str]]]:
        """Return jobs, with their keys, that nobody else can do now."""
        taken = {keys[0] for keys in self._claimed.values()}
        seen = [item for item, _ in itertools.islice(self._left, _SEEN)]
        wanted = size_of(seen) if seen else 0
        batch: list[tuple[Item, list[str]]] = []
        while self._left and len(batch) < wanted:
            pair = self._left.popleft()
            key = pair[1][0]
            if self._collected(pair):
                continue
            # A second job of the same key is read when the first one is there.
            if key not in taken and journal.claim(key):
                batch.append(pair)
                taken.add(key)
            else:
                self._elsewhere.append(pair)
        # Others' claims were left out, and what took their place may fit worse.
        size = size_of([item for item, _ in batch]) if batch else 0
        self._give_back(journal, batch[size:])
        return batch[:size]

    @staticmethod
    def _any_stored(journal: Journal, batch: Sequence[tuple[Item, list[str]]]) -> bool:
        return any(_stored(journal, keys) for _, keys in batch)

    def _give_back(self, journal: Journal, batch: Sequence[tuple[Item, list[str]]]) -> None:
        for _, keys in batch:
            journal.release(keys[0])
        self._left.extendleft(reversed(batch))


class JournalUse:
    """The journal of one model, if it has one, and what came of it.

    Attributes:
        opened: the journal, None without one.
        identity: of the model, '' without a journal.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        """Open the journal before anything expensive is loaded.

        Raises:
            JournalError: it cannot be opened.
        """
        self.opened = None if path is None else Journal.open(path)
        self.identity = ""
        self._works: list[Work[Any]] = []
        self._told: set[str] = set()
        self._resumed = self._made = 0

    def describe(self, facts: Mapping[str, Any], identity: Callable[[], str]) -> None:
        """Say what fills the journal.

        Args:
            facts: plain data recorded with the responses, such as versions and device.
            identity: returns what names weights and tokenizer; not called without a journal.
        """
        if self.opened is not None:
            self.opened.facts = dict(facts)
            self.identity = identity()

    def work(
        self,
        items: Sequence[Item],
        keys_of: Callable[[Item], Sequence[str]],
        on_stored: Callable[[Item, list[Entry]], None],
    ) -> Work[Item]:
        """Return the work of some jobs; see `Work`."""
        work = Work(self.opened, items, keys_of, on_stored)
        self._works.append(work)
        return work

    def settle(self) -> None:
        """Bring everything to the disk, and say once what another version made.

        Raises:
            JournalError: the disk is full.
        """
        self._count()
        if self.opened is None:
            return
        try:
            self.opened.flush()
        except JournalError as error:
            raise for_command_line(error) from None
        for facts in self.opened.sources():
            other = {k: v for k, v in facts.items() if self.opened.facts.get(k) != v}
            if other and str(other) not in self._told:
                self._told.add(str(other))
                logger.warning(
                    "journal '%s': some responses were made with %s, this run has %s; the last bits"
                    " of their logits may differ",
                    self.opened.path,
                    other,
                    {key: self.opened.facts.get(key) for key in other},
                )

    def info(self) -> dict[str, Any] | None:
        """Return plain data for a results file, or None without a journal."""
        if self.opened is None:
            return None
        self._count()
        return {
            "path": str(self.opened.path),
            "resumed": self._resumed,
            "made": self._made,
            "made_by": [
                self.opened.facts,
                *(facts for facts in self.opened.sources() if facts != self.opened.facts),
            ],
            "problems": list(self.opened.problems),
        }

    def _count(self) -> None:
        """Count what is done, and let go of its jobs and results."""
        self._resumed += sum(work.resumed for work in self._works)
        self._made += sum(work.made for work in self._works)
        self._works.clear()


def _stored(journal: Journal, keys: Sequence[str]) -> bool:
    return all(key in journal for key in keys)
