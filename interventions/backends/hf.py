"""Steering of Hugging Face decoder models by forward hooks."""

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from interventions.editor import EditCounts, Editor
from interventions.errors import HookPointError, ReceiptError, SpecError
from interventions.hook_points import HookPoint
from interventions.plan import Plan
from interventions.positions import Rows, select, thinking_step
from interventions.receipt import Receipt, TokenFacts, expected_tokens
from interventions.spec import InterventionSpec

# Where decoder layers live: Llama/Qwen/Gemma/Mistral; Gemma 3 with vision; GPT-2; NeoX; OPT.
_LAYER_PATHS = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "transformer.h",
    "gpt_neox.layers",
    "model.decoder.layers",
)
_FAR = 2**62


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder layers of a causal language model, first to last.

    Raises:
        HookPointError: an encoder-decoder, or a model whose layers are not where they usually are.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise HookPointError(f"{type(model).__name__} is an encoder-decoder; not supported")
    unwrap = getattr(model, "get_base_model", None)  # of PEFT
    base: nn.Module = model if unwrap is None else unwrap()
    for path in _LAYER_PATHS:
        try:
            layers = base.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList):
            return layers
    raise HookPointError(
        f"no decoder layers found in {type(model).__name__}; looked at " + ", ".join(_LAYER_PATHS)
    )


def _input_embeddings(model: Any) -> nn.Module:
    return model.get_input_embeddings()


def token_facts(tokenizer: Any, spec: InterventionSpec, *, needs_thinking: bool) -> TokenFacts:
    """Return the special token ids that a spec needs.

    Raises:
        SpecError: `thinking` is asked for and a delimiter is not one token of the tokenizer.
    """
    bos = tokenizer.bos_token_id
    if not needs_thinking:
        return TokenFacts(bos=bos)
    ids = []
    for key in ("think_start", "think_end"):
        text = getattr(spec, key)
        encoded = tokenizer.encode(text, add_special_tokens=False)
        if len(encoded) != 1:
            raise SpecError(
                f"positions 'thinking': `{key}` '{text}' is {len(encoded)} tokens of this"
                f" tokenizer, not 1; set `{key}` to the model's own, or use another position"
            )
        ids.append(encoded[0])
    return TokenFacts(bos=bos, think_start=ids[0], think_end=ids[1])


class HFSteering:
    """Hooks on a model, as a context manager; outside it, and for an empty plan, nothing is hooked.

    Each batch is announced by `begin`, run, and closed by `check`, which adds it to `receipt`.
    A forward pass that nobody announced is not edited.
    """

    def __init__(self, model: nn.Module, plan: Plan, tokens: TokenFacts) -> None:
        """Prepare hooks for `plan` on `model`.

        Raises:
            HookPointError: a layer outside the model.
            ReceiptError: the norm guard lacks a median norm.
        """
        if plan.missing_medians:
            raise ReceiptError(
                f"no median residual norm for {plan.missing_medians[0]}; call measure_median_norms"
            )
        self.receipt = Receipt()
        self._model, self._plan, self._tokens = model, plan, tokens
        self._layers = decoder_layers(model)
        for layer in plan.layers:
            layer.hook_point.check(len(self._layers), plan.model.name)
        self._editors = [Editor(layer) for layer in plan.layers]
        self._selectors = {s for layer in plan.layers for s in layer.selectors}
        self._handles: list[Any] = []
        self._rows: Rows | None = None
        self._column = 0
        self._inside: Tensor | None = None
        self._masks: dict[Any, Tensor] = {}

    def __enter__(self) -> Self:
        if not self._editors:
            return self
        # The embedding sees the ids of every forward pass, whichever wrapper was called: PEFT
        # calls one module to generate and another to score, and neither passes through both.
        hook = _input_embeddings(self._model).register_forward_pre_hook(self._before_model)
        self._handles.append(hook)
        for editor in self._editors:
            self._handles.append(_attach(self._layers, editor.hook_point, self._edit(editor)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._rows = None

    def begin(self, start: Tensor, prompt_end: Tensor, end: Tensor | None = None) -> None:
        """Announce a batch.

        Args:
            start: `(batch,)` column of each row's first real token.
            prompt_end: `(batch,)` column of the first token that is not prompt.
            end: `(batch,)` one past the last real token; None for generation, where
                `finish_rows` ends rows.
        """
        for editor in self._editors:
            editor.take_counts()
        far = torch.full_like(start, _FAR) if end is None else end.clone()
        self._rows = Rows(start, prompt_end, far)
        self._inside = torch.zeros_like(start, dtype=torch.bool)
        self._column = 0

    def finish_rows(self, done: Tensor, column: int) -> None:
        """End rows at a column: what stands there, and after, is no longer edited.

        Args:
            done: `(batch,)` bool, rows that ended with the token at `column`, or before.
            column: the column of the newest token.
        """
        if self._rows is not None:
            end = self._rows.end
            end[:] = torch.where(done & (end > column), column, end)

    def check(
        self, prompts: Sequence[Sequence[int]], fed: Sequence[Sequence[int]]
    ) -> list[tuple[EditCounts, ...]]:
        """Close the batch, add it to the receipt, and return what each row counted, by edit.

        Args:
            prompts: token ids of each row's prompt.
            fed: token ids after the prompt that were fed to the model.

        Raises:
            ReceiptError: another number of tokens was edited than these lists demand.
        """
        pairs = list(zip(prompts, fed, strict=True))
        edits = [rows for editor in self._editors for rows in editor.take_row_counts()]
        counts = list(zip(*(_fitted(rows, len(pairs)) for rows in edits), strict=True))
        counts = counts or [()] * len(pairs)
        expected = [
            [
                expected_tokens(selector, *pair, self._tokens)
                for layer in self._plan.layers
                for selector in layer.selectors
            ]
            for pair in pairs
        ]
        self._rows = None
        self.receipt.add_rows(counts, expected)
        return counts

    def _before_model(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._rows is None:
            return
        ids = args[0]
        thinking = None
        if self._plan.needs_thinking:
            start, end = self._tokens.think_start, self._tokens.think_end
            assert start is not None and end is not None and self._inside is not None  # noqa: PT018
            real = torch.arange(self._column, self._column + ids.shape[1], device=ids.device)
            # Padding may share an id with a delimiter; -1 is no token.
            shown = torch.where(real >= self._rows.start.unsqueeze(1), ids, -1)
            thinking, self._inside = thinking_step(shown, self._inside, start, end)
        self._masks = {
            selector: select(
                selector,
                first_column=self._column,
                ids=ids,
                rows=self._rows,
                bos_token_id=self._tokens.bos,
                thinking=thinking,
            )
            for selector in self._selectors
        }
        self._column += ids.shape[1]

    def _edit(self, editor: Editor) -> Any:
        def edit(resid: Tensor) -> Tensor:
            return resid if self._rows is None else editor(resid, self._masks)

        return edit


def _fitted(rows: Sequence[EditCounts], n_rows: int) -> list[EditCounts]:
    """Return one count a row; where the model saw other rows, all of it in the first."""
    zero = EditCounts(0, 0, None)
    if len(rows) == n_rows:
        return list(rows)
    total = functools.reduce(operator.add, rows) if rows else zero
    return [total, *[zero] * (n_rows - 1)]


def _attach(layers: nn.ModuleList, hook_point: HookPoint, edit: Any) -> Any:
    """Return the handle of a hook that passes the residual at `hook_point` through `edit`."""

    def post(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    def pre(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    layer = layers[hook_point.layer]
    if hook_point.site == "resid_post":
        return layer.register_forward_hook(post)
    return layer.register_forward_pre_hook(pre, with_kwargs=True)


CALIBRATION_TEXT = (
    "The river rises in the hills north of the town and runs south for forty miles before it"
    " meets the sea. In spring, when the snow melts, the water is fast and cold, and the mills"
    " along its banks used to grind most of the county's grain. A farmer who brings 12 sacks of"
    " wheat, each of 40 kg, carries 12 * 40 = 480 kg in all; if the miller keeps one part in"
    " sixteen, then 480 / 16 = 30 kg stay at the mill. Let us check this again. One sixteenth of"
    " 40 is 2.5, and 2.5 times 12 is 30, so the answer is correct.\n\nQuestion: why does bread"
    " rise? Answer: yeast eats sugar and gives off a gas, and the dough holds the bubbles. First"
    " mix the flour, the water and the salt; then wait an hour, until it has doubled in size."
)
"""What median norms are measured on, on every backend."""


def median_norm(lengths: Tensor) -> float:
    """Return the median residual norm of a text, to three digits.

    Rounded so that the fingerprint does not depend on the last bits of a matrix product.

    Args:
        lengths: `(tokens,)` of the stream; the first token, an attention sink, does not count.
    """
    return float(f"{float(lengths[1:].float().median()):.3g}")


@torch.no_grad()
def measure_median_norms(
    model: nn.Module, tokenizer: Any, hook_points: Iterable[HookPoint]
) -> Mapping[HookPoint, float]:
    """Return the median residual norm at each hook point over a fixed passage of text.

    For SAEs that do not store it.
    """
    norms: dict[HookPoint, float] = {}
    layers = decoder_layers(model)

    def record(hook_point: HookPoint) -> Any:
        def keep(resid: Tensor) -> Tensor:
            norms[hook_point] = median_norm(torch.linalg.vector_norm(resid[0].float(), dim=-1))
            return resid

        return keep

    handles = [_attach(layers, point, record(point)) for point in hook_points]
    try:
        ids = tokenizer(CALIBRATION_TEXT, return_tensors="pt").input_ids
        model(ids.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return norms
