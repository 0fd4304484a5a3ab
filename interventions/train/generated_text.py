"""The first part of the corpus: the model's own answers, one file a batch, resumable."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interventions.train.config import GenerateConfig
from interventions.train.files import StepFolder, read_tensors, write_tensors
from interventions.train.generate import Sampling, chat_tokens, sample_answers
from interventions.train.progress import Progress
from interventions.train.prompts import iter_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_generated(
    folder: StepFolder,
    config: GenerateConfig,
    seed: int,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, Any]:
    """Return counts after writing documents `user turn + answer` until there are enough tokens.

    Batch `j` depends on the seed and `j` alone, so a killed run goes on where it stopped and
    ends with the same files.
    """
    stop_id = _stop_id(tokenizer)
    prompts = iter_prompts(seed)
    total = answers_total = documents = batch = 0
    with Progress("generate", config.tokens, "tok") as bar:
        while total < config.tokens:
            users = list(islice(prompts, config.batch_size))
            path = folder.path / f"generated_{batch:05d}.safetensors"
            if not path.is_file():
                turns = [chat_tokens(tokenizer, prompt.text) for prompt in users]
                sampling = Sampling(
                    config.temperature,
                    config.top_k,
                    config.max_new_tokens,
                    seed * 1_000_003 + batch,
                )
                answers = sample_answers(model, turns, sampling, stop_id)
                rows = [turn + answer for turn, answer in zip(turns, answers, strict=True)]
                write_documents(path, rows, answer_lengths=[len(answer) for answer in answers])
            stored = read_tensors(path)
            total += len(stored["tokens"])
            answers_total += int(stored["answer_lengths"].sum())
            documents += len(stored["lengths"])
            batch += 1
            bar.to(min(total, config.tokens))
    return {
        "tokens": total,
        "answer_tokens": answers_total,
        "documents": documents,
        "files": batch,
    }


def _stop_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    stop: Any = tokenizer.eos_token_id
    return int(stop[0] if isinstance(stop, list) else stop)


def write_documents(
    path: Path, documents: list[list[int]], *, answer_lengths: list[int] | None = None
) -> None:
    """Write token lists as one flat tensor and their lengths."""
    tensors = {
        "tokens": torch.tensor([token for row in documents for token in row], dtype=torch.int32),
        "lengths": torch.tensor([len(row) for row in documents], dtype=torch.int32),
    }
    if answer_lengths is not None:
        tensors["answer_lengths"] = torch.tensor(answer_lengths, dtype=torch.int32)
    write_tensors(path, tensors)


def read_documents(path: Path) -> list[torch.Tensor]:
    """Return the documents of one file, each `(tokens,)` int64."""
    stored = read_tensors(path)
    return list(stored["tokens"].long().split(stored["lengths"].tolist()))
