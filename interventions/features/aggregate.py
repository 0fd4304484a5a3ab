"""What every feature does in each of many passages, in one pass of the model.

Kept are, of each passage and each feature that fires in it, the mean over the tokens that count,
the activation at the last of them, the largest, and the share of tokens at which it fires. That is
sparse: memory grows with the passages and the features that fire in them, never with tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from interventions.errors import FeatureError
from interventions.features.checkpoint import Checkpoint
from interventions.features.passages import Passage
from interventions.fingerprint import digest, weights_digest
from interventions.residuals import read_residuals
from interventions.subject import Subject
from interventions.train.progress import Progress

Aggregate = Literal["mean", "last", "max", "active"]
AGGREGATES: tuple[Aggregate, ...] = ("mean", "last", "max", "active")
_AT_ONCE = 64
_ENCODED_VALUES = 1 << 27
"""Activations of one call of the encoder at most: half a gigabyte."""


@dataclass(frozen=True, eq=False)
class Summaries:
    """What the features did in `n` passages.

    Attributes:
        starts: `(n + 1,)` int64; the entries of passage `i` are `starts[i]` to `starts[i + 1]`.
        features: `(entries,)` int32, those that fired.
        values: `(entries, 4)` fp32 in SAE units, in the order of `AGGREGATES`.
        tokens: `(n,)` int64, tokens that counted.
        left_out: `(n,)` int64, tokens that would have counted and are sinks or special.
        d_sae: features of the SAE.
    """

    starts: Tensor
    features: Tensor
    values: Tensor
    tokens: Tensor
    left_out: Tensor
    d_sae: int

    def __len__(self) -> int:
        return len(self.tokens)

    def dense(self, aggregate: Aggregate, first: int = 0, last: int | None = None) -> Tensor:
        """Return an aggregate of the features from `first` to before `last`, `(n, k)` fp32."""
        last = self.d_sae if last is None else last
        found = torch.zeros(len(self), last - first)
        inside = (self.features >= first) & (self.features < last)
        rows = torch.repeat_interleave(torch.arange(len(self)), self.starts.diff())
        column = AGGREGATES.index(aggregate)
        at = self.features[inside].long() - first
        found[rows[inside], at] = self.values[inside, column]
        return found

    def pick(self, features: Sequence[int]) -> dict[Aggregate, Tensor]:
        """Return every aggregate of some features, each `(n, len(features))` fp32."""
        wanted = torch.tensor(list(features), dtype=torch.long)
        place = torch.full((self.d_sae,), -1, dtype=torch.long)
        place[wanted] = torch.arange(len(wanted))
        at = place[self.features.long()]
        inside = at >= 0
        rows = torch.repeat_interleave(torch.arange(len(self)), self.starts.diff())[inside]
        found = torch.zeros(len(AGGREGATES), len(self), len(wanted))
        found[:, rows, at[inside]] = self.values[inside].T
        return dict(zip(AGGREGATES, found, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors, for a file."""
        names = ("starts", "features", "values", "tokens", "left_out")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def none(cls, d_sae: int) -> Self:
        """Return the summaries of no passage."""
        counts = torch.zeros(0, dtype=torch.long)
        entries = torch.zeros(0, dtype=torch.int32)
        values = torch.zeros(0, len(AGGREGATES))
        return cls(torch.zeros(1, dtype=torch.long), entries, values, counts, counts, d_sae)

    def joined(self, more: Sequence["Summary"]) -> "Summaries":
        """Return these and the summaries of more passages, in their order."""
        sizes = torch.tensor([len(one.features) for one in more], dtype=torch.long)
        return Summaries(
            torch.cat([self.starts, self.starts[-1] + sizes.cumsum(0)]),
            torch.cat([self.features, *(one.features for one in more)]),
            torch.cat([self.values, *(one.values for one in more)]),
            torch.cat([self.tokens, torch.tensor([one.tokens for one in more])]),
            torch.cat([self.left_out, torch.tensor([one.left_out for one in more])]),
            self.d_sae,
        )


@dataclass(frozen=True, eq=False)
class Summary:
    """What the features did in one passage; see `Summaries`."""

    features: Tensor
    values: Tensor
    tokens: int
    left_out: int


def summarise(chunks: Iterable[Tensor], left_out: int = 0) -> Summary:
    """Return the summary of a passage.

    Args:
        chunks: each `(tokens, d_sae)`, activations at the tokens that count, in their order, in
            SAE units; one tensor or several, so that a long passage need not be held whole.
        left_out: tokens that would have counted.
    """
    total = largest = fires = last = None
    tokens = 0
    for acts in chunks:
        if not len(acts):
            continue
        tokens += len(acts)
        sums = acts.sum(0, dtype=torch.float64)
        most, active = acts.amax(0), (acts != 0).sum(0)
        total = sums if total is None else total + sums
        largest = most if largest is None else torch.maximum(largest, most)
        fires = active if fires is None else fires + active
        last = acts[-1]
    if total is None or largest is None or fires is None or last is None:
        empty = torch.zeros(0, dtype=torch.int32)
        return Summary(empty, torch.zeros(0, len(AGGREGATES)), 0, left_out)
    feature = fires.nonzero().squeeze(1)
    columns = (total / tokens, last, largest, fires / tokens)
    values = torch.stack([column[feature].float() for column in columns], 1)
    return Summary(feature.to("cpu", torch.int32), values.cpu(), tokens, left_out)


def collect(
    subject: Subject,
    passages: Sequence[Passage],
    *,
    special: bool = False,
    batch_tokens: int = 4096,
    folder: Path | None = None,
    label: str = "reading",
) -> Summaries:
    """Return the summaries of all passages, in their order.

    Sinks (residual norm over the subject's limit) never count. With a folder, a run that was
    killed goes on where it had been.

    Args:
        subject: model and SAE.
        passages: each with at least one token.
        special: count the tokenizer's special tokens, such as BOS, too.
        batch_tokens: of a batch of the model at most.
        folder: for the checkpoint; belongs to this subject and these passages alone.
        label: of the progress bar.

    Raises:
        FeatureError: a passage is empty, or the folder belongs to something else.
    """
    for number, passage in enumerate(passages):
        if not len(passage.ids):
            raise FeatureError(f"passage {number} ({passage.group}) has no token; leave it out")
    found = Summaries.none(subject.sae.d_sae)
    checkpoint = None
    if folder is not None:
        checkpoint = Checkpoint(folder, pass_key(subject, passages, special))
        if (saved := checkpoint.load()) is not None:
            found = Summaries(**saved, d_sae=subject.sae.d_sae)
    waiting: list[Summary] = []
    with Progress(label, len(passages), " passages") as bar:
        bar.to(len(found))
        for first in range(len(found), len(passages), _AT_ONCE):
            some = passages[first : first + _AT_ONCE]
            waiting += _read(subject, some, special, batch_tokens)
            bar.to(first + len(some))
            if checkpoint is not None and checkpoint.due:
                found, waiting = found.joined(waiting), []
                checkpoint.save(found.tensors())
    found = found.joined(waiting)
    if checkpoint is not None:  # what follows may take long, and may be refused
        checkpoint.save(found.tensors(), force=True)
    return found


def pass_key(subject: Subject, passages: Sequence[Passage], special: bool) -> str:
    """Return what names everything that the summaries depend on."""
    # The tokens themselves: their text, template and tokenizer need not be named then.
    rows = [(p.ids.tolist(), p.counted.tolist()) for p in passages]
    return digest([subject.describe(), weights_digest(subject.model), special, digest(rows)])


@torch.inference_mode()
def _read(
    subject: Subject, passages: Sequence[Passage], special: bool, batch_tokens: int
) -> list[Summary]:
    found: dict[int, Summary] = {}
    without = () if special else subject.special_ids
    rows = [passage.ids for passage in passages]
    for batch in read_residuals(subject.model, subject.hook_point, rows, batch_tokens=batch_tokens):
        usable = batch.usable(subject.limit, without)
        counted = torch.zeros_like(usable)
        for slot, number in enumerate(batch.rows):
            wanted = passages[number].counted
            counted[slot, : len(wanted)] = wanted.to(counted.device)
        keep = counted & usable
        sizes = keep.sum(1).tolist()
        missing = (counted & ~usable).sum(1).tolist()
        for slots in _together(sizes, subject.sae.d_sae):
            inside = torch.zeros_like(keep)
            inside[slots] = keep[slots]
            resid = batch.resid[inside]
            if len(slots) == 1:
                chunks = resid.split(max(1, _ENCODED_VALUES // subject.sae.d_sae))
                one = summarise((subject.sae.encode(c) for c in chunks), missing[slots[0]])
                found[batch.rows[slots[0]]] = one
                continue
            parts = subject.sae.encode(resid).split([sizes[slot] for slot in slots])
            for slot, part in zip(slots, parts, strict=True):
                found[batch.rows[slot]] = summarise([part], missing[slot])
    return [found[number] for number in range(len(passages))]


def _together(sizes: Sequence[int], d_sae: int) -> list[list[int]]:
    """Return the rows in groups whose activations fit into memory; a long row stands alone."""
    groups: list[list[int]] = []
    room = 0
    for slot, size in enumerate(sizes):
        if not groups or size * d_sae > room:
            groups.append([])
            room = _ENCODED_VALUES
        groups[-1].append(slot)
        room -= size * d_sae
    return groups
