"""`backend=hf`: lm-eval's Hugging Face model, steered, with a receipt."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from torch import Tensor
from tqdm import tqdm

from harness_ext.batching import generation_batch_size, scoring_batch_size
from harness_ext.generate_hf import Generator, tokenizer_digest
from harness_ext.hf_config import eos_ids, has_rotary_positions, load_config, model_facts, versions
from harness_ext.journal import Entry
from harness_ext.journal_work import JournalUse
from harness_ext.requests import Decoding, Job, make_jobs, parse_decoding, refuse_cached_repeats
from harness_ext.score_hf import Scorer
from harness_ext.scored_rows import ScoredRows, refuse_unknown_context
from harness_ext.steered_lm import BASELINE, SteeredLM, warn
from harness_ext.stopping import Delimiters
from interventions.backends.hf import HFSteering, measure_median_norms, token_facts
from interventions.default_model import resolve_pretrained
from interventions.errors import ModelMismatchError
from interventions.fingerprint import weights_digest
from interventions.plan import Plan, make_plan
from interventions.spec import InterventionSpec
from interventions.spec_io import spec_from_args

logger = logging.getLogger(__name__)


class SteeredHF(SteeredLM):
    """A Hugging Face causal language model, steered while it scores and generates.

    Differences from lm-eval's `hf`, beside steering: prompts are never truncated; stop strings
    hold for the answer and never cut the reasoning; responses keep their reasoning and carry
    metadata (`harness_ext.generation.Generation`); sampling is seeded per response, so a row does
    not depend on its batch; `--use_cache` is kept apart by model and intervention.
    """

    backend_name = "hf"

    def __init__(
        self,
        pretrained: str | transformers.PreTrainedModel = "default",
        *,
        spec: str | Mapping[str, Any] | InterventionSpec | None = None,
        edits: Any = None,
        journal: str | os.PathLike[str] | None = None,
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
            journal: folder that keeps responses; what is in it already is not made again.
            seed: base of every response's sampling seed.
            think_start_token: text that opens the reasoning.
            think_end_token: text, or token id, that closes it; `</think>` if None.
            enable_thinking: passed to the chat template.
            chat_template_args: passed to the chat template.
            batch_size: rows at a time; `auto` fits them to memory.
            device: torch device; None is the GPU if there is one.
            **kwargs: `sae_*` arguments, and all that lm-eval's `hf` takes.

        Raises:
            interventions.errors.SteeringError: a spec that does not fit the model; before its
                weights are loaded.
            JournalError: the journal cannot be opened.
        """
        inline = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("sae_")}
        wanted = spec_from_args({"spec": spec, "edits": edits, **inline}) or BASELINE
        self._label = str(pretrained)
        if isinstance(pretrained, str):
            resolved = resolve_pretrained(pretrained)
            pretrained, self._label = resolved.path, resolved.label
            config = load_config(pretrained, kwargs)
        else:
            config = pretrained.config
            self._label = config.name_or_path or type(pretrained).__name__
        self._facts = model_facts(self._label, config)
        plan = make_plan(wanted, self._facts)
        self._journal = JournalUse(journal)
        if enable_thinking is not None:
            chat_template_args = {**(chat_template_args or {}), "enable_thinking": enable_thinking}
        super().__init__(
            pretrained=pretrained,
            batch_size=batch_size or "auto",
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            chat_template_args=chat_template_args,
            **kwargs,
        )
        shared = getattr(self, "accelerator", None)
        if shared is not None and self._world_size == 1:
            # lm-eval shares work out among processes on several GPUs only; without this, each
            # process of a CPU launch answers every question.
            self._rank, self._world_size = shared.process_index, shared.num_processes
        if self.backend != "causal":
            raise ModelMismatchError(f"{self._label} is not a decoder-only model; not supported")
        if isinstance(think_end_token, int) or str(think_end_token).isdigit():
            think_end_token = self.tokenizer.decode([int(str(think_end_token))])
        self._delimiters = Delimiters(think_start_token, str(think_end_token or "</think>"))
        self._seed = seed
        self._scored: ScoredRows | None = None
        self._absolute_positions = not has_rotary_positions(self.model)
        self._identity = weights_digest(self.model)
        self._journal.describe(
            {"backend": "hf", "model": self._label, "device": self.device.type, **versions()},
            lambda: f"{self._identity}-{tokenizer_digest(self.tokenizer)}",
        )
        self._use(plan)

    def prepare(self, plan: Plan) -> Plan:
        """Return a plan with the identity of this model and the medians its guard needs."""
        plan = plan.with_identity(self._identity)
        if plan.missing_medians:
            norms = measure_median_norms(self.model, self.tokenizer, plan.missing_medians)
            logger.info("median residual norms, measured: %s", dict(norms))
            plan = plan.with_median_norms(norms)
        return plan

    def _use(self, plan: Plan) -> None:
        plan = self.prepare(plan)
        warn(plan)
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
            total=len(jobs),
            disable=disable_tqdm or self.rank != 0,
            desc=f"Generating [{self._plan.spec.name}]",
        )
        generator = self._generator()

        def deliver(job: Job, entry: Entry) -> None:
            assert isinstance(entry.response, str)
            results[job.index] = entry.response
            self.cache_hook.add_partial(
                "generate_until", (job.prompt, job.gen_kwargs), entry.response
            )
            bar.update()

        def resume(job: Job, entries: list[Entry]) -> None:
            self._steering.receipt.resume(entries[0].counts)
            deliver(job, entries[0])

        with self._steering:
            for key, group in groups.items():
                decoding = decodings[key]
                group.sort(key=lambda job: (-len(job.ids), job.prompt))
                with self._journal.work(group, generator.keys_of(decoding), resume) as work:
                    while batch := work.take(lambda left, d=decoding: self._rows_of(left, d)):
                        entries = self._generate_batch(batch, decoding)
                        work.finish(batch, [[entry] for entry in entries])
                        for job, entry in zip(batch, entries, strict=True):
                            deliver(job, entry)
        bar.close()
        self._journal.settle()
        self._steering.receipt.check_effect(self._plan)
        return results

    def _encode_prompt(self, prompt: str) -> list[int]:
        # The batch encoder: lm-eval's rules for a prompt that begins with BOS, one row at a time.
        return self.tok_batch_encode([prompt])[0][0].tolist()

    def _decoding(self, gen_kwargs: Mapping[str, Any]) -> Decoding:
        config = self.model.generation_config
        assert config is not None
        return parse_decoding(
            gen_kwargs,
            config,
            max_gen_toks=self.max_gen_toks,
            seed=self._seed,
            eos_ids=eos_ids(config, self.tokenizer),
            pad_id=self.tokenizer.pad_token_id,
        )

    def _rows_of(self, group: Sequence[Job], decoding: Decoding) -> int:
        length = len(group[0].ids) + group[0].budget(decoding.max_new_tokens)
        if self.batch_size != "auto":
            size = int(self.batch_size)
        else:
            most = int(self.max_batch_size or 64)
            size = generation_batch_size(self.config, self.model.dtype, self.device, length, most)
        if self._absolute_positions:
            # A row that has ended is still fed, at growing positions, until the last one ends.
            # Rotary positions may grow past the model's length there; a learned table may not.
            room = group[0].room
            while (
                size > 1 and max(job.budget(decoding.max_new_tokens) for job in group[:size]) > room
            ):
                size -= 1
        return size

    def _generator(self) -> Generator:
        return Generator(
            model=self.model,
            tokenizer=self.tokenizer,
            identity=self._journal.identity,
            steering=self._steering,
            intervention=self.intervention,
            delimiters=self._delimiters,
            device=self.device,
            autocast=self.mixed_precision_dtype,
        )

    def _generate_batch(self, batch: Sequence[Job], decoding: Decoding) -> list[Entry]:
        return self._generator().run(batch, decoding)

    # -- scoring ------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return lm-eval's own scores, of the steered model.

        Positions: the context is the prompt, the continuation is what is generated.

        Raises:
            SpecError: a row does not fit the model; it is never truncated.
            ReceiptError: a batch was not edited as its tokens demand.
        """
        self._scored = ScoredRows(requests, self.max_length, self._label)
        try:
            with self._steering:
                if self._journal.opened is None:
                    scores = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
                else:
                    scores = self._scorer(override_bs).run(requests, self._scored, self._keep_score)
        finally:
            self._scored = None
        self._journal.settle()
        self._steering.receipt.check_effect(self._plan)
        return scores

    def _scorer(self, override_bs: int | None) -> Scorer:
        def size(longest: int) -> int:
            if self.batch_size != "auto":
                return int(self.batch_size)
            most = int(self.max_batch_size or 64)
            return override_bs or scoring_batch_size(self.config, self.device, longest, most)

        assert self._journal.opened is not None
        return Scorer(
            work=self._journal.work,
            identity=self._journal.identity,
            intervention=self.intervention,
            dtypes=[str(self.softmax_dtype), str(self.mixed_precision_dtype)],
            grouped=bool(self.logits_cache),
            score=lambda rows, n: super(SteeredHF, self)._loglikelihood_tokens(rows, True, n),
            size=size,
            receipt=self._steering.receipt,
        )

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Return the logits of right-padded rows, edited where they are real tokens."""
        if self._scored is None:
            return super()._model_call(inps, attn_mask, labels)
        rows, prompts, fed, ends = inps.tolist(), [], [], []
        for row in rows:
            context, length = self._scored.bounds(row)
            if context is None:
                refuse_unknown_context(self._plan)
                context = length
            prompts.append(row[:context])
            fed.append(row[context:length])
            ends.append((context, length))
        prompt_end, end = torch.tensor(ends, device=inps.device).T
        self._steering.begin(torch.zeros_like(end), prompt_end, end)
        logits = super()._model_call(inps, attn_mask, labels)
        counts = self._steering.check(prompts, fed)
        self._scored.keep_counts(prompts, fed, counts)
        return logits

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        longest = self.max_length
        if requests:
            _, context, continuation = requests[pos]
            longest = len(context) + len(continuation)
        return scoring_batch_size(self.config, self.device, longest, int(self.max_batch_size or 64))

    # -- what travels with results ------------------------------------------------------------

    def _keep_score(self, request: Any, score: tuple[float, bool]) -> None:
        if request is not None:  # a window of a rolling score
            self.cache_hook.add_partial("loglikelihood", request, score)

    def facts(self) -> dict[str, Any]:
        """Return plain data on the model, its journal and what runs it."""
        run_by = {"dtype": str(self.model.dtype), "device": self.device.type}
        return {**super().facts(), "versions": versions(), "engine": run_by}

    def get_model_info(self) -> dict[str, Any]:
        """Return lm-eval's model info with the intervention, its fingerprint and its receipt."""
        told = self._steered_info(self._steering.receipt.as_dict())
        return {**super().get_model_info(), "sae_steered": told}
