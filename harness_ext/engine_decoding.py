"""How lm-eval's generation arguments are said to an engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from harness_ext.requests import Decoding, Job, parse_decoding
from harness_ext.sampling import response_seed
from interventions.errors import SpecError

_OF_THE_ENGINE = ("presence_penalty", "frequency_penalty", "min_tokens", "ignore_eos")
_READ = ("until", "max_gen_toks", "do_sample", "seed", "temperature", "top_k", "top_p", "min_p")
_BUDGET = ("max_new_tokens", "max_tokens", "max_completion_tokens", "max_length")


@dataclass(frozen=True)
class EngineDecoding:
    """How a group of requests is decoded.

    Attributes:
        common: stop strings, sampling and base seed, as on every backend.
        options: of vLLM's `SamplingParams`, without seed and budget.
    """

    common: Decoding
    options: Mapping[str, Any]

    def seed(self, job: Job) -> int | None:
        """Return the seed of a response, None for greedy decoding."""
        if self.common.sampling is None:
            return None
        return response_seed(self.common.seed, job.seed_key, job.repeat)

    def options_of(self, job: Job) -> dict[str, Any]:
        """Return the options of one request."""
        return {
            **self.options,
            "max_tokens": job.budget(self.common.max_new_tokens),
            "seed": self.seed(job),
        }


def engine_decoding(
    gen_kwargs: Mapping[str, Any],
    model_config: GenerationConfig,
    *,
    max_gen_toks: int,
    seed: int,
    eos_ids: list[int],
) -> EngineDecoding:
    """Return how an engine is to decode a request.

    What the request does not say comes from the model's generation config, as on `backend=hf`.

    Args:
        gen_kwargs: of the request; beside lm-eval's own names, `repetition_penalty` and what
            `SamplingParams` calls `presence_penalty`, `frequency_penalty`, `min_tokens`,
            `ignore_eos`.
        model_config: the model's generation config.
        max_gen_toks: where the request names no budget.
        seed: where the request names none.
        eos_ids: ids that end a text.

    Raises:
        SpecError: an argument that engines do not take, or options that contradict.
    """
    own = {key: gen_kwargs[key] for key in _OF_THE_ENGINE if key in gen_kwargs}
    rest = {key: value for key, value in gen_kwargs.items() if key not in own}
    common = parse_decoding(
        rest, model_config, max_gen_toks=max_gen_toks, seed=seed, eos_ids=eos_ids, pad_id=None
    )
    unknown = sorted(set(rest) - {*_READ, *_BUDGET, "repetition_penalty"})
    if unknown:
        raise SpecError(
            f"generation argument '{unknown[0]}'={rest[unknown[0]]!r} is not supported by engines;"
            f" remove it, or use backend=hf"
        )
    options: dict[str, Any] = {"stop_token_ids": list(eos_ids), **own}
    penalty = common.config.repetition_penalty
    if penalty not in (None, 1.0):
        options["repetition_penalty"] = float(penalty)
    if common.sampling is None:
        options["temperature"] = 0.0
    else:
        options |= {
            key: type(default)(value)
            for key, default in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 0), ("min_p", 0.0))
            if (value := common.sampling.get(key)) is not None
        }
    return EngineDecoding(common, options)
