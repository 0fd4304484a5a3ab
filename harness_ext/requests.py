"""What lm-eval asks to be generated, checked: prompts as tokens, and how to decode."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from interventions.errors import SpecError

_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_ONE_ROW = ("num_beams", "num_beam_groups", "num_return_sequences", "penalty_alpha")
_OTHER_SAMPLING = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


@dataclass(frozen=True)
class Job:
    """One response to make.

    Attributes:
        index: place among the requests.
        prompt: text, as the task made it.
        gen_kwargs: of the request, untouched: they are part of lm-eval's cache key.
        ids: token ids of the prompt.
        room: tokens that fit after it.
        seed_key: what the sampling seed is derived from.
        repeat: 0 for the first response to the request, 1 for the second, and so on.
    """

    index: int
    prompt: str
    gen_kwargs: Mapping[str, Any]
    ids: Sequence[int]
    room: int
    seed_key: str
    repeat: int

    def budget(self, max_new_tokens: int) -> int:
        """Return how many tokens may be generated."""
        return min(max_new_tokens, self.room)


@dataclass(frozen=True)
class Decoding:
    """How a batch is decoded.

    Attributes:
        until: stop strings.
        max_new_tokens: asked for; a row's room may be less.
        sampling: `temperature` and, where they hold, `top_k`, `top_p`, `min_p`; None is greedy.
        seed: base of the responses' seeds.
        config: what `generate` is given; always greedy, see `harness_ext.sampling`.
    """

    until: Sequence[str]
    max_new_tokens: int
    sampling: Mapping[str, Any] | None
    seed: int
    config: GenerationConfig


def make_jobs(
    requests: Sequence[Instance],
    encode: Callable[[str], Sequence[int]],
    max_length: int,
    label: str,
) -> list[Job]:
    """Return the responses that the requests ask for, one a request, in their order.

    Args:
        requests: lm-eval's; the same object k times asks for k different samples.
        encode: text to token ids.
        max_length: tokens that the model takes.
        label: name of the model, for messages.

    Raises:
        SpecError: a prompt is empty or leaves no room to generate.
    """
    repeats: Counter[int] = Counter()
    # Interventions are compared on the same prompts.
    encoded: dict[str, Sequence[int]] = {}
    jobs = []
    for index, request in enumerate(requests):
        prompt, gen_kwargs = cast(tuple[str, dict[str, Any]], request.args)
        repeat = repeats[id(request)]
        repeats[id(request)] += 1
        ids = encoded[prompt] if prompt in encoded else encode(prompt)
        encoded[prompt] = ids
        if not ids:
            raise SpecError(f"prompt {prompt!r} has 0 tokens and the model needs 1; give it a text")
        if len(ids) >= max_length:
            raise SpecError(
                f"prompt of {len(ids)} tokens does not fit max_length {max_length} of"
                f" {label}; prompts are never truncated, raise max_length"
            )
        doc = request.doc if isinstance(request.doc, Mapping) else {}
        key = str(doc.get("qid", prompt))
        jobs.append(Job(index, prompt, gen_kwargs, ids, max_length - len(ids), key, repeat))
    return jobs


def refuse_cached_repeats(jobs: Sequence[Job]) -> None:
    """Return nothing if lm-eval's response cache can hold the responses apart.

    Raises:
        SpecError: repeats are sampled, and lm-eval's cache, which looks at `do_sample` alone,
            would give all of them one response.
    """
    for job in jobs:
        sampled = float(job.gen_kwargs.get("temperature") or 0) > 0
        if job.repeat and sampled and job.gen_kwargs.get("do_sample") is None:
            raise SpecError(
                f"--use_cache would give all repeats of a prompt one response: temperature is"
                f" {job.gen_kwargs['temperature']} and do_sample is not set; add do_sample=true to"
                f" --gen_kwargs"
            )


def parse_decoding(
    gen_kwargs: Mapping[str, Any],
    model_config: GenerationConfig,
    *,
    max_gen_toks: int,
    seed: int,
    eos_ids: Sequence[int],
    pad_id: int | None,
) -> Decoding:
    """Return how to decode a request.

    What the request does not say comes from the model's own generation config, as in plain `hf`;
    but there is no top-k where neither asks for one.

    Args:
        gen_kwargs: of the request.
        model_config: the model's generation config; not changed.
        max_gen_toks: where the request names no budget.
        seed: where the request names none.
        eos_ids: ids that end a text.
        pad_id: id that fills a row after its end.

    Raises:
        SpecError: a decoding method that cannot be steered, or options that contradict.
    """
    options: dict[str, Any] = dict(normalize_gen_kwargs(dict(gen_kwargs), max_gen_toks))
    until = [stop for stop in options.pop("until", None) or [] if stop]
    budget = int(options.pop("max_gen_toks"))
    if budget < 1:
        raise SpecError(f"max_gen_toks {budget} asks for no token; give at least 1")
    given = options.pop("seed", None)
    sampling = _sampling(options, model_config) if options.pop("do_sample", False) else None
    config = copy.deepcopy(model_config)
    for key in _SAMPLING:
        options.pop(key, None)
        setattr(config, key, None)
    for key in _ONE_ROW:
        if options.pop(key, None) not in (None, 1, 0):
            raise SpecError(f"'{key}'={gen_kwargs[key]} is not supported: rows must stay in place")
    try:
        unknown = config.update(**options)
    except ValueError as error:
        raise SpecError(f"generation arguments: {' '.join(str(error).split())}") from None
    if unknown:
        name = next(iter(unknown))
        raise SpecError(f"unknown generation argument '{name}'={unknown[name]!r}; remove it")
    config.num_beams = config.num_return_sequences = 1
    config.penalty_alpha = 0.0
    config.do_sample = False
    config.max_length = None
    config.max_new_tokens = budget
    config.use_cache = True
    config.return_dict_in_generate = False
    # A compiled forward pass would trace the hooks once and never run them again.
    config.disable_compile = True
    config.eos_token_id = list(eos_ids) or None
    config.pad_token_id = pad_id
    mode = config.get_generation_mode()
    if mode != GenerationMode.GREEDY_SEARCH:
        raise SpecError(
            f"decoding by {mode.value} is not supported: rows must stay in place; remove"
            f" {', '.join(options) or 'it from the generation config'}"
        )
    base = seed if given is None else int(given)
    return Decoding(until, budget, sampling, base, config)


def _sampling(options: Mapping[str, Any], config: GenerationConfig) -> dict[str, Any]:
    for key in _OTHER_SAMPLING:
        if options.get(key) is not None:
            raise SpecError(f"'{key}'={options[key]} is not supported; use {', '.join(_SAMPLING)}")
    sampling = {
        key: options[key] if options.get(key) is not None else getattr(config, key, None)
        for key in _SAMPLING
    }
    if sampling["temperature"] is None:
        sampling["temperature"] = 1.0
    if not float(sampling["temperature"]) > 0:
        raise SpecError(
            f"do_sample is true and temperature is {sampling['temperature']}; give a temperature"
            f" over 0, or leave do_sample out for greedy decoding"
        )
    return sampling
