"""Sampling answers from a chat model in batches, on a CPU, as fast as the model allows.

`transformers.generate` spends half its time here on drawing from the whole vocabulary (49152
words x 128 rows each step); drawing from the top k only is the same distribution and costs
nothing. Rows that are finished leave the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: temperature, number of words kept, length limit, seed."""

    temperature: float
    top_k: int
    max_new_tokens: int
    seed: int


def chat_tokens(tokenizer: "PreTrainedTokenizerBase", user: str) -> list[int]:
    """Return the token ids of one user turn, up to where the assistant starts to speak."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(str(text), add_special_tokens=False)["input_ids"]


@torch.inference_mode()
def sample_answers(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_id: int,
) -> list[list[int]]:
    """Return one answer a prompt, without the prompt, with `stop_id` where it was reached.

    Args:
        model: a causal language model in evaluation mode.
        prompts: token ids, padded here on the left.
        sampling: temperature, top k, length limit, seed.
        stop_id: the token that ends an answer; it also pads.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(sampling.seed)
    width = max(len(ids) for ids in prompts)
    padded = [[stop_id] * (width - len(p)) + list(p) for p in prompts]
    ids = torch.tensor(padded, device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = torch.arange(len(prompts), device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    cache = None
    for _ in range(sampling.max_new_tokens):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        chosen = _draw(out.logits[:, -1], sampling, generator)
        for row, token, live in zip(rows.tolist(), chosen.tolist(), alive.tolist(), strict=True):
            if live:
                answers[row].append(token)
        alive &= chosen != stop_id
        if not alive.any():
            break
        ids, position = chosen[:, None], position[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if alive.float().mean() < 0.85:
            keep = alive.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, alive, ids = rows[keep], alive[keep], ids[keep]
            mask, position = mask[keep], position[keep]
    return answers


def _draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    top, index = logits.float().topk(min(sampling.top_k, logits.shape[-1]), dim=-1)
    probabilities = torch.softmax(top / sampling.temperature, dim=-1)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return index.gather(1, drawn)[:, 0]
