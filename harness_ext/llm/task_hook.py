"""Verifier and judge in an lm-eval run: all responses of a task are asked about in one batch.

lm-eval scores one question at a time, and only after it has all responses. So a task makes its
records twice: once for all questions when lm-eval applies its filters, to collect what is to be
asked, and once for each question, to score it with the verdicts at hand.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness_ext.errors import LLMConfigError, LLMRequestError, TaskConfigError
from harness_ext.llm.judge import judge
from harness_ext.llm.prompts import LLMReply, first_ask, load_prompt
from harness_ext.llm.session import Usage, run_batch
from harness_ext.llm.settings import MODEL_ENV, OPENROUTER_ENV, LLMSettings, read_settings
from harness_ext.llm.verifier import verify
from harness_ext.records import Record

log = logging.getLogger(__name__)
_SECRETS = ("llm_api_key", "verifier_api_key", "judge_api_key", "openrouter_api_key")


class LLMOptions(BaseModel):
    """What a task reads from its `metadata` about verifier and judge.

    Attributes:
        verifier: `llm`, or `none`; by default `llm` where both `OPENROUTER_API_KEY` and
            `PROCESSOR` are set, which is how the seed project switches its verifier on.
        judge: `llm`, or `none`, the default.
        llm_model: name of the model, else `PROCESSOR`.
        llm_base_url: OpenAI-compatible base URL, else as in `settings.read_settings`.
        llm_api_key_env: environment variable of the key, if it is another.
        llm_concurrency: requests at once.
        llm_timeout: seconds for one try.
        llm_tries: tries of one request.
        llm_max_tokens: tokens of a reply.
        llm_max_chars: characters of a response that are shown.
        llm_cache: folder of the replies.
    """

    # lm-eval mixes the arguments of the model into metadata, so unknown keys are expected.
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    verifier: Literal["llm", "none"] | None = None
    judge: Literal["llm", "none"] = "none"
    llm_model: str | None = None
    llm_base_url: str | None = None
    llm_api_key_env: str | None = None
    llm_concurrency: int | None = None
    llm_timeout: float | None = None
    llm_tries: int | None = None
    llm_max_tokens: int | None = None
    llm_max_chars: int | None = None
    llm_cache: Path | None = None


class TaskLLM:
    """The verdicts of one task's responses.

    Attributes:
        verifier: whether the verifier is on.
        judge: whether the judge is on.
        failed: what ended the batch before its end, None where nothing did.
    """

    def __init__(self, settings: LLMSettings, *, verifier: bool, judge: bool) -> None:
        self.settings = settings
        self.verifier = verifier
        self.judge = judge
        self.failed: str | None = None
        self._collected: list[Record] | None = None
        self._verdicts: dict[tuple, Record] = {}

    def check(self) -> None:
        """Ask one small question, so that a wrong key or model ends the run before it generates.

        It is kept on disk like every other, so it is sent once.

        Raises:
            LLMRequestError: The endpoint refused the request, or did not answer it.
        """
        ask = first_ask(load_prompt("verifier"), {"response_end": ""}, LLMReply)
        run_batch(
            self.settings, [lambda session: session.ask(ask)], label="LLM check", progress=False
        )

    def prefetch(self, task: Any) -> None:
        """Ask about all responses of a task, once its filters have been applied.

        An error of the endpoint does not throw the run's responses away: it is logged, the
        metrics that need verdicts are undefined, and `sae-steered judge` can finish the work.
        """
        by_doc: dict[Any, list[Any]] = {}
        for instance in task.instances:
            by_doc.setdefault(instance.doc_id, []).append(instance)
        self._verdicts = {}
        for name in task.instances[0].filtered_resps if task.instances else ():
            self._collected = []
            try:
                for group in by_doc.values():
                    group.sort(key=lambda instance: instance.idx)
                    task.process_results(
                        deepcopy(group[0].doc), [one.filtered_resps[name] for one in group]
                    )
                records = self._collected
            finally:
                self._collected = None
            self._ask(records, task.task_name)

    def _ask(self, records: Sequence[Record], label: str) -> None:
        usage = Usage()
        try:
            if self.verifier:
                records, cost = verify(records, self.settings, label=f"{label}: LLM verifier")
                usage += cost
            if self.judge:
                records, cost = judge(records, self.settings, label=f"{label}: LLM judge")
                usage += cost
        except LLMRequestError as err:
            self.failed = str(err)
            log.error(
                "%s: no verdicts, and the metrics that need them are undefined (%s). "
                "`sae-steered judge` on the logged samples goes on from here.", label, err
            )  # fmt: skip
            return
        self._verdicts |= {_key(record): record for record in records}
        log.info("%s: %s: %s", label, self.settings.name, usage)

    def with_verdicts(self, records: list[Record]) -> list[Record]:
        """Return the records of a question with their verdicts, once they have been asked for."""
        if self._collected is not None:
            self._collected += records
            return records
        return [self._verdicts.get(_key(record), record) for record in records]


def _key(record: Record) -> tuple:
    return (record.qid, record.arm_name, record.hint_id, record.sample, record.final)


def task_llm(
    task: str, metadata: Mapping[str, Any] | None, env: Mapping[str, str] | None = None
) -> TaskLLM | None:
    """Return what asks an LLM about the responses of a task, None where that is off.

    Args:
        task: its name, for messages.
        metadata: as lm-eval gives it to the task.
        env: the environment, by default the process's own.

    Raises:
        TaskConfigError: A key has a wrong value, or holds a secret: lm-eval writes metadata into
            its results.
        LLMConfigError: It is on, and there is no model, no endpoint or no key.
    """
    env = os.environ if env is None else env
    metadata = metadata or {}
    for name in _SECRETS:
        if name in metadata:
            raise TaskConfigError(
                f"{task}: metadata is written into the results; take {name!r} out, and set "
                f"{OPENROUTER_ENV} or OPENAI_API_KEY"
            )
    # `verifier=None` on lm-eval's command line is Python's None.
    switches = ("verifier", "judge")
    given = {k: "none" if k in switches and v is None else v for k, v in metadata.items()}
    try:
        options = LLMOptions.model_validate(given)
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise TaskConfigError(f"{task}: metadata key {key!r}: {first['msg']}") from None
    as_the_seed = bool(env.get(OPENROUTER_ENV) and env.get(MODEL_ENV))
    verifier = options.verifier == "llm" or (options.verifier is None and as_the_seed)
    if not (verifier or options.judge == "llm"):
        return None
    try:
        settings = read_settings(
            model=options.llm_model,
            base_url=options.llm_base_url,
            api_key_env=options.llm_api_key_env,
            cache=options.llm_cache,
            env=env,
            concurrency=options.llm_concurrency,
            timeout_s=options.llm_timeout,
            tries=options.llm_tries,
            max_tokens=options.llm_max_tokens,
            max_chars=options.llm_max_chars,
        )
    except LLMConfigError as err:
        raise LLMConfigError(f"{task}: {err}") from None
    log.info(
        "%s: %s is asked%s; its texts leave this machine", task, settings.name,
        "" if options.verifier else f" ({OPENROUTER_ENV} and {MODEL_ENV} are set)",
    )  # fmt: skip
    return TaskLLM(settings, verifier=verifier, judge=options.judge == "llm")


def mean_if_known(values: Sequence[float | None]) -> float | None:
    """Return the mean, None where a value is missing: a part of the verdicts is no metric."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def error_if_known(stderr: Callable[[Sequence[float]], float]) -> Callable:
    """Return an aggregation: `stderr` of the values, "N/A" where one is missing."""

    def error(values: Sequence[float | None]) -> float | str:
        known = [value for value in values if value is not None]
        return stderr(known) if len(known) == len(values) > 1 else "N/A"

    return error
