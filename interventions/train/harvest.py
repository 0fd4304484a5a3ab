"""Activations of the corpus at the hook point, in chunk files that a killed run resumes from."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interventions.errors import TrainingError
from interventions.hook_points import HookPoint
from interventions.residuals import read_residuals
from interventions.train.config import HarvestConfig
from interventions.train.files import StepFolder, read_tensors, write_tensors
from interventions.train.generated_text import read_documents
from interventions.train.progress import Progress
from interventions.train.world import ALONE, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS = ("train", "calibrate", "held")
_MIN_ROW = 8


def corpus_files(folders: Sequence[Path]) -> list[Path]:
    """Return the document files of the corpus, in order."""
    return [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]


def split_rows(files: Sequence[Path], config: HarvestConfig) -> dict[str, list[Tensor]]:
    """Return token rows of at most `context` tokens, for each of `PARTS`.

    Whole documents are held out, so that no held-out row continues one that was trained on: one
    in `holdout_every` to measure on, another one to set the threshold on. Held-out rows are
    shuffled, so that any number of them is a sample of all kinds of text.
    """
    parts: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    slots = {0: "held", config.holdout_every // 2: "calibrate"}
    index = 0
    for path in files:
        for document in read_documents(path):
            rows = [row for row in document.split(config.context) if len(row) >= _MIN_ROW]
            parts[slots.get(index % config.holdout_every, "train")].extend(rows)
            index += 1
    for part in slots.values():
        random.Random(0).shuffle(parts[part])
    return parts


def residuals(
    model: "PreTrainedModel", hook_point: HookPoint, rows: Sequence[Tensor], batch_tokens: int
) -> Tensor:
    """Return the residual stream at every token of `rows`, in their order, `(tokens, d_model)`.

    In the model's own dtype, on the CPU.

    Raises:
        HookPointError: the layer is outside the model, or the forward pass never came to it.
    """
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in read_residuals(model, hook_point, rows, batch_tokens=batch_tokens):
        for slot, row in enumerate(batch.rows):
            found[row] = batch.resid[slot, : len(rows[row])].to("cpu", copy=True)
    return torch.cat(found)


def harvest(
    folder: StepFolder,
    config: HarvestConfig,
    hook_point: HookPoint,
    parts: Mapping[str, Sequence[Tensor]],
    model: "PreTrainedModel",
    world: World = ALONE,
) -> dict[str, Any]:
    """Return counts and the median norm after writing the activations of all rows.

    Files `{part}_*.safetensors` hold `acts (tokens, d_model)` bf16, the
    residual's `norms (tokens,)` fp32, `tokens (tokens,)` int32 and `lengths (rows,)` int32.
    Sinks are stored too: what counts as one is known only when the median is. With several
    processes each writes its share of the files, into one folder that all of them see.

    Args:
        folder: of this step.
        config: sizes.
        hook_point: where the residual is read.
        parts: token rows by part; the median is that of the first part.
        model: in evaluation mode.
        world: this process.

    Raises:
        TrainingError: no row is long enough, or a file of a run that was stopped holds other text.
        FeatureError: an activation is not finite.
    """
    if not all(parts.values()):
        counts = ", ".join(f"{part} {len(rows)}" for part, rows in parts.items())
        raise TrainingError(
            f"too little text: rows of at least {_MIN_ROW} tokens: {counts}; raise"
            f" generate.tokens or docs.tokens, or give more `text`"
        )
    chunks = [
        (part, folder.path / f"{part}_{chunk:05d}.safetensors", rows[first:][: config.chunk_rows])
        for part, rows in parts.items()
        for chunk, first in enumerate(range(0, len(rows), config.chunk_rows))
    ]
    mine = chunks[world.rank :: world.size]
    done = 0
    with Progress("harvest", sum(len(row) for _, _, some in mine for row in some), "tok") as bar:
        for _, path, some in mine:
            if not path.is_file():
                _write_chunk(path, some, residuals(model, hook_point, some, config.batch_tokens))
            elif not torch.equal(read_tensors(path)["tokens"].long(), torch.cat(list(some))):
                raise TrainingError(
                    f"{path} holds other text than the config gives now; remove the folder or name"
                    f" another --out"
                )
            done += sum(len(row) for row in some)
            bar.to(done)
    world.barrier()
    norms: dict[str, list[Tensor]] = {part: [] for part in parts}
    for part, path, _ in chunks:
        norms[part].append(read_tensors(path)["norms"])
    joined = {part: torch.cat(some) for part, some in norms.items()}
    median = float(next(iter(joined.values())).median())
    report: dict[str, Any] = {"median_norm": median, "guard": config.guard}
    for part, some in joined.items():
        report[f"{part}_rows"] = len(parts[part])
        report[f"{part}_tokens"] = len(some)
        sinks = 0 if config.guard is None else int((some > config.guard * median).sum())
        report[f"{part}_sinks"] = sinks
    return report


def _write_chunk(path: Path, rows: Sequence[Tensor], resid: Tensor) -> None:
    norms = resid.float().norm(dim=-1)
    write_tensors(
        path,
        {
            "acts": resid.to(torch.bfloat16),
            "norms": norms,
            "tokens": torch.cat(list(rows)).int(),
            "lengths": torch.tensor([len(row) for row in rows], dtype=torch.int32),
        },
    )


def read_activations(
    folder: Path, part: str, limit: float | None, without: Sequence[int] = ()
) -> Tensor:
    """Return the stored activations of one part, `(tokens, d_model)` bf16.

    Args:
        folder: of the harvest step.
        part: one of `PARTS`.
        limit: tokens whose residual norm is above it are left out; None keeps all.
        without: token ids that are left out.
    """
    kept = []
    for path in sorted(folder.glob(f"{part}_*.safetensors")):
        stored = read_tensors(path)
        acts = stored["acts"]
        use = torch.ones(len(acts), dtype=torch.bool)
        if limit is not None:
            use &= stored["norms"] <= limit
        if without:
            use &= ~torch.isin(stored["tokens"].long(), torch.tensor(list(without)))
        kept.append(acts[use] if not use.all() else acts)
    return torch.cat(kept)


def read_rows(folder: Path, part: str) -> list[Tensor]:
    """Return the token rows of one part, each `(tokens,)` int64."""
    rows: list[Tensor] = []
    for path in sorted(folder.glob(f"{part}_*.safetensors")):
        stored = read_tensors(path)
        rows.extend(stored["tokens"].long().split(stored["lengths"].tolist()))
    return rows
