"""Sampling that gives a row the same tokens in any batch, and steered runs the baseline's luck.

Each response has its own seed, derived from the question and the repeat, never from the batch,
the process or the intervention. Baseline and steered run then draw the same random numbers
(common random numbers), so a difference between them is not a difference of dice.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def response_seed(base: int, key: str, repeat: int) -> int:
    """Return the 63-bit seed of one response.

    Args:
        base: the run's seed.
        key: what the response answers: the question's id, or the prompt if it has none. Arms of
            one question share it.
        repeat: 0 for the first response to the request, 1 for the second, and so on.
    """
    text = f"{base}\x1f{key}\x1f{repeat}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 1


class SeededSampler(LogitsProcessor):
    """Samples by inverting the cumulative distribution at one uniform number a row and step.

    Run as the last logits processor of a *greedy* decode: it leaves one finite score a row.
    """

    def __init__(self, seeds: Sequence[int], max_new_tokens: int, device: torch.device) -> None:
        """Draw all numbers: `(len(seeds), max_new_tokens)` float64, row by row from its seed."""
        rows = [
            torch.rand(
                max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            for seed in seeds
        ]
        self._uniform = torch.stack(rows).to(device)
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores `(batch, vocab)` that are -inf except at the sampled token."""
        cumulative = scores.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
        target = self._uniform[:, self._step : self._step + 1] * cumulative[:, -1:]
        # right=True: the first token whose cumulative mass exceeds the target, never one of mass 0.
        token = torch.searchsorted(cumulative, target, right=True)
        self._step += 1
        picked = torch.full_like(scores, float("-inf"))
        return picked.scatter_(1, token.clamp_(max=scores.shape[-1] - 1), 0.0)


def sampling_processors(
    options: dict[str, Any], seeds: Sequence[int], max_new_tokens: int, device: torch.device
) -> LogitsProcessorList:
    """Return the processors for sampling with `options`.

    Args:
        options: `temperature` (> 0), and `top_k`, `top_p`, `min_p` where they are to hold.
        seeds: one seed a row.
        max_new_tokens: budget of the batch.
        device: where the scores are.
    """
    processors = LogitsProcessorList()
    if options["temperature"] != 1.0:
        processors.append(TemperatureLogitsWarper(float(options["temperature"])))
    if options.get("top_k"):
        processors.append(TopKLogitsWarper(int(options["top_k"])))
    if options.get("top_p") is not None and float(options["top_p"]) < 1.0:
        processors.append(TopPLogitsWarper(float(options["top_p"])))
    if options.get("min_p"):
        processors.append(MinPLogitsWarper(float(options["min_p"])))
    processors.append(SeededSampler(seeds, max_new_tokens, device))
    return processors
