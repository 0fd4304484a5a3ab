"""The residual stream of a model at one hook point, batch by batch; layers above never run."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interventions.backends.hf import decoder_layers
from interventions.errors import FeatureError, HookPointError
from interventions.hook_points import HookPoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS_SORTED_TOGETHER = 256


class _ReachedError(Exception):
    """Carries the residual out of a forward pass; the layers above are never run."""


@dataclass(frozen=True, eq=False)
class ResidBatch:
    """Some rows and their residual stream.

    Attributes:
        rows: number of each row in the iterable that was read, `batch` of them.
        tokens: `(batch, pos)` int64, padded on the right with 0, on the model's device.
        real: `(batch, pos)` bool, False where there is padding.
        resid: `(batch, pos, d_model)`, in the model's dtype, on the model's device.
    """

    rows: tuple[int, ...]
    tokens: Tensor
    real: Tensor
    resid: Tensor

    @property
    def norms(self) -> Tensor:
        """Residual norms, `(batch, pos)` fp32."""
        return torch.linalg.vector_norm(self.resid.float(), dim=-1)

    def usable(self, limit: float | None, without: Sequence[int] = ()) -> Tensor:
        """Return which tokens count, `(batch, pos)` bool.

        Args:
            limit: residual norm above which a token is a sink; None keeps sinks.
            without: token ids that do not count, such as special tokens.
        """
        keep = self.real
        if limit is not None:
            keep = keep & (self.norms <= limit)
        if without:
            keep = keep & ~torch.isin(self.tokens, torch.tensor(list(without)).to(self.tokens))
        return keep


@torch.inference_mode()
def read_residuals(
    model: "PreTrainedModel",
    hook_point: HookPoint,
    rows: Iterable[Tensor],
    *,
    batch_tokens: int = 4096,
) -> Iterator[ResidBatch]:
    """Yield the residual stream of token rows; every row once, rows of similar length together.

    Memory does not grow with the number of rows. Rows are read some hundred at a time and sorted
    by length within these; `ResidBatch.rows` says which they are.

    Args:
        model: a decoder model in evaluation mode.
        hook_point: where to read.
        rows: each `(tokens,)` int64, not empty.
        batch_tokens: of a batch at most, padding included; a longer row is a batch of its own.

    Raises:
        HookPointError: the layer is outside the model, or the forward pass never came to it.
        FeatureError: the stream of a token is not finite.
    """
    device = next(model.parameters()).device
    layers = decoder_layers(model)
    hook_point.check(len(layers), model.config.name_or_path or type(model).__name__)
    numbered = enumerate(rows)
    while some := list(islice(numbered, _ROWS_SORTED_TOGETHER)):
        some.sort(key=lambda pair: (len(pair[1]), pair[0]))
        for batch in _batches(some, batch_tokens):
            width = len(batch[-1][1])
            tokens = torch.zeros(len(batch), width, dtype=torch.long)
            real = torch.zeros(len(batch), width, dtype=torch.bool)
            for slot, (_, ids) in enumerate(batch):
                tokens[slot, : len(ids)] = ids
                real[slot, : len(ids)] = True
            tokens, real = tokens.to(device), real.to(device)
            resid = _forward(model, layers[hook_point.layer], hook_point, tokens, real)
            yield ResidBatch(tuple(number for number, _ in batch), tokens, real, resid)


@torch.inference_mode()
def read_padded(
    model: "PreTrainedModel", hook_point: HookPoint, tokens: Tensor, real: Tensor
) -> Tensor:
    """Return the residual stream of one batch, padded as it is given, `(batch, pos, d_model)`.

    Args:
        model: a decoder model in evaluation mode.
        hook_point: where to read.
        tokens: `(batch, pos)` int64, on the model's device.
        real: `(batch, pos)` bool, False where there is padding, on either side.

    Raises:
        HookPointError: the layer is outside the model, or the forward pass never came to it.
        FeatureError: the stream of a token is not finite.
    """
    layers = decoder_layers(model)
    hook_point.check(len(layers), model.config.name_or_path or type(model).__name__)
    return _forward(model, layers[hook_point.layer], hook_point, tokens, real)


def _forward(
    model: Any, layer: torch.nn.Module, hook_point: HookPoint, tokens: Tensor, real: Tensor
) -> Tensor:
    # Without padding no mask: fused attention kernels are faster without one.
    mask = None if bool(real.all()) else real.long()
    with _stop_at(layer, hook_point):
        try:
            model(input_ids=tokens, attention_mask=mask, use_cache=False, logits_to_keep=1)
        except _ReachedError as reached:
            resid = reached.args[0]
            _check_finite(resid, real, hook_point)
            return resid
    raise HookPointError(f"{type(model).__name__} never ran {hook_point}")


def _check_finite(resid: Tensor, real: Tensor, hook_point: HookPoint) -> None:
    # NaN is above no limit, so without this such tokens would pass for sinks.
    bad = ~resid.isfinite().all(-1) & real
    if count := int(bad.sum()):
        kind = str(resid.dtype).removeprefix("torch.")
        raise FeatureError(
            f"the residual stream at {hook_point} is not finite at {count} of {int(real.sum())}"
            f" tokens in {kind}; "
            + ("load the model in float32 or bfloat16" if kind == "float16" else "check the model")
        )


@contextmanager
def _stop_at(layer: torch.nn.Module, hook_point: HookPoint) -> Iterator[None]:
    def after(module: Any, args: Any, output: Any) -> None:
        raise _ReachedError(output[0] if isinstance(output, tuple) else output)

    def before(module: Any, args: Any, kwargs: Any) -> None:
        raise _ReachedError(args[0] if args else kwargs["hidden_states"])

    if hook_point.site == "resid_post":
        handle = layer.register_forward_hook(after)
    else:
        handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _batches(
    some: Sequence[tuple[int, Tensor]], batch_tokens: int
) -> Iterator[list[tuple[int, Tensor]]]:
    batch: list[tuple[int, Tensor]] = []
    for pair in some:
        if batch and (len(batch) + 1) * len(pair[1]) > batch_tokens:
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch
