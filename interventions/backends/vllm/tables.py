"""The tensors that the operator reads and writes, and which intervention holds which slot."""

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
        cls,
        *,
        slots: int,
        accounts: int,
        max_edits: int,
        d_model: int,
        rows: int,
        device: torch.device,
    ) -> "HookTables":
        """Return tables in which every slot holds no edit and every account is 0."""

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            n_edits=zeros(slots, dtype=torch.int32),
            limit=zeros(slots),
            scalars=zeros(slots, max_edits, len(SCALARS)),
            e=zeros(slots, max_edits, d_model),
            w=zeros(slots, max_edits, d_model),
            counts=zeros(accounts, max_edits, 3, dtype=torch.int64),
            norms=zeros(rows),
        )

    def write(self, slot: int, hook: HookEdits | None) -> None:
        """Give `slot` the edits of `hook`, or none; in order with what the device runs."""
        n = 0 if hook is None else len(hook.scalars)
        self.n_edits[slot] = n
        if hook is not None:
            self.limit[slot] = hook.limit
            for table, rows in ((self.scalars, hook.scalars), (self.e, hook.e), (self.w, hook.w)):
                table[slot, :n].copy_(rows)


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

    def release(self, fingerprint: str) -> None:
        """Free the slot of an intervention."""
        self._held.pop(fingerprint)

    def _free_slot(self) -> int:
        if len(self._held) < self.size - 1:
            return min(set(range(1, self.size)) - set(self._held.values()))
        return self._held.popitem(last=False)[1]


def _at(hooks: Sequence[HookEdits], index: int) -> HookEdits | None:
    return next((hook for hook in hooks if hook.index == index), None)
