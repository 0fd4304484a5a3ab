"""Median residual norms of an engine's model, for SAEs that do not store them."""

import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import torch

from interventions.backends.hf import CALIBRATION_TEXT, median_norm
from interventions.backends.vllm.compiled import place
from interventions.errors import ReceiptError, SpecError
from interventions.hook_points import HookPoint

Generate = Callable[[list[int], dict[str, Any]], Awaitable[Any]]
Call = Callable[..., Awaitable[Sequence[Sequence[Any]]]]


async def measure_median_norms(
    generate: Generate,
    call: Call,
    tokenizer: Any,
    points: Sequence[HookPoint],
    wanted: Iterable[HookPoint],
    *,
    max_length: int,
) -> dict[HookPoint, float]:
    """Return the median residual norm at each hook point over the text that `backend=hf` uses.

    One request, which is not edited.

    Args:
        generate: `await generate(ids, entry)` runs the token ids `ids` as a prompt, to at least
            one token, with `entry` under `sae_steered` in its `extra_args`.
        call: `await call(*args)` asks every worker by `collective_rpc("sae_steered", args=args)`;
            answers by engine, then by rank: `adapter.call_workers`.
        tokenizer: of the model.
        points: hook points that the engine declared, in its order.
        wanted: hook points to measure at, declared ones.
        max_length: tokens that the engine takes, `max_model_len`.

    Raises:
        SpecError: the text is longer. A part of it would give another norm than `backend=hf`.
        ReceiptError: the engine returned another number of norms than the text has tokens.
    """
    wanted = list(wanted)
    tag = f"norms-{uuid.uuid4().hex}"
    ids = list(tokenizer(CALIBRATION_TEXT).input_ids)
    if len(ids) >= max_length:
        raise SpecError(
            f"the norm guard measures {wanted[0]} on a text of {len(ids)} tokens and the engine's"
            f" max_model_len is {max_length}; raise it, or give `median_norm` in the spec"
        )
    await generate(ids, {"norms": [str(point) for point in wanted], "tag": tag})
    found: dict[int, list[float]] = {}
    for engine in await call("norms", tag):
        for worker in engine:
            # Other pipeline ranks have other layers, ranks of tensor parallelism the same ones.
            found.update({int(index): lengths for index, lengths in worker.items()})
    norms = {}
    for point in wanted:
        lengths = found.get(points.index(place(point)), [])
        if len(lengths) != len(ids):
            raise ReceiptError(
                f"the engine measured {len(lengths)} tokens at {point} where the text has"
                f" {len(ids)}; give `median_norm` in the spec"
            )
        norms[point] = median_norm(torch.tensor(lengths))
    return norms
