"""Steering on one worker: fills the operator's tables for every step, and accounts for it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from interventions.backends.vllm import layers
from interventions.backends.vllm.compiled import SCALARS, Compiled, unpack
from interventions.backends.vllm.config import KEY, MAX_SLOTS, SteeringConfig
from interventions.backends.vllm.op import SLOT_BITS, SLOT_MASK
from interventions.backends.vllm.steps import Thinking, pack_rows
from interventions.backends.vllm.tables import HookTables, Slots
from interventions.errors import ReceiptError, SpecError

_KEPT_REQUESTS = 1 << 17
"""Finished requests whose rows are remembered for a frontend that never asks."""


@dataclass(frozen=True)
class StepRequest:
    """A request of a step, as a model runner lists it.

    Attributes:
        request_id: the engine's.
        start: position of its first row.
        length: rows.
        known: its tokens, as far as the host knows them; called only where they are needed.
    """

    request_id: str
    start: int
    length: int
    known: Any


@dataclass
class _Live:
    """A steered request that is not finished."""

    compiled: Compiled
    prompt_len: int
    begins_with_bos: bool
    tag: str | None
    keep_norms: bool
    spans: list[list[int]] = field(default_factory=list)


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
        self._tables = {
            index: HookTables.empty(
                slots=max_requests + 1,
                max_edits=config.max_edits,
                d_model=d_model,
                rows=max_rows,
                device=device,
            )
            for index in layers.local(model, self.points, n_layers)
        }
        self._slots = Slots(self._tables, max_requests + 1)
        self._thinking = Thinking(max_requests, device)
        self._live: dict[str, _Live] = {}
        self._done: dict[str, list[_Live]] = {}
        self._packed = np.zeros(0, dtype=np.int32)
        self._dirty = 0  # rows at the front of `_tokens` that may not be 0
        self._rows: Counter[tuple[str, int]] = Counter()
        self._unpacked: dict[str, Compiled] = {}
        self._norms: dict[str, dict[int, list[float]]] = {}
        self._reading: list[tuple[str, int, int]] = []
        self.dummy_rows_stay = False
        # Of requests of the V2 runner, which keeps none on the host.
        self.tokens: dict[str, Sequence[int]] = {}
        layers.arm(model, self.points, n_layers, self._tokens, self._tables)

    # -- requests -----------------------------------------------------------------------------

    def update(self, finished: Sequence[str], new: Sequence[Any]) -> None:
        """Take note of requests that ended and of those that came.

        Args:
            finished: ids; an id may be in `new` as well, for another request.
            new: vLLM's `NewRequestData`.

        Raises:
            SpecError: a request's intervention was not compiled by the frontend's plugin.
        """
        for request_id in finished:
            self._finish(request_id)
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
                continue
            compiled = self._unpack(extra["compiled"])
            prompt = request.prompt_token_ids or ()
            self._live[request.req_id] = _Live(
                compiled=compiled,
                prompt_len=extra.get("prompt_len") or len(prompt),
                begins_with_bos=bool(prompt) and prompt[0] == compiled.bos,
                tag=extra.get("tag"),
                keep_norms=bool(extra.get("norms")),
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
        if live is not None and live.tag is not None:
            self._done.setdefault(live.tag, []).append(live)
            if len(self._done) > _KEPT_REQUESTS:
                self._done.pop(next(iter(self._done)))

    # -- steps --------------------------------------------------------------------------------

    def clear(self) -> None:
        """Leave every row of the next forward pass alone: a dummy run."""
        self._write(np.zeros(0, dtype=np.int32))

    def fill(self, requests: Sequence[StepRequest], ids: torch.Tensor) -> None:
        """Say what the rows of the next forward pass are.

        Args:
            requests: in the order of their rows.
            ids: token ids of the rows, on the device.

        Raises:
            ReceiptError: more interventions than slots.
        """
        live = [self._live.get(request.request_id) for request in requests]
        steered = [one.compiled for one in live if one is not None]
        self._reading = []
        if not steered:
            self._write(np.zeros(0, dtype=np.int32))
            return
        held = self._slots.assign(steered)
        packed = pack_rows(
            np.array([0 if one is None else held[one.compiled.fingerprint] for one in live]),
            np.array([request.start for request in requests]),
            np.array([request.length for request in requests]),
            np.array([0 if one is None else one.prompt_len for one in live]),
            np.array([one is not None and one.begins_with_bos for one in live]),
        )
        thinks = any(compiled.think is not None for compiled in steered)
        self._write(packed, force=thinks)
        if thinks:
            self._mark_thinking(requests, live, ids)
        self._account(requests, live, packed, held)

    def _write(self, packed: np.ndarray, *, force: bool = False) -> None:
        """Copy to the device what rows are; in order with what the device runs."""
        if not force and np.array_equal(packed, self._packed):
            return
        n = max(len(packed), self._dirty)
        padded = np.zeros(n, dtype=np.int32)
        padded[: len(packed)] = packed
        source = torch.from_numpy(padded)
        if self._device.type == "cuda":
            # A fresh pinned block each time: torch's allocator does not hand it out again before
            # the copy is done, however far the host has run ahead.
            source = source.pin_memory()
        self._tokens[:n].copy_(source, non_blocking=True)
        self._packed, self._dirty = packed, len(packed)

    def _mark_thinking(
        self, requests: Sequence[StepRequest], live: Sequence[_Live | None], ids: torch.Tensor
    ) -> None:
        rows, places, firsts, lasts, thinks = [], [], [], [], []
        first_row = n = 0
        for request, one in zip(requests, live, strict=True):
            if one is not None and one.compiled.think is not None:
                place = self._thinking.place(
                    request.request_id,
                    request.start,
                    request.length,
                    request.known(),
                    one.compiled.think,
                )
                rows += range(first_row, first_row + request.length)
                places += [place] * request.length
                firsts += [n] * request.length
                thinks += [one.compiled.think] * request.length
                n += request.length
                lasts.append(n - 1)
            first_row += request.length
        row, place, first, last = (
            torch.tensor(values, device=self._device) for values in (rows, places, firsts, lasts)
        )
        think = torch.tensor(thinks, device=self._device).T
        self._thinking.mark(self._tokens, ids, row, place, first, last, think)

    def _account(
        self,
        requests: Sequence[StepRequest],
        live: Sequence[_Live | None],
        packed: np.ndarray,
        held: Mapping[str, int],
    ) -> None:
        owners = {slot: fingerprint for fingerprint, slot in held.items()}
        values, counts = np.unique(packed, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value:
                self._rows[owners[value & SLOT_MASK], value >> SLOT_BITS] += count
        row = 0
        for request, one in zip(requests, live, strict=True):
            if one is not None:
                end = request.start + request.length
                if one.spans and one.spans[-1][1] == request.start:
                    one.spans[-1][1] = end
                else:
                    one.spans.append([request.start, end])
                if one.keep_norms and one.tag is not None:
                    self._reading.append((one.tag, row, row + request.length))
            row += request.length

    def read_norms(self) -> None:
        """Keep the lengths of the stream that the last forward pass saw, where they are asked."""
        for tag, start, end in self._reading:
            kept = self._norms.setdefault(tag, {})
            for index, tables in self._tables.items():
                kept.setdefault(index, []).extend(tables.norms[start:end].tolist())
        self._reading = []

    # -- accounts -----------------------------------------------------------------------------

    def take_norms(self, tag: str) -> dict[int, list[float]]:
        """Return the lengths of the stream at each row of the request `tag`, by hook point."""
        return self._norms.pop(tag, {})

    def take_receipt(self, tags: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what was steered since the last call.

        Args:
            tags: requests whose rows are wanted, finished or not; None for all that finished.

        Returns:
            `counts`: by fingerprint and hook point, `[selected, guarded, fired]` of each edit, as
            the device counted. `rows`: by fingerprint, `[flags, rows]` pairs, as the host
            scheduled. `requests`: by tag, `[fingerprint, prompt_len, spans]` of each request.
        """
        rows: dict[str, list[list[int]]] = {}
        for (fingerprint, flags), n in self._rows.items():
            rows.setdefault(fingerprint, []).append([flags, n])
        self._rows.clear()
        wanted = list(self._done) if tags is None else tags
        requests = {tag: [_facts(one) for one in self._done.pop(tag, [])] for tag in wanted}
        for one in self._live.values() if tags is not None else ():
            if one.tag in requests:
                requests[one.tag].append(_facts(one))
        return {
            "hook_points": sorted(self._tables),
            "counts": self._slots.take_counts(),
            "rows": rows,
            "requests": requests,
        }

    def self_check(self, run: Any) -> None:
        """Return nothing if the operator sees every row of a forward pass.

        Args:
            run: called with a number of rows; runs a dummy forward pass of that size.

        Raises:
            ReceiptError: it does not: steering would change nothing, without a word.
        """
        n_rows = 1
        compiled = Compiled("self-check", (), keyed=False, boundary=None, bos=None, think=None)
        slot = self._slots.assign([compiled])[compiled.fingerprint]
        for tables in self._tables.values():
            tables.write(slot, None)
            tables.n_edits[slot] = 1
            tables.scalars[slot].zero_()
            tables.scalars[slot, 0, SCALARS.index("wanted")] = 1.0
            tables.limit[slot] = float("inf")
        self._write(pack_rows(*(np.array([v]) for v in (slot, 0, n_rows, 1, False))))
        run(n_rows)
        self.clear()
        counted = self._slots.take_counts()[compiled.fingerprint]
        self._slots.release(compiled.fingerprint)
        for index, counts in counted.items():
            if counts[0][0] < n_rows:
                raise ReceiptError(
                    f"the edit operator at {self.points[index]} saw {counts[0][0]} of {n_rows} rows"
                    f" of a test run: this engine would run unsteered; it is not started. Delete"
                    f" vLLM's compile cache, or start with enforce_eager"
                )


def _facts(one: _Live) -> list[Any]:
    return [one.compiled.fingerprint, one.prompt_len, [list(span) for span in one.spans]]
