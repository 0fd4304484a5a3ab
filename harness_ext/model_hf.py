"""`backend=hf`: lm-eval's Hugging Face model, steered, with a receipt."""

import copy
import importlib.metadata
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from tqdm import tqdm

from harness_ext.batching import generation_batch_size, scoring_batch_size
from harness_ext.generation import Generation, split_reasoning
from harness_ext.sampling import response_seed, sampling_processors
from harness_ext.stopping import Delimiters, RowStopper, cut_at_stops
from interventions.backends.hf import HFSteering, measure_median_norms, token_facts
from interventions.default_model import resolve_pretrained
from interventions.errors import ModelMismatchError, SpecError
from interventions.fingerprint import weights_digest
from interventions.plan import ModelFacts, Plan, make_plan
from interventions.spec import InterventionSpec
from interventions.spec_io import INLINE_KEYS, load_spec, spec_from_args

logger = logging.getLogger(__name__)

_VERSIONS = ("sae-steered", "lm-eval", "torch", "transformers")
_REFUSED = (
    "num_beams",
    "num_beam_groups",
    "penalty_alpha",
    "assistant_model",
    "num_return_sequences",
)


# The decorator that registers HFLM hides its type from type checkers.
_HFLM: Any = HFLM


class SteeredHF(_HFLM):
    """A Hugging Face causal language model, steered while it scores and generates.

    Differences from lm-eval's `hf`, beside steering: prompts are never truncated; stop strings
    hold for the answer and never cut the reasoning; responses keep their reasoning and carry
    metadata (`harness_ext.generation.Generation`); sampling is seeded per response, so a row does
    not depend on its batch; `--use_cache` is kept apart by model and intervention.
    """

    def __init__(
        self,
        pretrained: str | transformers.PreTrainedModel = "default",
        *,
        spec: str | Mapping[str, Any] | InterventionSpec | None = None,
        edits: Any = None,
        seed: int = 1234,
        think_start_token: str = "<think>",
        think_end_token: str | int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        batch_size: int | str | None = "auto",
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the spec against the model's config, then load the model.

        Args:
            pretrained: hub name, local folder, loaded model, or `default`.
            spec: file, JSON text, mapping or spec of the intervention; None steers nothing.
            edits: list of edits, with `sae_*` arguments as their defaults, instead of `spec`.
            seed: base of every response's sampling seed.
            think_start_token, think_end_token: reasoning delimiters, as text; `</think>` if None.
            enable_thinking, chat_template_args: passed to the chat template.
            batch_size: rows at a time; `auto` fits them to memory.
            device: torch device; None is the GPU if there is one.
            **kwargs: `sae_*` arguments, and all that lm-eval's `hf` takes.

        Raises:
            interventions.errors.SteeringError: a spec that does not fit the model; before its
                weights are loaded.
        """
        inline = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("sae_")}
        if isinstance(spec, InterventionSpec):
            if inline or edits is not None:
                raise SpecError(f"'spec' and '{next(iter(inline), 'edits')}' are both given")
            wanted: InterventionSpec | None = spec
        else:
            wanted = spec_from_args({"spec": spec, "edits": edits, **inline})
        self._label = str(pretrained)
        if isinstance(pretrained, str):
            resolved = resolve_pretrained(pretrained)
            pretrained, self._label = resolved.path, resolved.label
            config = _load_config(pretrained, kwargs)
        else:
            config = pretrained.config
            self._label = config.name_or_path or type(pretrained).__name__
        plan = make_plan(wanted or InterventionSpec(name="none"), _facts(self._label, config))
        if enable_thinking is not None:
            chat_template_args = {**(chat_template_args or {}), "enable_thinking": enable_thinking}
        super().__init__(
            pretrained=pretrained,
            batch_size=batch_size or "auto",
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            chat_template_args=chat_template_args,
            **kwargs,
        )
        if self.backend != "causal":
            raise ModelMismatchError(f"{self._label} is not a decoder-only model; not supported")
        if isinstance(think_end_token, int) or str(think_end_token).isdigit():
            think_end_token = self.tokenizer.decode([int(str(think_end_token))])
        self._delimiters = Delimiters(think_start_token, think_end_token or "</think>")
        self._seed = seed
        self._cache_hook_db: Any = None
        self._scored: dict[tuple[int, ...], int | None] = {}
        self._identity = weights_digest(self.model)
        self._use(plan)

    def set_intervention(self, spec: InterventionSpec | Mapping[str, Any] | str | None) -> None:
        """Steer by `spec` from now on, or not at all; the model stays loaded.

        Raises:
            interventions.errors.SteeringError: the spec does not fit the model.
        """
        if spec is None:
            spec = InterventionSpec(name="none")
        checked = spec if isinstance(spec, InterventionSpec) else load_spec(spec)
        self._use(make_plan(checked, _facts(self._label, self.config)))
        self._separate_cache()

    @property
    def plan(self) -> Plan:
        """The intervention in force."""
        return self._plan

    @property
    def intervention(self) -> str:
        """Fingerprint of the intervention in force, model included; 'none' if nothing is edited."""
        return self._plan.fingerprint if self._plan.layers else "none"

    def _use(self, plan: Plan) -> None:
        plan = plan.with_identity(self._identity)
        if plan.missing_medians:
            norms = measure_median_norms(self.model, self.tokenizer, plan.missing_medians)
            logger.info("median residual norms, measured: %s", dict(norms))
            plan = plan.with_median_norms(norms)
        if plan.spec.norm_guard is None and plan.layers:
            logger.warning("the norm guard is off: attention-sink tokens are edited too")
        if not plan.layers:
            logger.warning("no intervention given: this is the unsteered baseline")
        tokens = token_facts(self.tokenizer, plan.spec, needs_thinking=plan.needs_thinking)
        self._plan = plan
        self._steering = HFSteering(self.model, plan, tokens)

    # -- generation ---------------------------------------------------------------------------

    def generate_until(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Return the responses, whole, as `Generation`s, in the order of the requests.

        Raises:
            SpecError: a prompt leaves no room to generate, or a decoding method that cannot be
                steered is asked for.
            ReceiptError: a batch was not edited as its tokens demand.
        """
        jobs = self._jobs(requests)
        results: list[str] = [""] * len(requests)
        bar = tqdm(
            total=len(jobs),
            disable=disable_tqdm or self.rank != 0,
            desc=f"Generating [{self._plan.spec.name}]",
        )
        groups: dict[str, list[_Job]] = {}
        for job in jobs:
            groups.setdefault(json.dumps(job.gen_kwargs, sort_keys=True, default=str), []).append(
                job
            )
        with self._steering:
            for group in groups.values():
                group.sort(key=lambda job: (-len(job.ids), job.prompt))
                while group:
                    size = self._generation_batch(group)
                    batch, group = group[:size], group[size:]
                    for job, response in zip(batch, self._generate_batch(batch), strict=True):
                        results[job.index] = response
                        self.cache_hook.add_partial(
                            "generate_until", (job.prompt, job.gen_kwargs), response
                        )
                    bar.update(len(batch))
        bar.close()
        self._steering.receipt.check_effect(self._plan)
        return results

    def _jobs(self, requests: Sequence[Instance]) -> list["_Job"]:
        repeats: Counter[int] = Counter()
        jobs = []
        for index, request in enumerate(requests):
            prompt, gen_kwargs = request.args
            repeat = repeats[id(request)]
            repeats[id(request)] += 1
            doc = request.doc if isinstance(request.doc, Mapping) else {}
            ids = self._encode_prompt(prompt)
            room = self.max_length - len(ids)
            if room < 1:
                raise SpecError(
                    f"prompt of {len(ids)} tokens does not fit max_length {self.max_length} of"
                    f" {self._label}; prompts are never truncated, raise max_length"
                )
            jobs.append(
                _Job(index, prompt, gen_kwargs, ids, room, str(doc.get("qid", prompt)), repeat)
            )
        return jobs

    def _encode_prompt(self, prompt: str) -> list[int]:
        # The batch encoder, so that one row gets exactly the tokens it gets in a batch.
        return self.tok_batch_encode([prompt])[0][0].tolist()

    def _generation_batch(self, group: Sequence["_Job"]) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        asked = normalize_gen_kwargs(group[0].gen_kwargs, self.max_gen_toks)["max_gen_toks"]
        longest = min(len(group[0].ids) + asked, self.max_length)
        return generation_batch_size(
            self.config, self.model.dtype, self.device, longest, int(self.max_batch_size or 64)
        )

    def _generate_batch(self, batch: Sequence["_Job"]) -> list[Generation]:
        options = dict(normalize_gen_kwargs(batch[0].gen_kwargs, self.max_gen_toks))
        for key in _REFUSED:
            if options.get(key) not in (None, 1, 1.0):
                raise SpecError(f"'{key}'={options[key]} is not supported: rows must stay in place")
        until = _stop_list(options.pop("until", []))
        budgets = [min(int(options["max_gen_toks"]), job.room) for job in batch]
        del options["max_gen_toks"]
        base_seed = int(options.pop("seed", None) or self._seed)
        sampled = bool(options.pop("do_sample", False))
        seeds = [response_seed(base_seed, job.seed_key, job.repeat) for job in batch]
        config = copy.deepcopy(self.model.generation_config)
        assert config is not None
        sampling = {
            key: options.pop(key, None) or getattr(config, key, None)
            for key in ("temperature", "top_k", "top_p", "min_p")
        }
        sampling["temperature"] = sampling["temperature"] or 1.0
        # The decode itself is always greedy; sampling happens in the last logits processor.
        for key in ("temperature", "top_k", "top_p", "min_p", "max_length"):
            setattr(config, key, None)
        config.do_sample = False
        config.max_new_tokens = max(budgets)
        processors = (
            sampling_processors(sampling, seeds, max(budgets), self.device) if sampled else None
        )
        ids, mask = self.tok_batch_encode([job.prompt for job in batch])
        ids, mask = ids.to(self.device), mask.to(self.device)
        width = ids.shape[1]
        opened = [self._delimiters.left_open(job.prompt) for job in batch]
        eos = _eos_ids(config, self.tokenizer)
        self._steering.begin(width - mask.sum(dim=1), torch.full_like(mask[:, 0], width))
        stopper = RowStopper(
            self.tokenizer,
            prompt_width=width,
            eos_ids=eos,
            until=until,
            delimiters=self._delimiters,
            opened=opened,
            budgets=budgets,
            on_finish=self._steering.finish_rows,
        )
        with torch.autocast(
            device_type=self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        ):
            output = self.model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                eos_token_id=eos,
                pad_token_id=self.tokenizer.pad_token_id,
                stopping_criteria=transformers.StoppingCriteriaList([stopper]),
                logits_processor=processors,
                use_cache=True,
                **options,
            )
        new = [row[: stopper.n_tokens[i]] for i, row in enumerate(output[:, width:].tolist())]
        prompts = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
        self._steering.check(prompts, [row[:-1] for row in new])
        return [
            self._response(row, until, opened[i], stopper, i, seeds[i] if sampled else None)
            for i, row in enumerate(new)
        ]

    def _response(
        self,
        ids: list[int],
        until: Sequence[str],
        opened: bool,
        stopper: RowStopper,
        row: int,
        seed: int | None,
    ) -> Generation:
        closing = self.tokenizer.encode(self._delimiters.end, add_special_tokens=False)
        last = _rfind(ids, closing)
        n_reasoning = last + len(closing) if last >= 0 else 0
        if last >= 0 and self._delimiters.end in self.tokenizer.all_special_tokens:
            # Decoding drops special tokens, and with them the border between the two parts.
            text = (
                self.tok_decode(ids[:last])
                + self._delimiters.end
                + self.tok_decode(ids[n_reasoning:])
            )
        else:
            text = self.tok_decode(ids)
        text = cut_at_stops(text, until, self._delimiters, opened)
        opened = opened or self._delimiters.left_open(text)
        reasoning, final = split_reasoning(text, think_end=self._delimiters.end, opened=opened)
        if last < 0 and reasoning:
            n_reasoning = len(ids) if not final else len(self.tok_encode(reasoning))
        return Generation(
            text,
            n_tokens=len(ids),
            n_reasoning_tokens=n_reasoning,
            finish_reason=stopper.reasons[row],
            seed=seed,
            reasoning=reasoning,
            final=final,
            intervention=self.intervention,
        )

    # -- scoring ------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return lm-eval's own scores, of the steered model.

        Positions: the context is the prompt, the continuation is what is generated.
        """
        self._scored = {}
        for _, context, continuation in requests:
            if len(context) + len(continuation) > self.max_length + 1:
                raise SpecError(
                    f"context and continuation of {len(context) + len(continuation)} tokens do not"
                    f" fit max_length {self.max_length}; they are never truncated"
                )
            key = tuple((context + continuation)[:-1])
            known = self._scored.setdefault(key, len(context))
            if known != len(context):
                self._scored[key] = None
        try:
            with self._steering:
                scores = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        finally:
            self._scored = {}
        self._steering.receipt.check_effect(self._plan)
        return scores

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Return the logits of right-padded rows, edited where they are real tokens."""
        if not self._scored:
            return super()._model_call(inps, attn_mask, labels)
        bounds = [self._row_bounds(row) for row in inps.tolist()]
        prompt_end = torch.tensor([end for end, _ in bounds], device=inps.device)
        length = torch.tensor([length for _, length in bounds], device=inps.device)
        self._steering.begin(torch.zeros_like(length), prompt_end, length)
        logits = super()._model_call(inps, attn_mask, labels)
        rows = [row[:n] for row, (_, n) in zip(inps.tolist(), bounds, strict=True)]
        ends = [end for end, _ in bounds]
        self._steering.check(
            [row[:end] for row, end in zip(rows, ends, strict=True)],
            [row[end:] for row, end in zip(rows, ends, strict=True)],
        )
        return logits

    def _row_bounds(self, row: list[int]) -> tuple[int, int]:
        """Return `(prompt length, length)` of a row; lm-eval pads with 0 and passes no mask."""
        length = len(row)
        while tuple(row[:length]) not in self._scored:
            if not length or row[length - 1] != 0:
                raise SpecError("a row that nobody asked to score reached the model")
            length -= 1
        context = self._scored[tuple(row[:length])]
        if context is None:
            if any(
                s.positions not in ("all", "thinking")
                for x in self._plan.layers
                for s in x.selectors
            ):
                raise SpecError(
                    "two requests score the same tokens with different contexts; positions that"
                    " depend on the prompt's length are ambiguous here, use `positions: all`"
                )
            context = length
        return min(context, length), length

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        longest = self.max_length
        if requests:
            _, context, continuation = requests[pos]
            longest = len(context) + len(continuation)
        return scoring_batch_size(self.config, self.device, longest, int(self.max_batch_size or 64))

    # -- what travels with results ------------------------------------------------------------

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Keep `--use_cache` apart by model, intervention and seed: its own key knows none."""
        super().set_cache_hook(cache_hook)
        self._cache_hook_db = cache_hook.dbdict
        self._separate_cache()

    def _separate_cache(self) -> None:
        database = getattr(self, "_cache_hook_db", None)
        if database is None:
            return
        table = f"sae_steered_{self._identity}_{self.intervention}_{self._seed}"
        database.conn.execute(
            f'CREATE TABLE IF NOT EXISTS "{table}" (key TEXT PRIMARY KEY, value BLOB)'
        )
        database.conn.commit()
        database.tablename = table

    def get_model_info(self) -> dict[str, Any]:
        """Return lm-eval's model info with the intervention, its fingerprint and its receipt."""
        return {
            **super().get_model_info(),
            "sae_steered": {
                "backend": "hf",
                "model": self._label,
                "model_identity": self._identity,
                "intervention": self.intervention,
                "name": self._plan.spec.name,
                "spec": self._plan.spec.model_dump(mode="json", exclude_none=True),
                "edits": self._plan.description,
                "median_norm": {str(x.hook_point): x.median_norm for x in self._plan.layers},
                "receipt": self._steering.receipt.as_dict(),
                "seed": self._seed,
                "versions": {name: _version(name) for name in _VERSIONS},
            },
        }


class _Job:
    """One response to make."""

    def __init__(
        self,
        index: int,
        prompt: str,
        gen_kwargs: dict[str, Any],
        ids: list[int],
        room: int,
        seed_key: str,
        repeat: int,
    ) -> None:
        self.index, self.prompt, self.gen_kwargs, self.ids = index, prompt, gen_kwargs, ids
        self.room, self.seed_key, self.repeat = room, seed_key, repeat


def _load_config(path: str, kwargs: Mapping[str, Any]) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(
            path,
            revision=kwargs.get("revision") or "main",
            trust_remote_code=bool(kwargs.get("trust_remote_code")),
        )
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ModelMismatchError(
            f"model '{path}' cannot be read: {first} Give a hub name that can be reached, a local"
            f" folder, or 'default'"
        ) from None


def _facts(label: str, config: Any) -> ModelFacts:
    text = config.get_text_config()
    return ModelFacts(name=label, d_model=text.hidden_size, n_layers=text.num_hidden_layers)


def _eos_ids(config: Any, tokenizer: Any) -> list[int]:
    ids = config.eos_token_id
    many = ids if isinstance(ids, list) else [ids]
    return sorted({i for i in (*many, tokenizer.eos_token_id) if i is not None})


def _stop_list(until: Any) -> list[str]:
    if until is None:
        return []
    return [until] if isinstance(until, str) else [stop for stop in until if stop]


def _rfind(ids: Sequence[int], part: Sequence[int]) -> int:
    """Return the last index at which `part` starts in `ids`, or -1."""
    for start in range(len(ids) - len(part), -1, -1):
        if list(ids[start : start + len(part)]) == list(part):
            return start
    return -1


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
