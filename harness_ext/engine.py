"""What an engine with its own request queue does for a model: many requests, one at a time each."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness_ext.generation import FinishReason
from interventions.errors import SpecError
from interventions.hook_points import HookPoint


@dataclass(frozen=True)
class EngineRequest:
    """One request.

    Attributes:
        prompt: token ids.
        options: of decoding, by the names of vLLM's `SamplingParams`.
        steering: what goes under `sae_steered`; None leaves the request alone.
        watch: called with all tokens so far, as often as some arrive; True ends the request.
            Called with none where a response begins anew after a lost connection. None in its
            place asks for the whole response at once.
    """

    prompt: Sequence[int]
    options: Mapping[str, Any]
    steering: Mapping[str, Any] | None = None
    watch: Callable[[Sequence[int]], bool] | None = None


@dataclass(frozen=True)
class EngineReply:
    """What came of a request.

    Attributes:
        ids: generated token ids, end-of-text included.
        finish_reason: `stop` or `length`.
        by_text: whether a stop string ended it.
        cached: tokens of the prompt whose KV came from the cache; None if the engine does not say.
        prompt_logprobs: a mapping from token id to log probability for each position of the
            prompt, None at the first; None if not asked for.
    """

    ids: Sequence[int]
    finish_reason: FinishReason
    by_text: bool = False
    cached: int | None = 0
    prompt_logprobs: Sequence[Mapping[int, float] | None] | None = field(default=None, repr=False)


class Engine(Protocol):
    """An engine, here or behind HTTP.

    Attributes:
        tokenizer: of the model.
        label: name of the model in results.
        identity: digest of its weights, see `interventions.fingerprint.weights_digest`.
        max_length: tokens of prompt and response together.
        window: requests that are worth having in flight.
        points: hook points that may be steered.
        variant: names what changes its outputs beside the weights, such as a LoRA adapter; ''
            for none.
        facts: plain data on the engine for results: versions, parallelism, dtype.
    """

    tokenizer: Any
    label: str
    identity: str
    max_length: int
    window: int
    points: tuple[HookPoint, ...]
    variant: str
    facts: Mapping[str, Any]

    def submit(self, request: EngineRequest) -> "Future[EngineReply]":
        """Return the future reply to a request."""
        ...

    def receipts(self, tags: Sequence[str]) -> list[dict[str, Any]]:
        """Return the receipt of every rank of every engine, see `WorkerSteering.take_receipt`."""
        ...

    def check(self, spec: Mapping[str, Any]) -> str:
        """Return the fingerprint that the engine gives a spec.

        Raises:
            interventions.errors.SteeringError: it would refuse a request with that spec.
        """
        ...

    def measure_median_norms(self, points: Sequence[HookPoint]) -> Mapping[HookPoint, float]:
        """Return the median residual norms at some hook points, see `backends.hf`."""
        ...

    def close(self) -> None:
        """Stop the engine, if it is ours."""
        ...


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """Return a model's argument as a whole number.

    Args:
        name: of the argument.
        value: as it was given; a text on the command line.
        least: the smallest that makes sense; None for any.

    Raises:
        SpecError: it is none, or too small.
    """
    try:
        whole_float = isinstance(value, float) and value.is_integer()
        number = int(value) if whole_float else int(str(value))
    except ValueError:
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise SpecError(f"{name}={value}: not a whole number{bound}")
    return number
