"""Requests as lm-eval makes them, and a recorder of residuals that knows none of our code."""

from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.instance import Instance


def generate_requests(
    prompts: list[str], gen_kwargs: dict | None = None, doc: dict | None = None
) -> list[Instance]:
    """Return one request a prompt; greedy, 12 tokens and no stop strings unless told otherwise."""
    kwargs = {"max_gen_toks": 12, "until": []} | (gen_kwargs or {})
    return [
        Instance("generate_until", doc or {}, (prompt, kwargs), index)
        for index, prompt in enumerate(prompts)
    ]


def loglikelihood_requests(pairs: list[tuple[str, str]]) -> list[Instance]:
    """Return one request a (context, continuation) pair."""
    return [
        Instance("loglikelihood", {}, pair, index, metadata=(None, None, None))
        for index, pair in enumerate(pairs)
    ]


class Residuals:
    """What went through one layer: what it returned, and what the next layer was given.

    Attributes:
        before, after: a chunk `(batch, pos, d_model)` for each forward pass.
    """

    def __init__(self) -> None:
        self.before: list[torch.Tensor] = []
        self.after: list[torch.Tensor] = []

    def delta(self) -> torch.Tensor:
        """Return what was added in the last run, over all its passes, `(batch, pos, d_model)`."""
        return torch.cat(self.after, dim=1) - torch.cat(self.before, dim=1)

    def raw(self) -> torch.Tensor:
        """Return the residuals as the layer returned them, over all passes."""
        return torch.cat(self.before, dim=1)


def layers_of(model: Any) -> Any:
    """Return the decoder layers of a tiny model, by the names of the families used in tests."""
    for name in ("model", "transformer", "gpt_neox"):
        if hasattr(model, name):
            inner = getattr(model, name)
            return inner.h if hasattr(inner, "h") else inner.layers
    raise AssertionError(type(model))


@contextmanager
def recording(model: Any, layer: int):
    """Record one layer. Hooks that are registered later run after `before` is recorded."""
    seen = Residuals()
    layers = layers_of(model)

    def returned(module, args, output):
        seen.before.append((output[0] if isinstance(output, tuple) else output).detach().clone())

    def given(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        seen.after.append(hidden.detach().clone())

    handles = [
        layers[layer].register_forward_hook(returned),
        layers[layer + 1].register_forward_pre_hook(given, with_kwargs=True),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
