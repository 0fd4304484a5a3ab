"""The next token after cached prefixes, many times over: one token is computed, not the prefix."""

import copy
import random
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interventions.backends.hf import decoder_layers
from interventions.errors import FeatureError
from interventions.hook_points import HookPoint
from interventions.text.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rows among which passages are drawn, so that a huge corpus is not read to its end.
_ROWS_DRAWN_FROM = 2000


class _ReachedError(Exception):
    """Ends a forward pass at the hook point."""


class Prefixes:
    """Prefixes of one length whose keys and values are computed once.

    Attributes:
        ids: `(n, length)` on the model's device.
    """

    @torch.inference_mode()
    def __init__(self, model: "PreTrainedModel", hook_point: HookPoint, ids: Tensor) -> None:
        """Run the model over the prefixes.

        Args:
            model: a decoder model in evaluation mode.
            hook_point: where `step` reads and edits.
            ids: `(n, length)` int64, no padding.
        """
        self._model = model
        self._hook_point = hook_point
        self._layer = decoder_layers(model)[hook_point.layer]
        self.ids = ids.to(next(model.parameters()).device)
        self._cache = model(input_ids=self.ids, use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def residuals(self, tokens: Tensor) -> Tensor:
        """Return the residual stream at one token after each prefix, `(n, k, d_model)`.

        Args:
            tokens: `(n, k)`, for each prefix `k` tokens, each tried alone.
        """

        def stop(resid: Tensor) -> Tensor:
            raise _ReachedError(resid[:, -1])

        try:
            self._forward(tokens, stop)
        except _ReachedError as reached:
            return reached.args[0].unflatten(0, tokens.shape)
        raise FeatureError(f"{type(self._model).__name__} never ran {self._hook_point}")

    @torch.inference_mode()
    def logits(self, tokens: Tensor, delta: Tensor | None = None) -> Tensor:
        """Return the logits after one more token, fp32 `(n, k, vocab)`.

        Args:
            tokens: `(n, k)`.
            delta: `(n, k, d_model)`, added to the residual stream at that token.
        """

        def edit(resid: Tensor) -> Tensor:
            if delta is None:
                return resid
            return (resid.float() + delta.flatten(0, 1)[:, None]).to(resid.dtype)

        out = self._forward(tokens, edit)
        return out.logits[:, -1].float().unflatten(0, tokens.shape)

    def _forward(self, tokens: Tensor, edit: Callable[[Tensor], Tensor]) -> Any:
        # A forward pass appends to the cache it is given.
        cache = copy.deepcopy(self._cache)
        if tokens.shape[1] > 1:
            cache.batch_repeat_interleave(tokens.shape[1])

        def after(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edit(output[0]), *output[1:])
            return edit(output)

        def before(module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

        if self._hook_point.site == "resid_post":
            handle = self._layer.register_forward_hook(after)
        else:
            handle = self._layer.register_forward_pre_hook(before, with_kwargs=True)
        try:
            ids = tokens.to(self.ids).reshape(-1, 1)
            return self._model(input_ids=ids, past_key_values=cache, use_cache=True)
        finally:
            handle.remove()


def passages(rows: Iterable[Row], n: int, length: int, *, seed: int) -> Tensor:
    """Return `n` stretches of `length` tokens drawn from the text, one a row, `(n, length)`.

    Each begins with the row's own first tokens only by chance; a BOS at the row's start is kept.

    Args:
        rows: of the text; the first few thousand are drawn from.
        n: how many.
        length: of each.
        seed: of the draw.

    Raises:
        FeatureError: there are fewer rows of that length.
    """
    chance = random.Random(seed)
    long = [row for row in islice(rows, _ROWS_DRAWN_FROM) if len(row.ids) >= length]
    if len(long) < n:
        raise FeatureError(
            f"the text has {len(long)} rows of at least {length} tokens, and {n} are needed; give"
            f" more text, or ask for fewer passages"
        )
    found = []
    for row in chance.sample(long, n):
        front = int(row.document[0] < 0)
        start = chance.randint(front, len(row.ids) - length + front)
        found.append(torch.cat([row.ids[:front], row.ids[start : start + length - front]]))
    return torch.stack(found)
