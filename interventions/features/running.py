"""Facts about every feature from a stream of activations; memory grows with features only."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from interventions.features.leaders import Leaders, falling
from interventions.residuals import ResidBatch
from interventions.sae.core import SAE

FIRST_LOG2, STEP_LOG2, BINS = -14.0, 0.125, 256
"""Histogram of log2 activation: eighths of an octave, from 2**-14 to 2**18; the ends are open."""

_ROW = 1 << 24
# Activations that are in memory together: 4 bytes each, and some more for those that fire.
_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}


@dataclass(frozen=True)
class FactSettings:
    """What is kept of every feature.

    Attributes:
        top: contexts with the largest activations, one a row of tokens.
        quantiles: equal groups of firings by strength, of which contexts are shown.
        per_quantile: contexts of each.
        window: tokens before and after a firing.
        sample: firings drawn uniformly, from which come quantiles, frequent tokens, co-firing.
        strongest: features of a token that count as firing together.
        tokens: different tokens kept, by largest activation; and by share of the sample.
        cofiring: other features that are listed.
        lens: promoted and suppressed tokens through the unembedding; 0 for none.
        seed: of the sample.
    """

    top: int = 10
    quantiles: int = 5
    per_quantile: int = 2
    window: int = 16
    sample: int = 40
    strongest: int = 16
    tokens: int = 16
    cofiring: int = 10
    lens: int = 20
    seed: int = 0


class Running:
    """Sums, histograms and contexts so far; the same however the rows come in batches.

    Attributes:
        sums: `count`, `total`, `max_act`, `strong` (tokens where a feature is among the
            strongest), each `(d_sae,)`; `histogram (d_sae, BINS)`; and `tokens` that counted,
            `read`, `sinks`, `rows`.
        top: contexts by activation, tag `row · 2**24 + position`, with `window`.
        sample: firings by a hash, tagged likewise, with `window`, `value`, `token`, `with`.
        tokens: largest activation at each token, tag its id.
    """

    def __init__(
        self, settings: FactSettings, sums: dict[str, Tensor], leaders: dict[str, Leaders]
    ) -> None:
        """Go on from parts; `empty` and `load` make them."""
        self.settings, self.sums = settings, sums
        self.top, self.sample, self.tokens = (leaders[k] for k in ("top", "sample", "tokens"))

    @classmethod
    def empty(cls, d_sae: int, settings: FactSettings, device: torch.device) -> Self:
        """Return facts of nothing."""
        zeros = {"count": torch.long, "total": torch.double, "max_act": torch.float}
        sums = {k: torch.zeros(d_sae, dtype=t, device=device) for k, t in zeros.items()}
        sums["strong"] = torch.zeros_like(sums["count"])
        sums["histogram"] = torch.zeros(d_sae, BINS, dtype=torch.int32, device=device)
        for name in ("tokens", "read", "sinks", "rows"):
            sums[name] = torch.zeros((), dtype=torch.long, device=device)
        window = ((2 * settings.window + 1,), torch.float32)
        with_ = ((settings.strongest,), torch.int32)
        payload = {
            "window": window,
            "value": ((), torch.float32),
            "token": ((), torch.int32),
            "with": with_,
        }
        float_, long_ = torch.float32, torch.long
        leaders = {
            "top": Leaders.empty(d_sae, settings.top, float_, {"window": window}, device),
            "sample": Leaders.empty(d_sae, settings.sample, long_, payload, device),
            "tokens": Leaders.empty(d_sae, settings.tokens, float_, {}, device),
        }
        return cls(settings, sums, leaders)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name, for a checkpoint."""
        parts = {f"sums.{name}": tensor for name, tensor in self.sums.items()}
        for name in ("top", "sample", "tokens"):
            parts |= getattr(self, name).tensors(name)
        return parts

    @classmethod
    def load(
        cls, settings: FactSettings, tensors: Mapping[str, Tensor], device: torch.device
    ) -> Self:
        """Return what `tensors` described, on `device`."""
        there = {name: tensor.to(device) for name, tensor in tensors.items()}
        sums = {k.removeprefix("sums."): t for k, t in there.items() if k.startswith("sums.")}
        names = ("top", "sample", "tokens")
        return cls(settings, sums, {name: Leaders.load(name, there) for name in names})

    @property
    def rows(self) -> int:
        """How many rows of tokens were taken in."""
        return int(self.sums["rows"])

    def update(
        self, sae: SAE, batch: ResidBatch, limit: float | None, without: tuple[int, ...]
    ) -> None:
        """Take in some rows.

        Args:
            sae: whose features they are.
            batch: its `rows` are numbers in the whole text.
            limit: residual norm above which a token is a sink.
            without: ids of tokens that do not count.
        """
        usable = batch.usable(limit, without)
        self.sums["tokens"] += usable.sum()
        self.sums["read"] += batch.real.sum()
        self.sums["sinks"] += (batch.real & ~batch.usable(limit)).sum()
        self.sums["rows"] += len(batch.rows)
        numbers = torch.tensor(batch.rows, device=batch.tokens.device)
        for part in _chunks(batch, sae.d_sae):
            acts = sae.encode(batch.resid[part]).clamp_(min=0)
            acts[~usable[part]] = 0
            self._take(acts, batch.tokens[part], usable[part], numbers[part])

    def _take(self, acts: Tensor, tokens: Tensor, usable: Tensor, numbers: Tensor) -> None:
        row, pos, feature = acts.nonzero(as_tuple=True)
        value = acts[row, pos, feature]
        sums = self.sums
        one = torch.ones_like(feature)
        sums["count"].index_add_(0, feature, one)
        sums["total"].index_add_(0, feature, value.double())
        sums["max_act"].scatter_reduce_(0, feature, value, "amax")
        bins = ((value.log2() - FIRST_LOG2) / STEP_LOG2).floor().long().clamp(0, BINS - 1)
        sums["histogram"].view(-1).index_add_(0, feature * BINS + bins, one.int())
        with_ = _strongest(row * acts.shape[1] + pos, feature, value, acts, self.settings.strongest)
        active = with_ >= 0
        sums["strong"].index_add_(0, with_[active].long(), torch.ones_like(with_[active]).long())
        place = numbers[row] * _ROW + pos
        self.tokens.offer(feature, value, tokens[row, pos])

        def around(rows: Tensor, at: Tensor, features: Tensor) -> Tensor:
            steps = torch.arange(-self.settings.window, self.settings.window + 1, device=at.device)
            column = at[:, None] + steps
            inside = (column >= 0) & (column < acts.shape[1])
            column = column.clamp(0, acts.shape[1] - 1)
            return acts[rows[:, None], column, features[:, None]] * inside

        self.sample.offer(
            feature,
            _priority(place, feature, self.settings.seed),
            place,
            lambda index: {
                "window": around(row[index], pos[index], feature[index]),
                "value": value[index],
                "token": tokens[row[index], pos[index]],
                "with": with_[row[index], pos[index]],
            },
            distinct=True,
        )
        best, where = acts.max(dim=1)
        fires = best > 0
        rows, features = fires.nonzero(as_tuple=True)
        at = where[rows, features]
        self.top.offer(
            features,
            best[fires],
            numbers[rows] * _ROW + at,
            lambda index: {"window": around(rows[index], at[index], features[index])},
            distinct=True,
        )


def row_and_position(tag: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and the position that a tag of `Running.top` or `.sample` stands for."""
    return tag.div(_ROW, rounding_mode="floor"), tag % _ROW


def renumbered(batch: ResidBatch, first: int) -> ResidBatch:
    """Return the batch with `first` added to the numbers of its rows."""
    return dataclasses.replace(batch, rows=tuple(first + number for number in batch.rows))


def _chunks(batch: ResidBatch, d_sae: int) -> Iterator[slice]:
    most = _ELEMENTS.get(batch.resid.device.type, _ELEMENTS["cpu"])
    size = max(1, most // (batch.tokens.shape[1] * d_sae))
    for first in range(0, len(batch.rows), size):
        yield slice(first, first + size)


def _strongest(token: Tensor, feature: Tensor, value: Tensor, acts: Tensor, k: int) -> Tensor:
    """Return the `k` strongest features at each token, int32; -1 where fewer fire.

    Args:
        token: `(n,)` number of the token in `acts` that each firing is at, rising.
        feature: `(n,)`.
        value: `(n,)`.
        acts: `(batch, pos, d_sae)`, for its shape and device.
        k: how many; of equal ones the first.
    """
    # Few features fire at a token: sorting those is quicker than a top-k over all.
    order = falling(value).argsort(stable=True)
    order = order[token[order].argsort(stable=True)]
    token = token[order]
    rank = torch.arange(len(token), device=token.device) - torch.searchsorted(token, token)
    found = acts.new_full((acts.shape[0] * acts.shape[1], k), -1, dtype=torch.int32)
    inside = rank < k
    found[token[inside], rank[inside]] = feature[order][inside].int()
    return found.unflatten(0, acts.shape[:2])


def _priority(place: Tensor, feature: Tensor, seed: int) -> Tensor:
    """Return a number in `[0, 2**62)` for each firing, the same in every run and on every device.

    Source: the finaliser of splitmix64, on 64-bit integers that wrap.
    """
    x = place * 0x5851F42D4C957F2D + feature * 0x14057B7EF767814F + seed
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        # Shifts of signed integers copy the sign; the mask makes them logical.
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (x ^ ((x >> 31) & ((1 << 33) - 1))) & ((1 << 62) - 1)
