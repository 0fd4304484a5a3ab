"""The columns of `features.parquet`, out of what a pass over text has gathered."""

from typing import Any

import torch
from torch import Tensor

from interventions.features.facts_write import lists, ragged
from interventions.features.lens import LensTokens
from interventions.features.running import BINS, FIRST_LOG2, STEP_LOG2, Running

_BLOCK = 2048
MIN_TOGETHER = 3
"""Sampled firings at which another feature must be there to be listed as co-firing."""


def statistics(running: Running) -> dict[str, Tensor]:
    """Return `max_act`, `mean_act`, `p999`, `density`, `count`, each `(d_sae,)`, on the CPU.

    `p999` is read from the histogram, interpolated within an eighth of an octave, so it is off by
    9 % at most; it is the largest activation where there are fewer than a thousand.
    """
    sums = {name: tensor.cpu() for name, tensor in running.sums.items()}
    count = sums["count"]
    tokens = max(int(sums["tokens"]), 1)
    return {
        "max_act": sums["max_act"],
        "mean_act": (sums["total"] / count.clamp(min=1)).float(),
        "p999": _quantile(sums["histogram"], count, sums["max_act"], 0.999),
        "density": (count.double() / tokens).float(),
        "count": count,
    }


def feature_columns(
    running: Running, stats: dict[str, Tensor], lens: LensTokens | None
) -> dict[str, Any]:
    """Return every column, `d_sae` long.

    Args:
        running: after the last row.
        stats: of `statistics`.
        lens: promoted and suppressed tokens, if they were asked for.
    """
    d_sae = len(stats["count"])
    # numpy arrays keep their dtypes in Arrow.
    columns: dict[str, Any] = {"feature": torch.arange(d_sae).int().numpy()}
    columns |= {name: tensor.numpy() for name, tensor in stats.items()}
    histogram = running.sums["histogram"].cpu()
    first, keep = _occupied(histogram)
    columns["histogram_first"] = first.int().numpy()
    columns["histogram"] = lists(histogram, keep)
    for name in ("promoted", "suppressed"):
        ids = torch.zeros(d_sae, 0).int() if lens is None else getattr(lens, f"{name}_ids").int()
        values = torch.zeros(d_sae, 0) if lens is None else getattr(lens, f"{name}_logits")
        whole = torch.ones_like(ids, dtype=torch.bool)
        columns[f"{name}_ids"] = lists(ids, whole)
        columns[f"{name}_values"] = lists(values, whole)
    held = running.tokens.held
    columns["top_tokens_ids"] = lists(running.tokens.tag.int(), held)
    columns["top_tokens_values"] = lists(running.tokens.key, held)
    return columns | _frequent(running) | _together(running)


def _quantile(histogram: Tensor, count: Tensor, largest: Tensor, share: float) -> Tensor:
    rank = share * (count.double() - 1).clamp(min=0)
    below = histogram.long().cumsum(1)
    place = torch.searchsorted(below, rank.floor().long()[:, None], right=True)
    place = place.clamp(max=BINS - 1)
    inside = histogram.gather(1, place)[:, 0].double()
    before = below.gather(1, place)[:, 0] - inside
    part = (rank - before + 0.5) / inside.clamp(min=1)
    value = 2.0 ** (FIRST_LOG2 + STEP_LOG2 * (place[:, 0] + part.clamp(0, 1)))
    found = torch.minimum(value.float(), largest)
    # Between the two largest of fewer than a thousand there is nothing to interpolate.
    return torch.where(count < 1000, largest, found)


def _occupied(histogram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first bin of each feature that holds anything, and which bins to keep."""
    some = histogram > 0
    first = some.int().argmax(1)
    last = BINS - 1 - some.flip(1).int().argmax(1)
    place = torch.arange(BINS)
    return first, (place >= first[:, None]) & (place <= last[:, None]) & some.any(1)[:, None]


def _frequent(running: Running) -> dict[str, Any]:
    """Return tokens of the sampled firings with their share and mean activation."""
    sample, most = running.sample, running.settings.tokens
    parts: list[tuple[Tensor, ...]] = []
    for first in range(0, len(sample.key), _BLOCK):
        block = slice(first, first + _BLOCK)
        held, token = sample.held[block], sample.payload["token"][block]
        same = (token[:, :, None] == token[:, None]) & held[:, None] & held[:, :, None]
        count = same.sum(2)
        total = (same * sample.payload["value"][block][:, None]).sum(2)
        earlier = torch.ones_like(same[0]).tril(-1)
        new = held & ~(same & earlier).any(2)
        order = (count * new).argsort(dim=1, descending=True, stable=True)[:, :most]
        count, total, new, token = (t.gather(1, order) for t in (count, total, new, token))
        size = held.sum(1, keepdim=True).clamp(min=1)
        parts.append((token, count / size, total / count.clamp(min=1), new))
    token, share, mean, keep = (torch.cat(part) for part in zip(*parts, strict=True))
    return {
        "frequent_ids": lists(token, keep),
        "frequent_share": lists(share.float(), keep),
        "frequent_mean": lists(mean, keep),
    }


def _together(running: Running) -> dict[str, Any]:
    """Return which other features are among the strongest where a feature fires."""
    sample, most = running.sample, running.settings.cofiring
    d_sae = len(sample.key)
    tokens = max(int(running.sums["tokens"]), 1)
    base = running.sums["strong"].double() / tokens
    found: list[tuple[Tensor, ...]] = []
    for first in range(0, d_sae, _BLOCK):
        block = slice(first, first + _BLOCK)
        held, others = sample.held[block], sample.payload["with"][block].long()
        me = torch.arange(first, first + len(held), device=held.device)[:, None, None]
        valid = held[..., None] & (others >= 0) & (others != me)
        keys, count = (me * d_sae + others)[valid].unique(return_counts=True)
        enough = count >= MIN_TOGETHER
        keys, count = keys[enough], count[enough]
        owner, other = keys.div(d_sae, rounding_mode="floor"), keys % d_sae
        share = count / held.sum(1)[owner - first]
        pmi = (share.double() / base[other]).log()
        order = pmi.argsort(descending=True, stable=True)
        order = order[owner[order].argsort(stable=True)]
        owner = owner[order]
        rank = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
        order = order[rank < most]
        found.append((keys[order].div(d_sae, rounding_mode="floor"), other[order], count[order],
                      share[order], pmi[order]))  # fmt: skip
    owner, other, count, share, pmi = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    lengths = torch.bincount(owner, minlength=d_sae)
    values = {
        "features": other.int(),
        "count": count.int(),
        "share": share.float(),
        "pmi": pmi.float(),
    }
    return {f"cofire_{name}": ragged(tensor, lengths) for name, tensor in values.items()}


def histogram_scale() -> dict[str, float]:
    """Return what `info.json` says about the bins: edge i is at 2 ** (first + i · step)."""
    return {"first_log2": FIRST_LOG2, "step_log2": STEP_LOG2, "bins": BINS}
