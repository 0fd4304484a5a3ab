"""What the device counted for each request, beside what the host gave it to run.

A request has a row of the counters while it runs. Rows of requests that have ended are read
together, when somebody asks or when rows run short: one transfer for hundreds of requests.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interventions.backends.vllm.compiled import (
    FLAG_THINKING,
    FLAGS,
    SCALARS,
    Compiled,
    HookEdits,
)
from interventions.errors import ReceiptError

logger = logging.getLogger(__name__)

_KEPT = 1 << 17
"""Ended requests that are remembered for a frontend that never asks."""

_NOWHERE = 0


@dataclass(eq=False)
class Account:
    """Of one request.

    Attributes:
        compiled: its intervention.
        prompt_len: where its prompt ends.
        begins_with_bos: whether its first token is a BOS that edits may skip.
        tag: its name, or None.
        row: in the counters; 0 while it has none.
        spans: positions `[start, end)` that ran, in order; they overlap after a preemption.
        counts: by hook point, `(max_edits, 3)`, what has been read so far.
        resuming: whether it comes back after a preemption.
        resumed: positions at which it came back, behind what is cached by then.
    """

    compiled: Compiled
    prompt_len: int
    begins_with_bos: bool
    tag: str | None
    row: int = _NOWHERE
    ended: bool = False
    resuming: bool = False
    spans: list[list[int]] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    counts: dict[int, Tensor] = field(default_factory=dict)

    def ran(self, start: int, length: int) -> None:
        """Note rows `[start, start + length)`."""
        if self.resuming:
            self.resumed.append(start)
            self.resuming = False
        if self.spans and self.spans[-1][1] == start:
            self.spans[-1][1] = start + length
        else:
            self.spans.append([start, start + length])

    def facts(self) -> dict[str, Any]:
        """Return plain data: what ran, and what was counted by hook point for each edit."""
        return {
            "fingerprint": self.compiled.fingerprint,
            "prompt_len": self.prompt_len,
            "begins_with_bos": self.begins_with_bos,
            "spans": [list(span) for span in self.spans],
            **({"resumed": list(self.resumed)} if self.resumed else {}),
            "counts": {
                hook.index: self.counts[hook.index][: len(hook.scalars)].tolist()
                for hook in self.compiled.hooks
                if hook.index in self.counts
            },
        }

    def failure(self) -> str | None:
        """Return how the counts differ from the rows that ran, or None if they agree.

        Edits on the `thinking` span are left to those who know the tokens.
        """
        for hook in self.compiled.hooks:
            if hook.index not in self.counts:
                continue  # on another pipeline rank
            for edit, expected in enumerate(self._expected(hook)):
                seen = int(self.counts[hook.index][edit, 0])
                if expected is not None and seen != expected:
                    return (
                        f"request {self.tag or ''} of intervention {self.compiled.fingerprint}:"
                        f" edit {edit + 1} at hook point {hook.index} edited {seen} rows where"
                        f" {expected} ran"
                    )
        return None

    def _expected(self, hook: HookEdits) -> Iterable[int | None]:
        wanted = hook.scalars[:, SCALARS.index("wanted")].tolist()
        skips = hook.scalars[:, SCALARS.index("skip_bos")].tolist()
        for kind, skip in zip(wanted, skips, strict=True):
            if int(kind) == FLAG_THINKING:
                yield None
                continue
            low, high = _range(int(kind), self.prompt_len)
            low = max(low, 1) if skip and self.begins_with_bos else low
            yield sum(max(0, min(end, high) - max(start, low)) for start, end in self.spans)


def _range(kind: int, prompt_len: int) -> tuple[int, int]:
    """Return the positions `[low, high)` that a kind of edit names."""
    far = 1 << 62
    return {
        FLAGS["all"]: (0, far),
        FLAGS["prompt"]: (0, prompt_len),
        FLAGS["generated"]: (prompt_len, far),
        FLAGS["last_prompt"]: (prompt_len - 1, prompt_len),
    }[kind]


class Accounts:
    """The accounts of one worker."""

    SELF_CHECK = 1
    """The row of the test run."""

    def __init__(self, counters: Mapping[int, Tensor], size: int) -> None:
        """Prepare.

        Args:
            counters: by hook point, `(size, max_edits, 3)` on the device.
            size: rows; enough for the requests of a step, and some.
        """
        self._counters = counters
        self._free = list(range(size - 1, self.SELF_CHECK, -1))
        self._placed: dict[int, Account] = {}
        self._kept: dict[str, list[Account]] = {}
        self._failures: list[str] = []

    def open(self, compiled: Compiled, prompt_len: int, bos: bool, tag: str | None) -> Account:
        """Return the account of a new request."""
        account = Account(compiled, prompt_len, bos, tag)
        if tag is not None:
            self._kept.setdefault(tag, []).append(account)
            if len(self._kept) > _KEPT:
                self._kept.pop(next(iter(self._kept)))
        return account

    def place(self, accounts: Sequence[Account]) -> None:
        """Give every account of a step a row.

        Raises:
            ReceiptError: there are fewer rows than requests in a step.
        """
        without = [account for account in accounts if account.row == _NOWHERE]
        if len(without) > len(self._free):
            # Ended requests, and those that were preempted and will get another row.
            now = {id(account) for account in accounts}
            self._read([a for a in self._placed.values() if id(a) not in now])
        for account in without:
            if not self._free:
                raise ReceiptError(
                    f"{len(accounts)} steered requests in a step and no counter is left; it is not"
                    f" run"
                )
            account.row = self._free.pop()
            self._placed[account.row] = account

    def close(self, account: Account) -> None:
        """Note that a request has ended."""
        account.ended = True
        if account.row == _NOWHERE:
            self._settle(account)

    def take(self, tags: Sequence[str]) -> dict[str, Any]:
        """Return the facts of the requests of some tags, and what failed for any request."""
        wanted = [account for tag in tags for account in self._kept.pop(tag, ())]
        self._read(
            [account for account in self._placed.values() if account.ended]
            + [account for account in wanted if account.row != _NOWHERE and not account.ended]
        )
        requests: dict[str, list[dict[str, Any]]] = {tag: [] for tag in tags}
        for account in wanted:
            assert account.tag is not None
            requests[account.tag].append(account.facts())
        failures, self._failures = self._failures, []
        return {"requests": requests, "failures": failures}

    def _read(self, accounts: Sequence[Account]) -> None:
        """Take the counts of some accounts off the device, and free their rows."""
        if not accounts:
            return
        rows = torch.tensor([account.row for account in accounts])
        for index, counters in self._counters.items():
            here = rows.to(counters.device)
            counts = counters[here].cpu()
            counters[here] = 0
            for account, counted in zip(accounts, counts, strict=True):
                held = account.counts.get(index)
                account.counts[index] = counted if held is None else held + counted
        for account in accounts:
            del self._placed[account.row]
            self._free.append(account.row)
            account.row = _NOWHERE
            if account.ended:
                self._settle(account)

    def _settle(self, account: Account) -> None:
        failure = account.failure()
        if failure is not None:
            logger.error("%s", failure)
            self._failures.append(failure)
