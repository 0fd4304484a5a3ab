"""Activations of features on texts, and the arms of the evaluation that are made of them."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from harness_ext.stats import wilson
from interventions.features.examples import Example
from interventions.residuals import read_residuals
from interventions.sae.activations import feature_acts
from interventions.subject import Subject

ACTIVE = 1e-6
MAX_LENGTH = 128


@dataclass(frozen=True)
class Read:
    """One text and one feature's activations on it.

    Attributes:
        ids: tokens that the model read.
        acts: the feature's activation at each; 0 at BOS and at sinks.
    """

    ids: tuple[int, ...]
    acts: tuple[float, ...]

    @property
    def largest(self) -> float:
        """The largest activation; 0 for an empty text."""
        return max(self.acts, default=0.0)

    @property
    def active(self) -> bool:
        """Whether the feature fires anywhere."""
        return self.largest > ACTIVE


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % Wilson interval; None where there is nothing to count."""

    active: int
    count: int

    @property
    def value(self) -> float | None:
        """The share."""
        return self.active / self.count if self.count else None

    def as_dict(self) -> dict[str, float | int | None]:
        """Return plain data."""
        low, high = wilson(self.active, self.count) or (None, None)
        return {
            "value": self.value, "low": low, "high": high, "active": self.active, "n": self.count
        }  # fmt: skip


def rate(read: Sequence[Read]) -> Rate:
    """Return the sensitivity: the share of texts on which the feature fires anywhere.

    Source: Hu et al. 2025, section 3; `aggregate_feature_stats` of nathanhu0/sae-sensitivity.
    """
    return Rate(sum(one.active for one in read), len(read))


def tokenize(subject: Subject, text: str, max_length: int = MAX_LENGTH) -> tuple[int, ...]:
    """Return the ids of a text, after BOS where the tokenizer has one."""
    ids = subject.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return (*front(subject), *ids)[:max_length]


def front(subject: Subject) -> tuple[int, ...]:
    """Return what stands before every text: BOS, or nothing."""
    bos = subject.tokenizer.bos_token_id
    return () if bos is None else (int(bos),)  # type: ignore[arg-type]


def pieces(subject: Subject, ids: Sequence[int]) -> list[str]:
    """Return the text of each token."""
    return [str(subject.tokenizer.decode([i], clean_up_tokenization_spaces=False)) for i in ids]


def activations(
    subject: Subject, pairs: Sequence[tuple[Sequence[int], int]], *, batch_tokens: int = 4096
) -> list[Read]:
    """Return one feature's activations on each of many texts.

    Args:
        subject: model and SAE.
        pairs: ids of a text, and the feature.
        batch_tokens: of a forward pass at most.
    """
    found: list[Read] = [Read(tuple(ids), (0.0,) * len(ids)) for ids, _ in pairs]
    some = [n for n, (ids, _) in enumerate(pairs) if len(ids)]
    rows = [torch.tensor(list(pairs[n][0]), dtype=torch.long) for n in some]
    without = front(subject)
    for batch in read_residuals(subject.model, subject.hook_point, rows, batch_tokens=batch_tokens):
        numbers = [some[row] for row in batch.rows]
        features = sorted({pairs[n][1] for n in numbers})
        acts, _ = feature_acts(batch.resid, subject.sae.directions(features))
        acts = acts * batch.usable(subject.limit, without).unsqueeze(-1)
        for slot, n in enumerate(numbers):
            ids, feature = pairs[n]
            mine = acts[slot, : len(ids), features.index(feature)]
            found[n] = Read(tuple(ids), tuple(mine.tolist()))
    return found


def others(features: Sequence[int], seed: int) -> dict[int, int]:
    """Return, for every feature, another one whose texts are its control; none for a single one."""
    order = list(features)
    random.Random(seed).shuffle(order)
    if len(order) < 2:
        return {}
    return dict(zip(order, order[1:] + order[:1], strict=True))


def typical_token(examples: Sequence[Example]) -> int | None:
    """Return the token at which a feature's examples most often have their largest activation."""
    peaks = Counter(one.ids[one.acts.index(one.largest)] for one in examples)
    return max(peaks, key=lambda token: (peaks[token], -token)) if peaks else None


def injected(
    subject: Subject,
    token: int,
    contexts: Sequence[Example],
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], int]:
    """Return contexts with `token` in their middle, the same without it, and where it stands."""
    lead = front(subject)
    with_it, plain = [], []
    place = len(lead) + (len(contexts[0].ids) // 2 if contexts else 0)
    for one in contexts:
        ids = [*lead, *one.ids]
        plain.append(tuple(ids))
        ids[place] = token
        with_it.append(tuple(ids))
    return with_it, plain, place


def rate_at(read: Sequence[Read], place: int) -> Rate:
    """Return the share of texts in which the feature fires at one position."""
    return Rate(sum(one.acts[place] > ACTIVE for one in read), len(read))


def by_feature(pairs: Sequence[tuple[Sequence[int], int]], read: Sequence[Read]) -> Mapping:
    """Return what was read, by feature, in order."""
    found: dict[int, list[Read]] = {}
    for (_, feature), one in zip(pairs, read, strict=True):
        found.setdefault(feature, []).append(one)
    return found
