"""KV blocks of one intervention are never read by another, nor by unsteered traffic.

A block's key is chained to the one before it. So it is enough that each block whose content
depends on the intervention names it; blocks before the first steered token stay shared.
"""

from typing import Any

from interventions.backends.vllm.config import KEY


def block_key(extra_args: Any, prompt_len: int, end: int) -> tuple[str, str] | None:
    """Return what to add to the key of the block that ends before position `end`, or None.

    Args:
        extra_args: of the request's sampling parameters.
        prompt_len: tokens of the request's prompt.
        end: one past the block's last position.
    """
    entry = extra_args.get(KEY) if extra_args else None
    if not entry:
        return None
    compiled = entry["compiled"]
    fingerprint, boundary = compiled["fp"], compiled["boundary"]
    prompt_len = entry.get("prompt_len") or prompt_len
    if boundary is not None and end > prompt_len + boundary:
        # What the block holds depends on where the prompt ended, too.
        return (KEY, f"{fingerprint}:{prompt_len}")
    return (KEY, fingerprint) if compiled["keyed"] else None


def extend(original: Any) -> Any:
    """Return vLLM's `generate_block_hash_extra_keys`, with the intervention among the keys."""

    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...] | None, int]:
        keys, next_mm = original(request, start_token_idx, end_token_idx, *args, **kwargs)
        params = request.sampling_params
        ours = params and block_key(params.extra_args, request.num_prompt_tokens, end_token_idx)
        return ((*(keys or ()), ours) if ours else keys), next_mm

    return generate_block_hash_extra_keys
