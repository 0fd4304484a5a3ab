"""How many rows fit, from the size of what a row needs, without trial forward passes.

lm-eval's own `auto` runs batches at the model's full length until one fits: minutes on a CPU, and
for a 128k context it ends at one row.
"""

from typing import Any

import torch

_SHARE_OF_FREE = 0.6
_CPU_ROWS = 64


def generation_batch_size(
    config: Any, dtype: torch.dtype, device: torch.device, length: int, most: int
) -> int:
    """Return how many rows of `length` tokens have room for their KV cache.

    Args:
        config: the model's config.
        dtype: of the KV cache.
        device: where it lives.
        length: prompt and generated tokens of the longest row.
        most: upper bound.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * heads * head_dim * dtype.itemsize
    return _fit(per_token * length, device, most)


def scoring_batch_size(config: Any, device: torch.device, length: int, most: int) -> int:
    """Return how many rows of `length` tokens have room for their logits (three fp32 copies)."""
    vocabulary = config.get_text_config().vocab_size
    return _fit(3 * 4 * vocabulary * length, device, most)


def _fit(bytes_per_row: int, device: torch.device, most: int) -> int:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = _free_memory()
        most = min(most, _CPU_ROWS)
    return max(1, min(most, int(_SHARE_OF_FREE * free) // max(1, bytes_per_row)))


def _free_memory() -> int:
    import psutil

    return psutil.virtual_memory().available
