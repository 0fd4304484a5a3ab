"""The best few entries of every feature in a stream, whatever batches the stream comes in."""

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor

_BLOCK = 4096


class Leaders:
    """For each of `n` features the `k` entries with the largest keys, largest first.

    An entry has a key, a tag and a payload. Of entries with one tag only the largest stays; equal
    keys are ordered by tag, so that the result depends on the entries alone and not on how they
    were grouped. Memory is `n · k` entries.

    Attributes:
        key: `(n, k)`; the lowest number of its dtype where there is no entry.
        tag: `(n, k)` int64, -1 where there is no entry.
        payload: by name, `(n, k, ...)`.
    """

    def __init__(self, key: Tensor, tag: Tensor, payload: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.key, self.tag, self.payload = key, tag, dict(payload)

    @classmethod
    def empty(
        cls,
        n: int,
        k: int,
        dtype: torch.dtype,
        payload: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        device: torch.device,
    ) -> Self:
        """Return leaders of nothing.

        Args:
            n: features.
            k: entries of each.
            dtype: of the keys.
            payload: shape and dtype of each part.
            device: where they are kept.
        """
        return cls(
            torch.full((n, k), _lowest(dtype), dtype=dtype, device=device),
            torch.full((n, k), -1, dtype=torch.long, device=device),
            {
                name: torch.zeros((n, k, *shape), dtype=kind, device=device)
                for name, (shape, kind) in payload.items()
            },
        )

    @property
    def held(self) -> Tensor:
        """Where there is an entry, `(n, k)` bool."""
        return self.key > _lowest(self.key.dtype)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return everything by name, for a checkpoint."""
        parts = {f"payload.{name}": tensor for name, tensor in self.payload.items()}
        return {f"{prefix}.{k}": t for k, t in {"key": self.key, "tag": self.tag, **parts}.items()}

    @classmethod
    def load(cls, prefix: str, tensors: Mapping[str, Tensor]) -> Self:
        """Return the leaders that `tensors(prefix)` described."""
        start = f"{prefix}.payload."
        payload = {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
        return cls(tensors[f"{prefix}.key"], tensors[f"{prefix}.tag"], payload)

    def offer(
        self,
        feature: Tensor,
        key: Tensor,
        tag: Tensor,
        payload: Callable[[Tensor], Mapping[str, Tensor]] = lambda index: {},
        *,
        distinct: bool = False,
    ) -> None:
        """Take in entries.

        Args:
            feature: `(m,)` int64, whose entry it is.
            key: `(m,)`.
            tag: `(m,)` int64.
            payload: from indices into these `(j,)` to the parts, `(j, ...)`; asked only for
                entries that may stay.
            distinct: no feature is offered a tag twice, now or later; spares the search for such.
        """
        index = (key >= self.key[:, -1][feature]).nonzero()[:, 0]
        index = _first_of_each(index, feature, key, tag, self.key.shape[1], distinct)
        if not len(index):
            return
        owners, place = feature[index].unique_consecutive(return_inverse=True)
        begin = torch.searchsorted(place, torch.arange(len(owners), device=place.device))
        slot = torch.arange(len(index), device=place.device) - begin[place]
        for first in range(0, len(owners), _BLOCK):
            inside = (place >= first) & (place < first + _BLOCK)
            self._merge(
                owners[first : first + _BLOCK],
                (place[inside] - first, slot[inside]),
                index[inside],
                (key, tag),
                payload,
                distinct=distinct,
            )

    def _merge(
        self,
        owners: Tensor,
        at: tuple[Tensor, Tensor],
        index: Tensor,
        given: tuple[Tensor, Tensor],
        payload: Callable[[Tensor], Mapping[str, Tensor]],
        *,
        distinct: bool,
    ) -> None:
        """Put entries `index` of `given`, which stand at `at`, among those of `owners`."""
        k = self.key.shape[1]
        lowest = _lowest(self.key.dtype)
        place, slot = at
        more = int(slot.max()) + 1

        def both(old: Tensor, new: Tensor, fill: float) -> Tensor:
            added = old.new_full((len(old), more), fill)
            added[place, slot] = new.to(old.dtype)
            return torch.cat([old, added], dim=1)

        keys = both(self.key[owners], given[0][index], lowest)
        tags = both(self.tag[owners], given[1][index], -1)
        entries = both(torch.full_like(tags[:, :k], -1), index, -1)
        if distinct:
            order = tags.argsort(dim=1, stable=True)
        else:
            order = keys.argsort(dim=1, descending=True, stable=True)
            order = order.gather(1, tags.gather(1, order).argsort(dim=1, stable=True))
        keys, tags = keys.gather(1, order), tags.gather(1, order)
        if not distinct:
            keys[:, 1:] = keys[:, 1:].masked_fill(tags[:, 1:] == tags[:, :-1], lowest)
        best = keys.argsort(dim=1, descending=True, stable=True)[:, :k]
        keys = keys.gather(1, best)
        self.key[owners] = keys
        self.tag[owners] = tags.gather(1, best).masked_fill(keys == lowest, -1)
        if not self.payload:
            return
        chosen = order.gather(1, best)
        came = entries.gather(1, chosen)
        new = (came >= 0) & (keys > lowest)
        # Old ones move, and only for new ones that stay is anything computed.
        from_old = chosen.clamp(max=k - 1)
        for name, part in payload(came[new]).items():
            kept = self.payload[name][owners[:, None], from_old]
            kept[new] = part.to(kept.dtype)
            self.payload[name][owners] = kept


def _first_of_each(
    index: Tensor, feature: Tensor, key: Tensor, tag: Tensor, k: int, distinct: bool
) -> Tensor:
    """Return of `index` the `k` best of each feature, sorted by feature, without repeated tags."""
    rank = falling(key)
    if not distinct:
        index = index[rank[index].argsort(stable=True)]
        index = index[tag[index].argsort(stable=True)]
        index = index[feature[index].argsort(stable=True)]
        owner, name = feature[index], tag[index]
        repeated = torch.zeros_like(owner, dtype=torch.bool)
        repeated[1:] = (owner[1:] == owner[:-1]) & (name[1:] == name[:-1])
        index = index[~repeated]
    else:
        index = index[tag[index].argsort(stable=True)]
    # Tags are in order within a feature already, and stable sorts keep it for equal keys.
    index = index[rank[index].argsort(stable=True)]
    index = index[feature[index].argsort(stable=True)]
    owner = feature[index]
    owners, place = owner.unique_consecutive(return_inverse=True)
    begin = torch.searchsorted(place, torch.arange(len(owners), device=place.device))
    return index[torch.arange(len(index), device=index.device) - begin[place] < k]


def falling(key: Tensor) -> Tensor:
    """Return whole numbers that rise where `key` falls; they sort several times as fast."""
    if not key.dtype.is_floating_point:
        return ~key
    bits = key.float().view(torch.int32)
    # The numbers of negative floats rise with their magnitude.
    return ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _lowest(dtype: torch.dtype) -> float:
    return float("-inf") if dtype.is_floating_point else -1
