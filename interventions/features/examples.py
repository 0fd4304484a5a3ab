"""Activating examples of features: the strongest windows, and others drawn by their strength.

Source: the example collection of SAEBench's autointerp evaluation (Karvonen et al. 2025), which
"Evaluating Sparse Autoencoder Feature Sensitivity" (Hu et al. 2025) builds on.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.errors import FeatureError
from interventions.features.firings import Density, Firings

BUFFER = 10
MARK_SHARE = 0.01
ALIVE = 15
_SPARE = 2


@dataclass(frozen=True)
class Example:
    """A window of text around a firing.

    Attributes:
        ids: tokens of the window.
        acts: the feature's activation at each.
        kind: `top`, or `weighted`: drawn by the square of its activation below the top ones.
    """

    ids: tuple[int, ...]
    acts: tuple[float, ...]
    kind: str

    @property
    def largest(self) -> float:
        """The largest activation in the window."""
        return max(self.acts)


def choose(found: Density, number: int | None, seed: int, *, alive: int = ALIVE) -> list[int]:
    """Return features drawn from those that fire more than `alive` times, in rising order.

    Args:
        found: of `density`.
        number: how many; None for all.
        seed: of the draw.
        alive: firings that a feature must exceed.

    Raises:
        FeatureError: no feature fires that often.
    """
    living = (found.counts > alive).nonzero()[:, 0].tolist()
    if not living:
        raise FeatureError(
            f"no feature fires more than {alive} times in {found.tokens} tokens; give more text"
        )
    if number is None or number >= len(living):
        return living
    return sorted(random.Random(seed).sample(living, number))


def draw(
    found: Firings,
    features: Sequence[int],
    *,
    top: int = 10,
    weighted: int = 5,
    buffer: int = BUFFER,
    seed: int = 42,
    lead: int = 0,
) -> dict[int, list[Example]]:
    """Return examples of each feature, largest activation first; empty where it never fires.

    Of the `top + 2` strongest firings that are more than `buffer` tokens apart `top` are drawn, and
    `weighted` of `weighted + 2` that are drawn by squared activation from the weaker ones; fewer
    where there are fewer.

    Args:
        found: of `firings`, for these features.
        features: indices.
        top: strongest windows.
        weighted: others.
        buffer: tokens before and after the firing.
        seed: of the draws; each feature has its own stream.
        lead: tokens at the beginning of every row, such as BOS, that no window holds.
    """
    return {
        feature: windows(
            where,
            value,
            found.read,
            top=top,
            weighted=weighted,
            buffer=buffer,
            seed=seed * 1_000_003 + feature,
            lead=lead,
        )
        for feature, (where, value) in zip(features, found.of(len(features)), strict=True)
    }


def windows(
    where: Tensor,
    value: Tensor,
    read: Sequence[Tensor],
    *,
    top: int,
    weighted: int,
    buffer: int,
    seed: int,
    lead: int = 0,
) -> list[Example]:
    """Return the examples of one feature from all its firings.

    Args:
        where: `(n, 2)` row and position of each firing.
        value: `(n,)` activations.
        read: ids of every row.
        top: strongest windows.
        weighted: others.
        buffer: tokens before and after the firing.
        seed: of the draws.
        lead: tokens at the beginning of every row, such as BOS, that no window holds.
    """
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor([len(ids) for ids in read])
    inside = (where[:, 1] >= buffer + lead) & (where[:, 1] < length[where[:, 0]] - buffer)
    places, acts = where[inside], value[inside]
    strongest = _apart(places, acts, top + _SPARE, buffer)
    if not strongest:
        return []
    floor = float(acts[strongest[-1]])
    weaker = (acts < floor).nonzero()[:, 0]
    drawn: list[int] = []
    if len(weaker) and weighted:
        number = min(weighted + _SPARE, len(weaker))
        picked = torch.multinomial(acts[weaker].double() ** 2, number, generator=generator)
        drawn = weaker[picked].tolist()
    kept = [(i, "top") for i in _some(strongest, top, generator)]
    kept += [(i, "weighted") for i in _some(drawn, weighted, generator)]
    chosen = [(int(places[i, 0]), int(places[i, 1]), kind) for i, kind in kept]
    # Dense features fire a million times, and only a dozen rows matter.
    near = torch.isin(where[:, 0], torch.tensor([row for row, _, _ in chosen]))
    by_place = {
        (row, place): act
        for (row, place), act in zip(where[near].tolist(), value[near].tolist(), strict=True)
    }
    found = []
    for row, place, kind in chosen:
        span = range(place - buffer, place + buffer + 1)
        ids = tuple(read[row][place - buffer : place + buffer + 1].tolist())
        found.append(Example(ids, tuple(by_place.get((row, p), 0.0) for p in span), kind))
    return sorted(found, key=lambda example: -example.largest)


def _apart(places: Tensor, acts: Tensor, number: int, buffer: int) -> list[int]:
    """Return indices of the strongest firings, none within `buffer` tokens of a stronger one."""
    taken: list[int] = []
    spots: list[tuple[int, int]] = []
    for i in acts.argsort(descending=True, stable=True).tolist():
        row, place = int(places[i, 0]), int(places[i, 1])
        if all(row != r or abs(place - p) > buffer for r, p in spots):
            taken.append(i)
            spots.append((row, place))
            if len(taken) == number:
                break
    return taken


def _some(items: Sequence[int], number: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(items), generator=generator)[:number].tolist()
    return [items[i] for i in order]
