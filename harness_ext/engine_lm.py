"""What lm-eval models over an engine are made of: engine, intervention, receipt, results."""

import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from lm_eval.api.model import TemplateLM

from harness_ext.engine import Engine, whole
from harness_ext.generate_hf import tokenizer_digest
from harness_ext.journal_work import JournalUse
from harness_ext.steered_lm import BASELINE, Rows, SteeredLM, fingerprint, warn
from harness_ext.stopping import Delimiters
from interventions.backends.hf import token_facts
from interventions.backends.vllm.compiled import declared_index
from interventions.backends.vllm.ledger import check_request
from interventions.editor import EditCounts
from interventions.errors import ModelMismatchError
from interventions.plan import ModelFacts, Plan, make_plan
from interventions.receipt import Receipt, TokenFacts
from interventions.spec import InterventionSpec

logger = logging.getLogger(__name__)


@dataclass
class Armed:
    """An intervention that the engine takes, and what its requests accounted for.

    Attributes:
        plan: with identity and median norms.
        fingerprint: 'none' where nothing is edited.
        wire: what a request says of it.
        tokens: special tokens that its positions need.
        receipt: of all requests so far.
        cached: tokens of their prompts that came from the cache.
    """

    plan: Plan
    fingerprint: str
    wire: Mapping[str, Any]
    tokens: TokenFacts
    receipt: Receipt = field(default_factory=Receipt)
    cached: int = 0


class EngineLM(SteeredLM):
    """A language model that an engine runs; `model_engine` makes it generate and score."""

    _armed: Armed
    _each: Sequence[Armed] | None = None

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
        self._seed, self._delimiters = whole("seed", seed, None), delimiters
        auto = str(batch_size).startswith("auto")
        self.batch_size_per_gpu = "auto" if auto else whole("batch_size", batch_size)
        self._max_gen_toks = whole("max_gen_toks", max_gen_toks)
        self.add_bos_token = add_bos_token
        self.custom_prefix_token_id = prefix_token_id
        self.chat_template_args = dict(chat_template_args or {})
        self.enable_thinking = enable_thinking  # read by lm-eval before it scores
        if enable_thinking is not None:
            self.chat_template_args["enable_thinking"] = enable_thinking
        self.backend = "causal"
        self._rank, self._world_size = 0, 1
        longest = engine.max_length if max_length is None else whole("max_length", max_length)
        self._max_length = min(longest, engine.max_length)
        self._run = uuid.uuid4().hex[:12]
        self._n_requests = 0
        self._journal.describe(
            {"backend": self.backend_name, "model": self._label, **engine.facts},
            lambda: f"{self._identity}-{tokenizer_digest(self.tokenizer)}{engine.variant}",
        )
        self._use(plan)

    # -- intervention -------------------------------------------------------------------------

    def check(self, spec: InterventionSpec | Mapping[str, Any] | str) -> Plan:
        """Return the plan of a spec that `set_intervention` would take.

        Raises:
            interventions.errors.SteeringError: it would not.
        """
        return self._prepare(super().check(spec)).plan

    def prepare(self, plan: Plan) -> Plan:
        """Return a plan with the identity of this model and the medians its guard needs.

        Raises:
            interventions.errors.SteeringError: the engine would refuse it.
        """
        return self._prepare(plan).plan

    @property
    def intervention(self) -> str:
        """Fingerprint of the intervention in force, model included; 'none' if nothing is edited."""
        return self._armed.fingerprint

    def close(self) -> None:
        """Stop the engine, if it is ours; the model is of no use afterwards."""
        self._engine.close()

    def _prepare(self, plan: Plan) -> Armed:
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
        tokens = token_facts(self.tokenizer, plan.spec, needs_thinking=plan.needs_thinking)
        return Armed(plan, fingerprint(plan), wire, tokens)

    def _use(self, plan: Plan) -> None:
        armed = self._prepare(plan)
        warn(armed.plan)
        self._armed, self._plan = armed, armed.plan

    def answer_rows(self, kind: str, rows: Rows) -> list[list[Any]]:
        """Return the answers to the requests of several interventions, row by row.

        All are in the engine's queue together: first the first request of every row, then the
        second. Each is checked against its own intervention's receipt.

        Raises:
            SpecError: lm-eval's own response cache is on; it holds one intervention at a time.
            interventions.errors.SteeringError: the engine does not take a plan, or a request was
                not edited as its tokens demand.
        """
        self._refuse_cache()
        armed: dict[str, Armed] = {}
        keys = [plan.fingerprint if plan else "none" for plan, _ in rows]
        for key, (plan, _) in zip(keys, rows, strict=True):
            if key not in armed:
                armed[key] = self._prepare(plan or make_plan(BASELINE, self._facts))
        places = [
            (i, n) for i in range(max(len(r) for _, r in rows)) for n in range(len(rows))
            if i < len(rows[n][1])
        ]  # fmt: skip
        self._each = [armed[keys[n]] for _, n in places]
        try:
            found = getattr(self, kind)([rows[n][1][i] for i, n in places])
        finally:
            self._each = None
        answers: list[list[Any]] = [[] for _ in rows]
        for (_, n), answer in zip(places, found, strict=True):
            answers[n].append(answer)
        return answers

    def _armed_for(self, index: int) -> Armed:
        """Return the intervention of a request."""
        return self._armed if self._each is None else self._each[index]

    def _steering(
        self, armed: Armed, prompt_len: int | None = None
    ) -> tuple[str, dict[str, Any] | None]:
        """Return a new tag, and what a request says of the intervention."""
        self._n_requests += 1
        tag = f"{self._run}-{self._n_requests}"
        if not armed.plan.layers:
            return tag, None
        more = {} if prompt_len is None else {"prompt_len": prompt_len}
        return tag, {"spec": armed.wire, "tag": tag, **more}

    def _receipts(self, asked: Iterable[tuple[Armed, str]]) -> list[dict[str, Any]]:
        """Return what the engine accounts for some requests; unsteered ones have no account."""
        tags = [tag for armed, tag in asked if armed.plan.layers]
        return self._engine.receipts(tags) if tags else []

    def _check(
        self,
        armed: Armed,
        receipts: Sequence[Mapping[str, Any]],
        tag: str,
        prompt: Sequence[int],
        ids: Sequence[int],
        cached: int | None,
    ) -> list[EditCounts]:
        """Return what was counted for a request, by edit, once its account is checked."""
        if not armed.plan.layers:
            return []
        if cached is None:
            cached = _first_row(receipts, tag, len(prompt))
        counts, expected = check_request(
            armed.plan,
            self._engine.points,
            receipts,
            tag,
            prompt=prompt,
            generated=ids,
            cached=cached,
            tokens=armed.tokens,
        )
        armed.receipt.add(counts, expected, 1)
        armed.cached += cached
        return counts

    def _check_effects(self) -> None:
        """Return nothing if every edit that was asked for touched a token.

        Raises:
            ReceiptError: one touched none.
        """
        for armed in {id(one): one for one in self._each or [self._armed]}.values():
            armed.receipt.check_effect(armed.plan)

    # -- what travels with results ------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Tokens of prompt and response together."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens of a response where the task names no budget."""
        return self._max_gen_toks

    def _cache_settings(self) -> list[Any]:
        return [self.backend_name, self._identity + self._engine.variant]

    def facts(self) -> dict[str, Any]:
        """Return plain data on the model, its journal and what runs it."""
        return {**super().facts(), "engine": dict(self._engine.facts)}

    def get_model_info(self) -> dict[str, Any]:
        """Return the intervention, its fingerprint and its receipt, for lm-eval's results."""
        receipt = {**self._armed.receipt.as_dict(), "cached_tokens": self._armed.cached}
        return {"sae_steered": self._steered_info(receipt)}


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
