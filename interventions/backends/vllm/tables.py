"""The tensors that the operator reads, and which intervention holds which slot."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interventions.backends.vllm.compiled import SCALARS, Compiled, HookEdits
from interventions.errors import ReceiptError

NOBODY = 0
"""The slot of tokens that are left alone."""


@dataclass(frozen=True)
class HookTables:
    """What the operator reads and writes at one hook point; see `op.edit_` for the shapes."""

    n_edits: Tensor
    limit: Tensor
    scalars: Tensor
    e: Tensor
    w: Tensor
    counts: Tensor
    norms: Tensor

    @classmethod
    def empty(
        cls, *, slots: int, max_edits: int, d_model: int, rows: int, device: torch.device
    ) -> "HookTables":
        """Return tables in which every slot holds no edit."""

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            n_edits=zeros(slots, dtype=torch.int32),
            limit=zeros(slots),
            scalars=zeros(slots, max_edits, len(SCALARS)),
            e=zeros(slots, max_edits, d_model),
            w=zeros(slots, max_edits, d_model),
            counts=zeros(slots, max_edits, 3, dtype=torch.int64),
            norms=zeros(rows),
        )

    def write(self, slot: int, hook: HookEdits | None) -> None:
        """Give `slot` the edits of `hook`, or none; in order with what the device runs."""
        n = 0 if hook is None else len(hook.scalars)
        self.n_edits[slot] = n
        if hook is not None:
            self.limit[slot] = hook.limit
            for table, rows in ((self.scalars, hook.scalars), (self.e, hook.e), (self.w, hook.w)):
                table[slot, :n].copy_(rows, non_blocking=False)

    def take(self, slot: int) -> Tensor:
        """Return the counts of `slot`, `(max_edits, 3)` on the CPU, and start again from zero."""
        counts = self.counts[slot].cpu().clone()
        self.counts[slot].zero_()
        return counts


@dataclass
class Slots:
    """Interventions in slots, the least recently used one first.

    A step needs the interventions of the requests that it runs, at most `max_num_seqs` of them,
    and there is a slot for each; requests beyond that wait in the engine's own queue. So a step
    can always be steered, and a slot is free again as soon as no request of a step needs it.

    Attributes:
        tables: by index of the hook point; those that lie on this worker.
        size: slots, `NOBODY` included.
    """

    tables: Mapping[int, HookTables]
    size: int
    _held: "OrderedDict[str, int]" = field(default_factory=OrderedDict)
    _counts: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def assign(self, wanted: Iterable[Compiled]) -> dict[str, int]:
        """Return the slot of every intervention of a step, by fingerprint.

        Raises:
            ReceiptError: more interventions than slots.
        """
        needed = {compiled.fingerprint: compiled for compiled in wanted}
        if len(needed) >= self.size:
            raise ReceiptError(
                f"a step holds {len(needed)} interventions and there are {self.size - 1} slots; it"
                f" is not run"
            )
        for fingerprint in needed:
            if fingerprint in self._held:
                self._held.move_to_end(fingerprint)
        for fingerprint, compiled in needed.items():
            if fingerprint not in self._held:
                slot = self._free_slot()
                for index, tables in self.tables.items():
                    tables.write(slot, _at(compiled.hooks, index))
                self._held[fingerprint] = slot
        return {fingerprint: self._held[fingerprint] for fingerprint in needed}

    def _free_slot(self) -> int:
        if len(self._held) < self.size - 1:
            return min(set(range(1, self.size)) - set(self._held.values()))
        fingerprint, slot = self._held.popitem(last=False)
        self._collect(fingerprint, slot)
        return slot

    def release(self, fingerprint: str) -> None:
        """Forget an intervention and what was counted for it."""
        self._collect(fingerprint, self._held.pop(fingerprint))
        self._counts.pop(fingerprint)

    def _collect(self, fingerprint: str, slot: int) -> None:
        kept = self._counts.setdefault(fingerprint, {})
        for index, tables in self.tables.items():
            counts = tables.take(slot)
            kept[index] = kept[index] + counts if index in kept else counts

    def take_counts(self) -> dict[str, dict[int, list[list[int]]]]:
        """Return what the device counted since the last call, and start again from zero.

        Returns:
            By fingerprint, then by hook point: `[selected, guarded, fired]` of each edit place.
        """
        for fingerprint, slot in self._held.items():
            self._collect(fingerprint, slot)
        taken, self._counts = self._counts, {}
        return {
            fingerprint: {index: counts.tolist() for index, counts in hooks.items()}
            for fingerprint, hooks in taken.items()
        }


def _at(hooks: Sequence[HookEdits], index: int) -> HookEdits | None:
    return next((hook for hook in hooks if hook.index == index), None)
