"""Contexts of every feature: which firings are shown, and the text around them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from interventions.features.facts_write import ragged
from interventions.features.running import Running, row_and_position
from interventions.text.rows import Row

TOP = "top"


def choose(running: Running) -> dict[str, Tensor]:
    """Return the firings that are shown, sorted by feature, then top ones, then by quantile.

    The sample is uniform over a feature's firings, so its quantiles are those of the firings. A
    row of tokens that gives a top context gives no other one.

    Returns:
        `feature`, `rank` (within the feature), `group` (0 for top, else the quantile, 1 the
        weakest), `row`, `position`, `value`, each `(n,)`, and `window (n, 2 · window + 1)`.
    """
    top, sample, settings = running.top, running.sample, running.settings
    held = sample.held
    strength = sample.payload["value"].masked_fill(~held, float("inf"))
    rank = strength.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    size = held.sum(1, keepdim=True).clamp(min=1)
    group = (rank * settings.quantiles).div(size, rounding_mode="floor") + 1
    shown_row, row = row_and_position(top.tag)[0], row_and_position(sample.tag)[0]
    shown_row = shown_row.masked_fill(~top.held, -1)
    free = held & ~(row[..., None] == shown_row[:, None]).any(-1)
    chosen = torch.zeros_like(free)
    for number in range(1, settings.quantiles + 1):
        here = free & (group == number)
        # The sample is ordered by its hash, so the first ones are a fair draw.
        chosen |= here & (here.cumsum(1) <= settings.per_quantile)
    parts = []
    for leaders, keep, groups, value in (
        (top, top.held, torch.zeros_like(top.tag), top.key),
        (sample, chosen, group, sample.payload["value"]),
    ):
        feature = torch.arange(len(keep), device=keep.device)[:, None].expand_as(keep)[keep]
        rows, position = row_and_position(leaders.tag[keep])
        parts.append(
            {
                "feature": feature,
                "group": groups[keep],
                "row": rows,
                "position": position,
                "value": value[keep],
                "window": leaders.payload["window"][keep],
            }
        )
    found = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    by_value = found["value"].argsort(descending=True, stable=True)
    by_group = by_value[found["group"][by_value].argsort(stable=True)]
    order = by_group[found["feature"][by_group].argsort(stable=True)]
    found = {name: tensor[order] for name, tensor in found.items()}
    begin = torch.searchsorted(found["feature"], found["feature"])
    found["rank"] = torch.arange(len(order)) - begin
    return found


def columns(shown: dict[str, Tensor], rows: Iterable[Row]) -> dict[str, Any]:
    """Return the columns of `contexts.parquet`.

    Windows end where the row or the document ends.

    Args:
        shown: of `choose`.
        rows: of the whole text, in order; only one is in memory at a time.
    """
    size = shown["window"].shape[1]
    half = size // 2
    ids = torch.zeros(len(shown["row"]), size, dtype=torch.int32)
    keep = torch.zeros(len(shown["row"]), size, dtype=torch.bool)
    document = torch.zeros(len(shown["row"]), dtype=torch.long)
    order = shown["row"].argsort(stable=True)
    wanted, counts = shown["row"][order].unique_consecutive(return_counts=True)
    groups = dict(zip(wanted.tolist(), order.split(counts.tolist()), strict=True))
    for number, row in enumerate(rows):
        here = groups.pop(number, None)
        if here is None:
            continue
        column = shown["position"][here, None] + torch.arange(-half, half + 1)
        inside = (column >= 0) & (column < len(row.ids))
        column = column.clamp(0, len(row.ids) - 1)
        owner = row.document[column]
        document[here] = owner[:, half]
        ids[here] = row.ids[column].int()
        keep[here] = inside & (owner == owner[:, half : half + 1])
        if not groups:
            break
    names = [TOP, *(f"quantile-{k}" for k in range(1, 1 + max(shown["group"].tolist(), default=0)))]
    return {
        "feature": shown["feature"].int().numpy(),
        "rank": shown["rank"].short().numpy(),
        "kind": [names[group] for group in shown["group"].tolist()],
        "value": shown["value"].numpy(),
        "row": shown["row"].numpy(),
        "position": shown["position"].int().numpy(),
        "document": document.numpy(),
        "center": keep[:, :half].sum(1).short().numpy(),
        "ids": ragged(ids[keep], keep.sum(1)),
        "acts": ragged(shown["window"][keep], keep.sum(1)),
    }
