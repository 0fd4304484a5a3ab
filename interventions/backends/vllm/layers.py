"""Arming decoder layers of a vLLM model: the operator becomes part of their forward pass.

Only layers at declared hook points are touched, each by itself: the instance gets a subclass of
its own class. Nothing else in the process changes.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

import interventions.backends.vllm.op  # noqa: F401 - registers torch.ops.sae_steered
from interventions.backends.vllm.tables import HookTables
from interventions.errors import HookPointError
from interventions.hook_points import HookPoint

PAIR = "hidden and residual"
SINGLE = "hidden"

FAMILIES: Mapping[str, str] = {
    "LlamaDecoderLayer": PAIR,
    "MistralDecoderLayer": PAIR,
    "Qwen2DecoderLayer": PAIR,
    "Qwen3DecoderLayer": PAIR,
    "Gemma2DecoderLayer": PAIR,
    "Gemma3DecoderLayer": PAIR,
    "GPT2Block": SINGLE,
    "GPTNeoXLayer": SINGLE,
}
"""What a decoder layer returns: the stream itself, or two tensors whose sum it is.

Llama and its kin return `(hidden, residual)`, where `hidden` is what the MLP wrote. An SAE that
is given `hidden` alone encodes something that it was never trained on.
"""


def decoder_layers(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """Return the decoder layers of a vLLM model; those of other pipeline ranks are placeholders.

    Raises:
        HookPointError: the architecture is not one whose residual stream is known.
    """
    seen = set()
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or len(module) != n_layers:
            continue
        kinds = {_kind(layer) for layer in module if not _missing(layer)}
        seen |= kinds
        if kinds and kinds <= set(FAMILIES):
            return module
    found = f"its layers are {', '.join(sorted(seen))}" if seen else "it has no list of layers"
    raise HookPointError(
        f"{type(model).__name__} cannot be steered in vLLM: {found}, known are"
        f" {', '.join(FAMILIES)}; use backend=hf"
    )


def _kind(layer: nn.Module) -> str:
    # vLLM's fallback runs the layers of transformers itself: the same names, another shape.
    name = type(layer).__name__
    return f"transformers' {name}" if type(layer).__module__.startswith("transformers.") else name


def _missing(layer: nn.Module) -> bool:
    return type(layer).__name__ == "PPMissingLayer"


def arm(
    model: nn.Module,
    points: Sequence[HookPoint],
    n_layers: int,
    tokens: Tensor,
    owners: Tensor,
    tables: Mapping[int, HookTables],
) -> None:
    """Put the operator into the layers at `points`; before the model is compiled.

    Args:
        model: as the model runner holds it.
        points: declared hook points.
        n_layers: decoder layers of the whole model.
        tokens: what rows are, shared by all hook points.
        owners: whose rows they are, likewise.
        tables: by index in `points`, for those that lie on this worker.
    """
    layers = decoder_layers(model, n_layers)
    for index, hook_tables in tables.items():
        point = points[index]
        layer: Any = layers[point.layer]
        site = point.site
        layer.register_buffer("sae_steered_tokens", tokens, persistent=False)
        layer.register_buffer("sae_steered_owners", owners, persistent=False)
        for field in fields(hook_tables):
            layer.register_buffer(
                f"sae_steered_{site}_{field.name}",
                getattr(hook_tables, field.name),
                persistent=False,
            )
        cls = type(layer)
        if not hasattr(cls, "sae_steered"):
            layer.sae_steered_sites = ()
            layer.__class__ = _steered(cls, FAMILIES[cls.__name__])
        layer.sae_steered_sites = (*layer.sae_steered_sites, site)


def local(model: nn.Module, points: Sequence[HookPoint], n_layers: int) -> list[int]:
    """Return the indices of the hook points whose layer lies on this pipeline rank."""
    layers = decoder_layers(model, n_layers)
    return [i for i, point in enumerate(points) if not _missing(layers[point.layer])]


@functools.cache
def _steered(cls: type[nn.Module], kind: str) -> type[nn.Module]:
    single = kind == SINGLE

    class Steered(cls):
        sae_steered = True
        sae_steered_sites: tuple[str, ...]

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if "resid_pre" in self.sae_steered_sites:
                hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else _hidden(args)
                _edit(self, "resid_pre", hidden, None)
            output = super().forward(*args, **kwargs)
            if "resid_post" in self.sae_steered_sites:
                if single:
                    _edit(self, "resid_post", output, None)
                else:
                    _edit(self, "resid_post", output[0], output[1])
            return output

    def _hidden(args: tuple[Any, ...]) -> Tensor:
        # Pairs are called with (positions, hidden, residual); GPT-NeoX with (positions, hidden).
        return args[0] if cls.__name__ == "GPT2Block" else args[1]

    Steered.__name__ = Steered.__qualname__ = cls.__name__
    return Steered


def _edit(layer: Any, site: str, hidden: Tensor, residual: Tensor | None) -> None:
    torch.ops.sae_steered.edit_(
        hidden,
        residual,
        layer.sae_steered_tokens,
        layer.sae_steered_owners,
        getattr(layer, f"sae_steered_{site}_n_edits"),
        getattr(layer, f"sae_steered_{site}_limit"),
        getattr(layer, f"sae_steered_{site}_scalars"),
        getattr(layer, f"sae_steered_{site}_e"),
        getattr(layer, f"sae_steered_{site}_w"),
        getattr(layer, f"sae_steered_{site}_counts"),
        getattr(layer, f"sae_steered_{site}_norms"),
    )
