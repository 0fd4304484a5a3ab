"""Passes over text that say where features fire: how often all do, and every firing of some."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from interventions.features.checkpoint import Checkpoint
from interventions.fingerprint import digest, weights_digest
from interventions.residuals import read_residuals
from interventions.sae.activations import feature_acts
from interventions.subject import Subject
from interventions.text.config import TextConfig
from interventions.text.rows import Row, rows
from interventions.train.progress import Progress

_ROWS_AT_ONCE = 128
_SECONDS = 60.0


@dataclass(frozen=True, eq=False)
class Density:
    """How often and how strongly every feature fires on a text.

    Attributes:
        counts: `(d_sae,)` tokens at which it fires.
        largest: `(d_sae,)` largest activations.
        tokens: tokens that count.
        seconds: that reading took, killed runs up to their last checkpoint included.
    """

    counts: Tensor
    largest: Tensor
    tokens: int
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Firings:
    """Every firing of some features in a text.

    Attributes:
        where: `(n, 3)` int64 row, position, and place of the feature among those asked for.
        value: `(n,)` fp32 activations.
        read: ids of every row.
        seconds: that reading took, killed runs up to their last checkpoint included.
    """

    where: Tensor
    value: Tensor
    read: Sequence[Tensor]
    seconds: float = 0.0

    def of(self, number: int) -> list[tuple[Tensor, Tensor]]:
        """Return places, `(n, 2)`, and activations of each of `number` features."""
        order = self.where[:, 2].argsort(stable=True)
        sizes = torch.bincount(self.where[:, 2], minlength=number).tolist()
        where, value = self.where[order, :2], self.value[order]
        return list(zip(where.split(sizes), value.split(sizes), strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors, for a checkpoint."""
        return {
            "where": self.where,
            "value": self.value,
            "ids": torch.cat([*self.read, torch.zeros(0, dtype=torch.long)]),
            "lengths": torch.tensor([len(ids) for ids in self.read], dtype=torch.long),
            "seconds": torch.tensor([self.seconds], dtype=torch.float64),
        }

    @classmethod
    def load(cls, tensors: dict[str, Tensor]) -> "Firings":
        """Return what `tensors` gave."""
        read = tensors["ids"].split(tensors["lengths"].tolist())
        return cls(tensors["where"], tensors["value"], read, float(tensors["seconds"]))


def density(
    subject: Subject, text: TextConfig, *, folder: Path | None = None, every: float = _SECONDS
) -> Density:
    """Return how often every feature fires, after one pass over the text.

    Args:
        subject: model and SAE.
        text: what to read.
        folder: keeps the sums, so that a pass that was killed goes on.
        every: seconds between two checkpoints.

    Raises:
        TextError: the text cannot be read.
        FeatureError: the folder holds the sums of another pass.
    """
    sae, device = subject.sae, subject.device
    sums = {
        "counts": torch.zeros(sae.d_sae, dtype=torch.int64, device=device),
        "largest": torch.zeros(sae.d_sae, device=device),
        "tokens": torch.zeros(1, dtype=torch.int64, device=device),
        "rows": torch.zeros(1, dtype=torch.int64, device=device),
        "read": torch.zeros(1, dtype=torch.int64, device=device),
    }
    checkpoint, before = None, 0.0
    if folder is not None:
        checkpoint = Checkpoint(folder, pass_key(subject, text), every=every)
        if (saved := checkpoint.load()) is not None:
            before = float(saved.pop("seconds"))
            sums = {name: tensor.to(device) for name, tensor in saved.items()}
    begin = time.monotonic() - before

    def state() -> dict[str, Tensor]:
        spent = torch.tensor([time.monotonic() - begin], dtype=torch.float64)
        return {**sums, "seconds": spent}

    step = max(64, (1 << 24) // sae.d_sae)
    left = islice(rows(text, subject.tokenizer), int(sums["rows"]), None)
    complete = True
    with Progress("density", text.tokens or 0, "tok") as bar:
        bar.to(int(sums["read"]))
        while some := list(islice(left, _ROWS_AT_ONCE)):
            complete = False
            for batch in read_residuals(subject.model, subject.hook_point, _ids(some)):
                resid = batch.resid[batch.usable(subject.limit, subject.special_ids)]
                # Of a batch of sinks alone nothing is left, and nothing has no maximum.
                for part in resid.split(step) if len(resid) else ():
                    acts = sae.encode(part)
                    sums["counts"] += acts.count_nonzero(0)
                    torch.maximum(sums["largest"], acts.amax(0), out=sums["largest"])
                sums["tokens"] += len(resid)
                sums["read"] += batch.real.sum()
                bar.to(int(sums["read"]))
            sums["rows"] += len(some)
            if checkpoint is not None and checkpoint.due:
                checkpoint.save(state())
    # A pass that was complete already has taken what it took then.
    if not complete:
        sums = state()
        before = float(sums["seconds"])
        if checkpoint is not None:
            checkpoint.save(sums, force=True)
    return Density(sums["counts"].cpu(), sums["largest"].cpu(), int(sums["tokens"]), before)


def firings(
    subject: Subject,
    text: TextConfig,
    features: Sequence[int],
    *,
    folder: Path | None = None,
    every: float = _SECONDS,
) -> Firings:
    """Return every firing of some features, after one pass over the text.

    Memory grows with the firings of these features and the tokens' ids, and so does a checkpoint.

    Args:
        subject: model and SAE.
        text: what to read.
        features: indices.
        folder: keeps what was found, so that a pass that was killed goes on.
        every: seconds between two checkpoints.

    Raises:
        SAEError: a feature is outside the SAE.
        TextError: the text cannot be read.
        FeatureError: the folder holds another pass.
    """
    chosen = subject.sae.directions(features)
    found = Firings(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0), ())
    checkpoint = None
    if folder is not None:
        checkpoint = Checkpoint(folder, pass_key(subject, text, features), every=every)
        if (saved := checkpoint.load()) is not None:
            found = Firings.load(saved)
    begin = time.monotonic() - found.seconds
    parts, values, read = [found.where], [found.value], list(found.read)
    seen = sum(map(len, read))

    def so_far() -> Firings:
        parts[:], values[:] = [torch.cat(parts)], [torch.cat(values)]
        return Firings(parts[0], values[0], read, time.monotonic() - begin)

    with Progress("examples", text.tokens or 0, "tok") as bar:
        bar.to(seen)
        stream = islice(rows(text, subject.tokenizer), len(read), None)
        while some := list(islice(stream, _ROWS_AT_ONCE)):
            for batch in read_residuals(subject.model, subject.hook_point, _ids(some)):
                keep = batch.usable(subject.limit, subject.special_ids)
                acts, _ = feature_acts(batch.resid, chosen)
                acts = acts * keep.unsqueeze(-1)
                at = acts.nonzero()
                values.append(acts[tuple(at.T)].cpu())
                numbers = torch.tensor(batch.rows, device=at.device) + len(read)
                parts.append(torch.cat([numbers[at[:, 0]].unsqueeze(1), at[:, 1:]], dim=1).cpu())
                seen += int(batch.real.sum())
                bar.to(seen)
            read += [row.ids for row in some]
            if checkpoint is not None and checkpoint.due:
                checkpoint.save(so_far().tensors())
    found = so_far()
    if checkpoint is not None:
        checkpoint.save(found.tensors(), force=True)
    return found


def pass_key(subject: Subject, text: TextConfig, features: Sequence[int] = ()) -> str:
    """Return what a pass depends on, as a digest; without features it is that of `density`."""
    return digest(
        {
            "subject": subject.describe(),
            "weights": weights_digest(subject.model),
            "text": text.model_dump(mode="json"),
            "features": list(features),
        }
    )


def _ids(some: Sequence[Row]) -> Iterator[Tensor]:
    return (row.ids for row in some)
