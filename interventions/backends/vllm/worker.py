"""Steering on one worker: fills the operator's tables for every step, and accounts for it."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from interventions.backends.vllm import layers
from interventions.backends.vllm.accounts import Account, Accounts
from interventions.backends.vllm.compiled import SCALARS, Compiled, unpack
from interventions.backends.vllm.config import KEY, MAX_SLOTS, SteeringConfig
from interventions.backends.vllm.steps import Thinking, pack_rows
from interventions.backends.vllm.tables import HookTables, Slots
from interventions.errors import ReceiptError, SpecError

logger = logging.getLogger(__name__)

_KEPT_NORMS = 1 << 10
"""Tags whose norms are remembered for a frontend that never asks."""


class StepRequest(NamedTuple):
    """A request of a step, as a model runner lists it; hundreds are made every step.

    Attributes:
        request_id: the engine's.
        start: position of its first row.
        length: rows.
        known: returns its tokens, as far as the host knows them; called only where needed.
    """

    request_id: str
    start: int
    length: int
    known: Any


@dataclass(frozen=True)
class _Live:
    """A steered request that is not finished."""

    compiled: Compiled
    prompt_len: int
    begins_with_bos: bool
    keep_norms: str | None
    account: Account


class WorkerSteering:
    """The state of one worker; made once its model is loaded, before it is compiled."""

    def __init__(
        self,
        model: nn.Module,
        config: SteeringConfig,
        *,
        n_layers: int,
        d_model: int,
        max_requests: int,
        max_rows: int,
        device: torch.device,
        name: str,
    ) -> None:
        """Allocate the tables and arm the layers.

        Args:
            model: as the runner holds it.
            config: what was declared.
            n_layers: decoder layers of the whole model.
            d_model: width of the residual stream.
            max_requests: most requests of a step.
            max_rows: most rows of a step, padding included.
            device: of the model.
            name: of the model, for messages.

        Raises:
            SpecError: more requests at once than slots can be told apart.
            HookPointError: a layer outside the model, or an unknown architecture.
        """
        if max_requests + 1 > MAX_SLOTS:
            raise SpecError(
                f"max_num_seqs {max_requests} needs more than {MAX_SLOTS} slots; lower it"
            )
        self.points = config.points(n_layers, name)
        self._device = device
        self._tokens = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._owners = torch.zeros_like(self._tokens)
        n_accounts = 2 * max_requests + 2
        self._tables = {
            index: HookTables.empty(
                slots=max_requests + 1,
                accounts=n_accounts,
                max_edits=config.max_edits,
                d_model=d_model,
                rows=max_rows,
                device=device,
            )
            for index in layers.local(model, self.points, n_layers)
        }
        self._slots = Slots(self._tables, max_requests + 1)
        self._thinking = Thinking(max_requests, device)
        self._accounts = Accounts({i: t.counts for i, t in self._tables.items()}, n_accounts)
        self._live: dict[str, _Live] = {}
        self._packed = self._owner = np.zeros(0, dtype=np.int32)
        self._dirty = 0  # rows at the front of `_tokens` that may not be 0
        self._unpacked: dict[str, Compiled] = {}
        self._norms: dict[str, dict[int, list[float]]] = {}
        self._reading: list[tuple[str, int, int]] = []
        self.dummy_rows_stay = False
        self.set_aside: dict[int, Any] = {}  # see runners
        # Of requests of the V2 runner, which keeps none on the host.
        self.tokens: dict[str, Sequence[int]] = {}
        layers.arm(model, self.points, n_layers, self._tokens, self._owners, self._tables)

    # -- requests -----------------------------------------------------------------------------

    def update(
        self, finished: Iterable[str], new: Iterable[Any], resumed: Iterable[str] = ()
    ) -> None:
        """Take note of requests that ended, of those that came, and of those that came back.

        Args:
            finished: ids; an id may be in `new` as well, for another request.
            new: vLLM's `NewRequestData`; of runner V2 also those that were preempted.
            resumed: ids of those that were preempted, of runner V1.

        Raises:
            SpecError: a request's intervention was not compiled by the frontend's plugin.
        """
        for request_id in finished:
            self._finish(request_id)
        for request_id in resumed:
            if request_id in self._live:
                self._live[request_id].account.resuming = True
        for request in new:
            params = request.sampling_params
            extra = (params.extra_args or {}).get(KEY) if params is not None else None
            if extra is None:
                self._live.pop(request.req_id, None)
                continue
            if not isinstance(extra, Mapping) or "compiled" not in extra:
                raise SpecError(
                    f"request {request.req_id} names an intervention that no frontend compiled;"
                    f" the plugin sae_steered must be active in the frontend (see VLLM_PLUGINS)"
                )
            if request.req_id in self._live:  # resumed after a preemption
                self._live[request.req_id].account.resuming = True
                continue
            compiled = self._unpack(extra["compiled"])
            prompt = request.prompt_token_ids or ()
            prompt_len = extra.get("prompt_len") or len(prompt)
            bos = bool(prompt) and prompt[0] == compiled.bos
            tag = extra.get("tag")
            self._live[request.req_id] = _Live(
                compiled=compiled,
                prompt_len=prompt_len,
                begins_with_bos=bos,
                keep_norms=tag if extra.get("norms") else None,
                account=self._accounts.open(compiled, prompt_len, bos, tag),
            )

    def _unpack(self, data: Mapping[str, Any]) -> Compiled:
        fingerprint = data["fp"]
        if fingerprint not in self._unpacked:
            if len(self._unpacked) >= 4 * self._slots.size:
                self._unpacked.pop(next(iter(self._unpacked)))
            self._unpacked[fingerprint] = unpack(data)
        return self._unpacked[fingerprint]

    def _finish(self, request_id: str) -> None:
        live = self._live.pop(request_id, None)
        self._thinking.forget(request_id)
        self.tokens.pop(request_id, None)
        if live is not None:
            self._accounts.close(live.account)

    # -- steps --------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no request is steered, so that a step need not list its requests for `fill`."""
        return not self._live

    def clear(self) -> None:
        """Leave every row of the next forward pass alone: a dummy run."""
        self._write(_NO_ROWS, _NO_ROWS)

    def fill(self, requests: Sequence[StepRequest], ids: torch.Tensor) -> None:
        """Say what the rows of the next forward pass are.

        Args:
            requests: in the order of their rows.
            ids: token ids of the rows, on the device.

        Raises:
            ReceiptError: more interventions than slots.
        """
        live = [self._live.get(request.request_id) for request in requests]
        steered = [one for one in live if one is not None]
        self._reading = []
        if not steered:
            self.clear()
            return
        held = self._slots.assign(one.compiled for one in steered)
        self._accounts.place([one.account for one in steered])
        lengths = np.array([request.length for request in requests])
        packed = pack_rows(
            np.array([0 if one is None else held[one.compiled.fingerprint] for one in live]),
            np.array([request.start for request in requests]),
            lengths,
            np.array([0 if one is None else one.prompt_len for one in live]),
            np.array([one is not None and one.begins_with_bos for one in live]),
        )
        owner = np.repeat(
            np.array([0 if one is None else one.account.row for one in live], dtype=np.int32),
            lengths,
        )
        thinks = any(one.compiled.think is not None for one in steered)
        self._write(packed, owner, force=thinks)
        if thinks:
            self._mark_thinking(requests, live, ids)
        row = 0
        for request, one in zip(requests, live, strict=True):
            if one is not None:
                one.account.ran(request.start, request.length)
                if one.keep_norms is not None:
                    self._reading.append((one.keep_norms, row, row + request.length))
            row += request.length

    def _write(self, packed: np.ndarray, owner: np.ndarray, *, force: bool = False) -> None:
        """Copy to the device what rows are; in order with what the device runs."""
        if not np.array_equal(owner, self._owner) and len(owner):
            self._copy(self._owners, owner)
            self._owner = owner
        if force or not np.array_equal(packed, self._packed):
            padded = np.zeros(max(len(packed), self._dirty), dtype=np.int32)
            padded[: len(packed)] = packed
            self._copy(self._tokens, padded)
            self._packed, self._dirty = packed, len(packed)

    def _copy(self, target: torch.Tensor, values: np.ndarray) -> None:
        source = torch.from_numpy(values)
        if self._device.type == "cuda":
            # A fresh pinned block each time: torch's allocator does not hand it out again before
            # the copy is done, however far the host has run ahead.
            source = source.pin_memory()
        target[: len(values)].copy_(source, non_blocking=True)

    def _mark_thinking(
        self, requests: Sequence[StepRequest], live: Sequence[_Live | None], ids: torch.Tensor
    ) -> None:
        starts, places, lengths, thinks = [], [], [], []
        first_row = 0
        for request, one in zip(requests, live, strict=True):
            if one is not None and one.compiled.think is not None:
                place = self._thinking.place(
                    request.request_id,
                    request.start,
                    request.length,
                    request.known,
                    one.compiled.think,
                )
                starts.append(first_row)
                places.append(place)
                lengths.append(request.length)
                thinks.append(one.compiled.think)
            first_row += request.length
        ends = np.cumsum(lengths)
        first = np.repeat(ends - lengths, lengths)
        row = np.arange(ends[-1]) - first + np.repeat(starts, lengths)
        think = np.repeat(np.array(thinks).T, lengths, axis=1)
        self._thinking.mark(
            self._tokens,
            ids,
            *map(self._on_device, (row, np.repeat(places, lengths), first, ends - 1, think)),
        )

    def _on_device(self, values: np.ndarray) -> torch.Tensor:
        target = torch.empty(values.shape, dtype=torch.int64, device=self._device)
        self._copy(target, np.ascontiguousarray(values, dtype=np.int64))
        return target

    def read_norms(self) -> None:
        """Keep the lengths of the stream that the last forward pass saw, where they are asked."""
        for tag, start, end in self._reading:
            kept = self._norms.setdefault(tag, {})
            if len(self._norms) > _KEPT_NORMS:  # of frontends that never asked
                self._norms.pop(next(iter(self._norms)))
            for index, tables in self._tables.items():
                kept.setdefault(index, []).extend(tables.norms[start:end].tolist())
        self._reading = []

    # -- accounts -----------------------------------------------------------------------------

    def take_norms(self, tag: str) -> dict[int, list[float]]:
        """Return the lengths of the stream at each row of the request `tag`, by hook point."""
        return self._norms.pop(tag, {})

    def take_receipt(self, tags: Sequence[str]) -> dict[str, Any]:
        """Return what was steered for some requests, finished or not, and forget it.

        Args:
            tags: names of requests.

        Returns:
            `hook_points`: indices of those on this worker. `requests`: by tag, a mapping for each
            request of that tag, see `Account.facts`. `failures`: what did not add up for any
            request since the last call, one message each.
        """
        return {"hook_points": sorted(self._tables), **self._accounts.take(tags)}

    def self_check(self, run: Any) -> None:
        """Return nothing if the operator sees every row of a forward pass.

        Args:
            run: called with a number of rows; runs a dummy forward pass of that size.

        Raises:
            ReceiptError: it does not: steering would change nothing, without a word.
        """
        compiled = Compiled("self-check", (), keyed=False, boundary=None, bos=None, think=None)
        slot = self._slots.assign([compiled])[compiled.fingerprint]
        for tables in self._tables.values():
            tables.n_edits[slot] = 1
            tables.limit[slot] = float("inf")
            tables.scalars[slot].zero_()
            tables.scalars[slot, 0, SCALARS.index("wanted")] = 1.0
        row = self._accounts.SELF_CHECK
        packed = pack_rows(*(np.array([value]) for value in (slot, 0, 1, 1, False)))
        self._write(packed, np.array([row], dtype=np.int32))
        run(1)
        self.clear()
        self._slots.release(compiled.fingerprint)
        for index, tables in self._tables.items():
            seen = int(tables.counts[row, 0, 0])
            tables.counts[row].zero_()
            if not seen:
                raise ReceiptError(
                    f"the edit operator at {self.points[index]} did not run in a test run: this"
                    f" engine would run unsteered, so it is not started; delete vLLM's compile"
                    f" cache, or start with enforce_eager"
                )


_NO_ROWS = np.zeros(0, dtype=np.int32)
