"""A model with vLLM's layer conventions and no attention: a token's output depends on it alone.

So whatever batch, chunk or order its tokens run in, the outcome can be computed from the token
and its edits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interventions.editor import EditCounts, Editor
from interventions.hook_points import HookPoint
from interventions.plan import Plan
from interventions.positions import Rows, select, thinking_step
from tests.tiny_models import D_MODEL, N_LAYERS
from tests.vllm_plans import TOKENS

VOCABULARY = 9


class _Pair(nn.Module):
    """What Llama and its kin do: `(positions, hidden, residual)`, two tensors back."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(D_MODEL, D_MODEL)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Any:
        residual = hidden_states if residual is None else hidden_states + residual
        return torch.tanh(self.mlp(residual)), residual


class _Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(D_MODEL, D_MODEL)


class _GPT2(_Single):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + torch.tanh(self.mlp(hidden_states))


class _NeoX(_Single):
    def forward(self, position_ids: Tensor, hidden_states: Tensor) -> Tensor:
        return hidden_states + torch.tanh(self.mlp(hidden_states))


# vLLM's names, by which layers are known.
LAYERS: dict[str, type[nn.Module]] = {
    name: type(name, (base,), {})
    for name, base in {
        "LlamaDecoderLayer": _Pair,
        "Gemma3DecoderLayer": _Pair,
        "GPT2Block": _GPT2,
        "GPTNeoXLayer": _NeoX,
    }.items()
}


class Toy(nn.Module):
    """Embedding and layers; by default the kind that returns pairs."""

    def __init__(self, kind: str = "LlamaDecoderLayer", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kind = kind
        self.embed = nn.Embedding(VOCABULARY, D_MODEL)
        self.layers = nn.ModuleList(LAYERS[kind]() for _ in range(N_LAYERS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        if self.kind == "GPT2Block":
            for layer in self.layers:
                x = layer(x)
            return x
        if self.kind == "GPTNeoXLayer":
            for layer in self.layers:
                x = layer(ids, x)
            return x
        residual = None
        for layer in self.layers:
            x, residual = layer(ids, x, residual)
        return x + residual


def masks(plan: Plan, tokens: Sequence[int], prompt_len: int) -> list[dict[Any, Tensor]]:
    """Return the mask of every selector at every token, by the hooks of transformers' side."""
    ids = torch.tensor([tokens])
    assert TOKENS.think_start is not None
    assert TOKENS.think_end is not None
    thinking, _ = thinking_step(ids, torch.tensor([False]), TOKENS.think_start, TOKENS.think_end)
    rows = Rows(*(torch.tensor([bound]) for bound in (0, prompt_len, len(tokens))))
    return [
        {
            s: select(
                s, first_column=0, ids=ids, rows=rows, bos_token_id=TOKENS.bos, thinking=thinking
            )[0]
            for s in layer.selectors
        }
        for layer in plan.layers
    ]


@torch.no_grad()
def oracle(
    toy: Toy, plan: Plan | None, tokens: Sequence[int], prompt_len: int, ran: Sequence[int]
) -> tuple[Tensor, dict[HookPoint, list[EditCounts]], dict[HookPoint, Tensor]]:
    """Return outputs, counts and lengths of the stream at the positions that ran, by the editor."""
    layers = () if plan is None else plan.layers
    editors = {layer.hook_point: Editor(layer) for layer in layers}
    named = {} if plan is None else dict(zip(editors, masks(plan, tokens, prompt_len), strict=True))
    norms = {}

    def edit(point: HookPoint, x: Tensor) -> Tensor:
        norms[point] = x.norm(dim=-1)
        if point not in editors:
            return x
        return editors[point](x, {s: mask[list(ran)] for s, mask in named[point].items()})

    x = edit(HookPoint(0, "resid_pre"), toy.embed(torch.tensor(tokens)[list(ran)]))
    for number, layer in enumerate(toy.layers):
        mlp: Any = layer.mlp
        x = edit(HookPoint(number), x + torch.tanh(mlp(x)))
    return x, {point: editor.take_counts() for point, editor in editors.items()}, norms
