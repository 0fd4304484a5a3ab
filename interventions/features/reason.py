"""ReasonScore of every feature of an SAE in one pass over text.

`s_f = mu+_f / sum mu+ * H_f^alpha - mu-_f / sum mu-`: how much of all activation near words of
reasoning is this feature's, times how evenly it is spread over the words, less its share of the
activation elsewhere. Everything is a quotient of sums over tokens, so that one product of group
weights and activations a batch is all there is to do; the published script runs the model once for
every 48 features.

Source: Galichin et al. 2025, "I Have Covered All the Bases Here", section 3.2, and its
`compute_score.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.errors import FeatureError
from interventions.features.checkpoint import Checkpoint
from interventions.features.words import WordGroups, around_words
from interventions.fingerprint import digest, weights_digest
from interventions.residuals import ResidBatch, read_residuals
from interventions.subject import Subject
from interventions.text.config import TextConfig
from interventions.text.rows import Row, rows
from interventions.train.progress import Progress

WINDOW = (1, 2)
_ROWS_AT_ONCE = 128
_SIGNED = frozenset({"abstopk", "matching_pursuit"})


@dataclass(frozen=True)
class ReasonSettings:
    """What counts as near a word of reasoning.

    Attributes:
        window: tokens before and after each token of a word.
        ignore: token ids that are neither near a word nor elsewhere; windows pass over them.
        cross_documents: let words and windows go from one document into the next in a row, as
            the published script does.
        blocks: parts of the documents, for the jackknife's standard errors; 1 for none.
    """

    window: tuple[int, int] = WINDOW
    ignore: tuple[int, ...] = ()
    cross_documents: bool = False
    blocks: int = 20

    def __post_init__(self) -> None:
        if min(self.window) < 0:
            raise FeatureError(f"window {self.window} is negative; give tokens before and after")
        if self.blocks < 1:
            raise FeatureError(f"{self.blocks} blocks; give 1 for no standard errors, or more")


@dataclass(frozen=True, eq=False)
class ReasonSums:
    """Sums over tokens, from which every score follows.

    With `n` groups, row `g < n` of the two first is over the tokens near words of group `g`, row
    `n` over those near any word, row `n + 1` over the rest.

    Attributes:
        sums: `(blocks, n + 2, d_sae)` fp64 activations, in SAE units.
        counts: `(blocks, n + 2)` tokens.
        hits: `(n,)` tokens that are words of each group, whether they count or not.
        largest: `(d_sae,)` largest activations on tokens that count.
        active: `(d_sae,)` how many of these tokens each feature fires at.
        skipped: tokens that do not count: sinks and ignored ones.
        rows: rows that were read.
        tokens: tokens that were read.
    """

    sums: Float[Tensor, "blocks kinds d_sae"]
    counts: Tensor
    hits: Tensor
    largest: Tensor
    active: Tensor
    skipped: Tensor
    rows: Tensor
    tokens: Tensor

    @classmethod
    def zero(cls, groups: int, d_sae: int, blocks: int, device: torch.device | str) -> "ReasonSums":
        """Return the sums over no token."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        return cls(
            sums=zeros(blocks, groups + 2, d_sae, dtype=torch.float64),
            counts=zeros(blocks, groups + 2),
            hits=zeros(groups),
            largest=zeros(d_sae, dtype=torch.float32),
            active=zeros(d_sae),
            skipped=zeros(1),
            rows=zeros(1),
            tokens=zeros(1),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields by name."""
        return dict(vars(self))


def add_tokens(
    into: ReasonSums,
    subject: Subject,
    batch: ResidBatch,
    document: Tensor,
    groups: WordGroups,
    settings: ReasonSettings,
    *,
    chunk_elements: int | None = None,
) -> None:
    """Add a batch to the sums, in place.

    Args:
        into: sums on the model's device.
        subject: model and SAE.
        batch: rows and their residual stream.
        document: `(batch, pos)` int64 number of each token's document.
        groups: the words.
        settings: what counts.
        chunk_elements: activations held at once; by default 64 MiB of them on a CPU, 1 GiB on a
            GPU.
    """
    real = batch.real
    # Padding is a segment of its own, and no word: id 0 may be one.
    segment = (
        torch.zeros_like(document) if settings.cross_documents else document.clone()
    ).masked_fill_(~real, -2)
    near, hits = around_words(groups, batch.tokens.masked_fill(~real, -1), segment, settings.window)
    keep = batch.usable(subject.limit, settings.ignore)
    anywhere = near.any(0)
    kinds = torch.cat([near, anywhere[None], ~anywhere[None]])[:, keep]
    block = document[keep].clamp(min=0) % settings.blocks
    # Blocks side by side: each is one product of contiguous memory.
    order = block.argsort(stable=True)
    resid, kinds, block = batch.resid[keep][order], kinds[:, order], block[order]
    sizes = torch.bincount(block, minlength=settings.blocks).tolist()
    if chunk_elements is None:
        chunk_elements = (1 << 24) if resid.device.type == "cpu" else (1 << 28)
    step = max(64, chunk_elements // subject.sae.d_sae)
    begin = 0
    for number, size in enumerate(sizes):
        for part in range(begin, begin + size, step):
            chosen = slice(part, min(part + step, begin + size))
            acts = subject.sae.encode(resid[chosen])
            into.sums[number] += (kinds[:, chosen].to(acts.dtype) @ acts).double()
            torch.maximum(into.largest, acts.amax(0), out=into.largest)
            into.active.add_(acts.count_nonzero(0))
        into.counts[number] += kinds[:, begin : begin + size].sum(1)
        begin += size
    into.hits.add_(hits)
    into.skipped.add_(real.sum() - keep.sum())
    into.tokens.add_(real.sum())


def collect(
    subject: Subject,
    text: TextConfig,
    groups: WordGroups,
    settings: ReasonSettings,
    *,
    folder: Path | None = None,
    every: float = 60.0,
    batch_tokens: int = 4096,
    chunk_elements: int | None = None,
) -> ReasonSums:
    """Return the sums over a text, after one pass of the model; memory does not grow with it.

    Args:
        subject: model and SAE.
        text: what to read.
        groups: the words.
        settings: what counts.
        folder: keeps the sums there every `every` seconds; a pass that was killed goes on, and
            ends with the same bits.
        every: seconds.
        batch_tokens: of a forward pass at most.
        chunk_elements: activations held at once.

    Raises:
        FeatureError: the SAE's activations have signs, or the folder is of another pass.
        TextError: the text cannot be read.
    """
    sae = subject.sae
    if sae.architecture in _SIGNED:
        raise FeatureError(
            f"{sae.source} is a {sae.architecture} SAE, whose activations may be negative;"
            f" ReasonScore compares shares of activation and needs them positive"
        )
    sums = ReasonSums.zero(len(groups.names), sae.d_sae, settings.blocks, subject.device)
    checkpoint = None
    if folder is not None:
        key = pass_key(subject, text, groups, settings, batch_tokens, chunk_elements)
        checkpoint = Checkpoint(folder, key, every=every)
        if (found := checkpoint.load()) is not None:
            sums = ReasonSums(**{name: t.to(subject.device) for name, t in found.items()})
    done = int(sums.rows)
    left = islice(rows(text, subject.tokenizer), done, None)
    with Progress("score", text.tokens or 0, "tok") as bar:
        bar.to(int(sums.tokens))
        for some in _groups_of(left, _ROWS_AT_ONCE):
            for batch in read_residuals(
                subject.model,
                subject.hook_point,
                [row.ids for row in some],
                batch_tokens=batch_tokens,
            ):
                document = _documents(batch, some)
                add_tokens(
                    sums, subject, batch, document, groups, settings, chunk_elements=chunk_elements
                )
                bar.to(int(sums.tokens))
            sums.rows.add_(len(some))
            if checkpoint is not None:
                checkpoint.save(sums.tensors())
    if checkpoint is not None:
        checkpoint.save(sums.tensors(), force=True)
    return sums


def pass_key(
    subject: Subject,
    text: TextConfig,
    groups: WordGroups,
    settings: ReasonSettings,
    batch_tokens: int,
    chunk_elements: int | None,
) -> str:
    """Return what the sums of a pass depend on, as a digest."""
    return digest(
        {
            "subject": subject.describe(),
            "weights": weights_digest(subject.model),
            "text": text.model_dump(mode="json"),
            "groups": {name: [list(ids) for ids in found] for name, found in groups.ids.items()},
            "settings": asdict(settings),
            # Another order of additions gives other last bits.
            "order": [batch_tokens, chunk_elements],
        }
    )


def _documents(batch: ResidBatch, some: list[Row]) -> Tensor:
    found = torch.full(batch.tokens.shape, -2, dtype=torch.int64)
    for slot, number in enumerate(batch.rows):
        owner = some[number].document
        found[slot, : len(owner)] = owner
    return found.to(batch.tokens.device)


def _groups_of(items: Iterable[Row], size: int) -> Iterator[list[Row]]:
    walk = iter(items)
    while some := list(islice(walk, size)):
        yield some
