"""Activating examples of features: the strongest windows, and others drawn by their strength.

Source: the example collection of SAEBench's autointerp evaluation (Karvonen et al. 2025), which
"Evaluating Sparse Autoencoder Feature Sensitivity" (Hu et al. 2025) builds on.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from interventions.errors import FeatureError
from interventions.features.checkpoint import Checkpoint
from interventions.fingerprint import digest, weights_digest
from interventions.residuals import read_residuals
from interventions.sae.activations import feature_acts
from interventions.subject import Subject
from interventions.text.config import TextConfig
from interventions.text.rows import Row, rows
from interventions.train.progress import Progress

BUFFER = 10
MARK_SHARE = 0.01
ALIVE = 15
_SPARE = 2
_ROWS_AT_ONCE = 128


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


@dataclass(frozen=True, eq=False)
class Density:
    """How often and how strongly every feature fires on a text.

    Attributes:
        counts: `(d_sae,)` tokens at which it fires.
        largest: `(d_sae,)` largest activations.
        tokens: tokens that count.
    """

    counts: Tensor
    largest: Tensor
    tokens: int


def density(subject: Subject, text: TextConfig, *, folder: Path | None = None) -> Density:
    """Return how often every feature fires, after one pass over the text.

    Args:
        subject: model and SAE.
        text: what to read.
        folder: keeps the sums, so that a pass that was killed goes on.

    Raises:
        TextError: the text cannot be read.
    """
    sae, device = subject.sae, subject.device
    sums = {
        "counts": torch.zeros(sae.d_sae, dtype=torch.int64, device=device),
        "largest": torch.zeros(sae.d_sae, device=device),
        "tokens": torch.zeros(1, dtype=torch.int64, device=device),
        "rows": torch.zeros(1, dtype=torch.int64, device=device),
        "read": torch.zeros(1, dtype=torch.int64, device=device),
    }
    checkpoint = None
    if folder is not None:
        checkpoint = Checkpoint(folder, _key(subject, text, ()))
        sums = {k: v.to(device) for k, v in (checkpoint.load() or sums).items()}
    step = max(64, (1 << 24) // sae.d_sae)
    left = islice(rows(text, subject.tokenizer), int(sums["rows"]), None)
    with Progress("density", text.tokens or 0, "tok") as bar:
        bar.to(int(sums["read"]))
        while some := list(islice(left, _ROWS_AT_ONCE)):
            for batch in read_residuals(subject.model, subject.hook_point, _ids(some)):
                resid = batch.resid[batch.usable(subject.limit, subject.special_ids)]
                for part in resid.split(step):
                    acts = sae.encode(part)
                    sums["counts"] += acts.count_nonzero(0)
                    torch.maximum(sums["largest"], acts.amax(0), out=sums["largest"])
                sums["tokens"] += len(resid)
                sums["read"] += batch.real.sum()
                bar.to(int(sums["read"]))
            sums["rows"] += len(some)
            if checkpoint is not None:
                checkpoint.save(sums)
    if checkpoint is not None:
        checkpoint.save(sums, force=True)
    return Density(sums["counts"].cpu(), sums["largest"].cpu(), int(sums["tokens"]))


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


def collect(
    subject: Subject,
    text: TextConfig,
    features: Sequence[int],
    *,
    top: int = 10,
    weighted: int = 5,
    buffer: int = BUFFER,
    seed: int = 42,
) -> dict[int, list[Example]]:
    """Return examples of each feature, largest activation first; empty where it never fires.

    Of the `top + 2` strongest windows that do not overlap `top` are drawn, and `weighted` of
    `weighted + 2` windows that are drawn by squared activation from the weaker ones; fewer where
    there are fewer.

    Args:
        subject: model and SAE.
        text: what to read; memory grows with the firings of these features and the tokens' ids.
        features: indices.
        top: strongest windows.
        weighted: others.
        buffer: tokens before and after the firing.
        seed: of the draws; each feature has its own stream.

    Raises:
        SAEError: a feature is outside the SAE.
        TextError: the text cannot be read.
    """
    chosen = subject.sae.directions(features)
    parts: list[Tensor] = []
    values: list[Tensor] = []
    read: list[Tensor] = []
    with Progress("examples", text.tokens or 0, "tok") as bar:
        seen = 0
        stream = rows(text, subject.tokenizer)
        while some := list(islice(stream, _ROWS_AT_ONCE)):
            for batch in read_residuals(subject.model, subject.hook_point, _ids(some)):
                keep = batch.usable(subject.limit, subject.special_ids)
                acts, _ = feature_acts(batch.resid, chosen)
                acts = acts * keep.unsqueeze(-1)
                where = acts.nonzero()
                values.append(acts[tuple(where.T)].cpu())
                numbers = torch.tensor(batch.rows, device=where.device) + len(read)
                parts.append(
                    torch.cat([numbers[where[:, 0]].unsqueeze(1), where[:, 1:]], dim=1).cpu()
                )
                seen += int(batch.real.sum())
                bar.to(seen)
            read += [row.ids for row in some]
    where, value = torch.cat(parts), torch.cat(values)
    found: dict[int, list[Example]] = {}
    for slot, feature in enumerate(features):
        mine = where[:, 2] == slot
        found[feature] = windows(
            where[mine, :2],
            value[mine],
            read,
            top=top,
            weighted=weighted,
            buffer=buffer,
            seed=seed * 1_000_003 + feature,
            lead=int(text.bos and subject.tokenizer.bos_token_id is not None),
        )
    return found


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
    by_place = {(int(r), int(p)): float(a) for (r, p), a in zip(where, value, strict=True)}
    found = []
    for i, kind in kept:
        row, place = (int(x) for x in places[i])
        span = range(place - buffer, place + buffer + 1)
        ids = tuple(read[row][place - buffer : place + buffer + 1].tolist())
        found.append(Example(ids, tuple(by_place.get((row, p), 0.0) for p in span), kind))
    return sorted(found, key=lambda example: -example.largest)


def _apart(places: Tensor, acts: Tensor, number: int, buffer: int) -> list[int]:
    """Return indices of the strongest firings whose windows have no token in common's middle."""
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


def _ids(some: Sequence[Row]) -> Iterator[Tensor]:
    return (row.ids for row in some)


def _key(subject: Subject, text: TextConfig, features: Sequence[int]) -> str:
    return digest(
        {
            "subject": subject.describe(),
            "weights": weights_digest(subject.model),
            "text": text.model_dump(mode="json"),
            "features": list(features),
        }
    )
