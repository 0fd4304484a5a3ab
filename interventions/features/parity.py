"""The two seed notebooks' contrast, token for token: for comparing with published rankings.

`faithfulness` (notebook 000) averages over the tokens of a prompt, BOS and template included, and
the means over the prompts. `reasoning` (notebook 001) pads batches of eight on the tokenizer's own
side, averages over *all* positions, padding included, and trims 5 % of the prompts at each end. Its
last token is the last position, which is padding where the tokenizer pads on the right. Neither
leaves out attention sinks. `contrast` is what to use for anything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from interventions.errors import FeatureError
from interventions.features.checkpoint import Checkpoint
from interventions.features.contrast import percent, trimmed_mean
from interventions.fingerprint import digest, weights_digest
from interventions.residuals import read_padded
from interventions.subject import Subject
from interventions.train.progress import Progress

Notebook = Literal["faithfulness", "reasoning"]
NOTEBOOKS: tuple[Notebook, ...] = ("faithfulness", "reasoning")
BATCH = 8
TRIM = 0.05
MIN_BASE, MIN_EXP = 0.01, 0.1
TOP = 10


@dataclass(frozen=True, eq=False)
class ParityValues:
    """What the features did in a set of prompts.

    Attributes:
        values: `(prompts, d_sae)` fp32, one value of every prompt and feature.
        largest: `(d_sae,)` fp32, largest activations at tokens that are no padding and no sink: the
            notebooks' values count sinks, and a strength must not be a multiple of those.
    """

    values: Tensor
    largest: Tensor


@dataclass(frozen=True, eq=False)
class ParityContrast:
    """Figures of every feature, `(d_sae,)` fp32, and the ranking.

    Attributes:
        base, exp: means over the prompts.
        increase: percent.
        share_base, share_exp: share of prompts whose value is over 0.
        ranked: features over both thresholds, best first.
        removed: what removed how many.
    """

    base: Tensor
    exp: Tensor
    increase: Tensor
    share_base: Tensor
    share_exp: Tensor
    ranked: list[int]
    removed: dict[str, int]


@torch.inference_mode()
def parity_values(
    subject: Subject,
    prompts: Sequence[str],
    notebook: Notebook,
    *,
    aggregate: Literal["mean", "last"] = "mean",
    batch: int = BATCH,
    pad_to: Literal["batch", "set"] = "batch",
    folder: Path | None = None,
) -> ParityValues:
    """Return a value of every prompt and feature, and the largest activations.

    Args:
        subject: model and SAE; its guard is not looked at but for the largest activations.
        prompts: as the model reads them; the tokenizer adds its own BOS.
        notebook: which of the two.
        aggregate: over the tokens of a prompt.
        batch: prompts that are padded together.
        pad_to: the longest prompt of the batch, or of all prompts (for `reasoning`, where
            padding counts).
        folder: keeps what was read, so that a run that was killed goes on.

    Raises:
        FeatureError: there is no prompt, an unknown notebook or aggregate, or the folder is of
            something else.
    """
    if notebook not in NOTEBOOKS or aggregate not in ("mean", "last"):
        raise FeatureError(
            f"no parity for '{notebook}' with aggregate '{aggregate}'; notebooks are"
            f" {', '.join(NOTEBOOKS)}, aggregates mean and last"
        )
    if not prompts:
        raise FeatureError("no prompt given; both sets need some")
    tokenizer: Any = subject.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    encoded = [tokenizer(prompt, verbose=False)["input_ids"] for prompt in prompts]
    longest = max(map(len, encoded))
    found = torch.zeros(len(prompts), subject.sae.d_sae)
    largest = torch.zeros(subject.sae.d_sae, device=subject.device)
    done, checkpoint = 0, None
    if folder is not None:
        key = pass_key(subject, prompts, notebook, aggregate=aggregate, batch=batch, pad_to=pad_to)
        checkpoint = Checkpoint(folder, key)
        if (saved := checkpoint.load()) is not None:
            found, done = saved["values"], int(saved["done"])
            largest = saved["largest"].to(subject.device)
    with Progress(f"parity with {notebook}", len(prompts), " prompts") as bar:
        bar.to(done)
        for first in range(done, len(prompts), batch):
            some = encoded[first : first + batch]
            width = longest if pad_to == "set" else max(map(len, some))
            tokens = torch.full((len(some), width), int(pad or 0))
            real = torch.zeros(len(some), width, dtype=torch.bool)
            for row, ids in enumerate(some):
                left = tokenizer.padding_side == "left"
                at = slice(width - len(ids), width) if left else slice(len(ids))
                tokens[row, at], real[row, at] = torch.tensor(ids), True
            tokens, real = tokens.to(subject.device), real.to(subject.device)
            resid = read_padded(subject.model, subject.hook_point, tokens, real)
            limit = float("inf") if subject.limit is None else subject.limit
            inside = real & (torch.linalg.vector_norm(resid.float(), dim=-1) <= limit)
            for row in range(len(some)):  # one at a time: the activations of a batch may be large
                acts = subject.sae.encode(resid[row])
                found[first + row] = _value(acts, real[row], notebook, aggregate).cpu()
                largest = torch.maximum(largest, (acts * inside[row, :, None]).amax(0))
            done = first + len(some)
            bar.to(done)
            if checkpoint is not None:
                state = {"values": found, "largest": largest, "done": torch.tensor([done])}
                checkpoint.save(state, force=done == len(prompts))
    return ParityValues(found, largest.cpu())


def pass_key(
    subject: Subject,
    prompts: Sequence[str],
    notebook: Notebook,
    *,
    aggregate: Literal["mean", "last"] = "mean",
    batch: int = BATCH,
    pad_to: Literal["batch", "set"] = "batch",
) -> str:
    """Return what the values of `parity_values` depend on, as a digest."""
    tokenizer: Any = subject.tokenizer
    ids = [tokenizer(prompt, verbose=False)["input_ids"] for prompt in prompts]
    padding = [tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.eos_token_id]
    about = [subject.describe(), weights_digest(subject.model), notebook, aggregate, batch, pad_to]
    return digest([about, padding, ids])


def _value(acts: Tensor, real: Tensor, notebook: Notebook, aggregate: str) -> Tensor:
    if notebook == "faithfulness":
        if aggregate == "mean":
            return (acts * real[:, None]).sum(0) / real.sum()
        # Right where the padding is on the right, as in the notebook.
        return acts[int(real.sum()) - 1]
    return acts.mean(0) if aggregate == "mean" else acts[-1]


def parity_contrast(base: Tensor, exp: Tensor, notebook: Notebook) -> ParityContrast:
    """Return the notebook's figures and ranking from the values of both sets.

    Args:
        base: `(prompts, d_sae)` of the baseline.
        exp: of the experiment.
        notebook: which of the two.
    """
    trim = TRIM if notebook == "reasoning" else 0.0
    m_base, m_exp = trimmed_mean(base, trim), trimmed_mean(exp, trim)
    increase = percent(m_base, m_exp)
    valid = (m_base > MIN_BASE) & (m_exp > MIN_EXP)
    features = valid.nonzero().squeeze(1)
    order = increase[features].sort(descending=True, stable=True).indices
    removed = {
        f"m_base <= {MIN_BASE:g}": int((m_base <= MIN_BASE).sum()),
        f"m_exp <= {MIN_EXP:g}": int(((m_base > MIN_BASE) & (m_exp <= MIN_EXP)).sum()),
    }
    return ParityContrast(
        m_base,
        m_exp,
        increase,
        (base > 0).float().mean(0),
        (exp > 0).float().mean(0),
        features[order].tolist(),
        removed,
    )


def parity_rows(result: ParityContrast, *, most: int = TOP) -> list[dict[str, Any]]:
    """Return the best features as rows; ten, as the notebooks do."""
    return [
        {
            "feature": feature,
            "score": float(result.increase[feature]),
            "list": "increase",
            "rank": rank,
            "base": float(result.base[feature]),
            "exp": float(result.exp[feature]),
            "increase": float(result.increase[feature]),
            "share_base": float(result.share_base[feature]),
            "share_exp": float(result.share_exp[feature]),
        }
        for rank, feature in enumerate(result.ranked[:most], 1)
    ]
