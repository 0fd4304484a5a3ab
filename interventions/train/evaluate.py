"""Measurement of a finished SAE on held-out text: reconstruction, sparsity, the model's loss."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interventions.backends.hf import decoder_layers
from interventions.hook_points import HookPoint
from interventions.train.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from interventions.sae.core import SAE

_CHUNK = 2048


def reconstruction(sae: "SAE", resid: Tensor) -> dict[str, float]:
    """Return FVU, L0 and the shares of features that are silent or dense on these tokens.

    Args:
        sae: as loaded from its folder.
        resid: `(tokens, d_model)`.
    """
    device = sae.W_dec.device
    error, l0, count = 0.0, 0, torch.zeros(sae.d_sae, dtype=torch.long, device=device)
    mean = resid.float().mean(0).to(device)
    variance = 0.0
    for part in resid.split(_CHUNK):
        x = part.to(device).float()
        acts = sae.encode(x)
        error += float((sae.decode(acts, x) - x).double().pow(2).sum())
        variance += float((x - mean).double().pow(2).sum())
        count += (acts > 0).sum(0)
    l0 = float(count.sum() / len(resid))
    frequency = count / len(resid)
    return {
        "tokens": len(resid),
        "fvu": error / variance,
        "l0": l0,
        "dead": float((count == 0).float().mean()),
        "dense_features": int((frequency > 0.1).sum()),
    }


def stored_precision(sae: "SAE", exact: "SAE", resid: Tensor) -> dict[str, float]:
    """Return what storing the weights in bf16 costs, against the same SAE in fp32.

    `flips` is the number of features that change between silent and active, over the number
    that are active.
    """
    flips = active = 0
    for part in resid.split(_CHUNK):
        x = part.to(sae.W_dec.device).float()
        low, high = sae.encode(x) > 0, exact.encode(x) > 0
        flips += int((low ^ high).sum())
        active += int(high.sum())
    fvu = reconstruction(sae, resid)["fvu"] - reconstruction(exact, resid)["fvu"]
    return {"fvu_difference": fvu, "flips": flips / max(active, 1)}


def loss_recovered(
    model: "PreTrainedModel",
    hook_point: HookPoint,
    sae: "SAE",
    rows: Sequence[Tensor],
    limit: float | None,
) -> dict[str, float]:
    """Return next-token losses (nats) with the residual replaced, and the shares recovered.

    `recovered = (ablated - reconstructed) / (ablated - base)`, with the residual set to zero or
    to the SAE's bias, which started at the data's mean.

    Args:
        model: a causal language model.
        hook_point: where the residual is replaced.
        sae: what reconstructs it.
        rows: token rows, each `(tokens,)`.
        limit: tokens whose norm is above it are left alone in every arm; None replaces all.
    """
    arms: dict[str, Callable[[Tensor], Tensor]] = {
        "base": lambda x: x,
        "reconstructed": lambda x: sae.decode(sae.encode(x), x),
        "zero": torch.zeros_like,
        "mean": lambda x: sae.b_dec.expand_as(x),
    }
    losses = {}
    with Progress("evaluate", len(arms) * len(rows), "row") as bar:
        for index, (name, replace) in enumerate(arms.items()):
            with _replaced(model, hook_point, replace, limit):
                losses[name] = _loss(model, rows, lambda n, i=index: bar.to(i * len(rows) + n))
    gap = {name: losses[name] - losses["base"] for name in ("zero", "mean")}
    lost = losses["reconstructed"] - losses["base"]
    return {
        **{f"loss_{name}": value for name, value in losses.items()},
        "recovered_zero": 1 - lost / gap["zero"],
        "recovered_mean": 1 - lost / gap["mean"],
    }


@contextmanager
def _replaced(
    model: "PreTrainedModel",
    hook_point: HookPoint,
    replace: Callable[[Tensor], Tensor],
    limit: float | None,
) -> Iterator[None]:
    def edit(resid: Tensor) -> Tensor:
        x = resid.float()
        new = replace(x)
        if limit is not None:
            new = torch.where(x.norm(dim=-1, keepdim=True) > limit, x, new)
        return new.to(resid.dtype)

    def after(module: Any, args: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    def before(module: Any, args: Any) -> Any:
        return (edit(args[0]), *args[1:])

    layer = decoder_layers(model)[hook_point.layer]
    post = hook_point.site == "resid_post"
    handle = layer.register_forward_hook(after) if post else layer.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def _loss(model: "PreTrainedModel", rows: Sequence[Tensor], on_row: Callable[[int], None]) -> float:
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for number, row in enumerate((row.to(device) for row in rows), start=1):
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
        count += len(row) - 1
        on_row(number)
    return total / count
