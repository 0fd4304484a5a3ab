"""The lm-eval task class of our plain benchmarks, and what the hint task shares with it."""

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from lm_eval.api.filter import Filter
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, mean_stderr
from lm_eval.api.task import ConfigurableTask

from harness_ext.corpora import Corpus, as_dataset, load_corpus
from harness_ext.errors import (
    HarnessError,
    LLMRequestError,
    TaskConfigError,
    for_command_line,
)
from harness_ext.generation import Generation, split_reasoning
from harness_ext.llm.task_hook import TaskLLM, error_if_known, mean_if_known, task_llm
from harness_ext.llm.verifier import verified_correct
from harness_ext.paths import tasks_dir
from harness_ext.plain_models import (
    plain_model,
    refuse_cut_prompts,
    refuse_dropped_reasoning,
    token_counter,
)
from harness_ext.prompts import render, with_options
from harness_ext.records import DIAG_KEY, Arm, Record, pack
from harness_ext.repeats import maj_at_ks
from harness_ext.stats import pass_at_k
from harness_ext.task_options import TaskOptions, read_options
from harness_ext.verifier import lenient_correct, score

log = logging.getLogger(__name__)
THINK_START = "<think>"


class KeepAll(Filter):
    """A filter that keeps every repeat; lm-eval's default keeps the first."""

    def apply(self, resps: Any, docs: list[dict]) -> Any:
        """Return the responses unchanged."""
        return resps


class SteerTask(ConfigurableTask):
    """A benchmark of questions with a checkable answer, each asked `repeats` times.

    Metrics, each averaged over the samples of a question first: `exact_match` (the final text
    after the reasoning), `exact_match_lenient` (the whole response, cut or not), `no_answer`,
    and, where the model says how a response ended and how long it is, `truncation`, `n_tokens`,
    `n_reasoning_tokens`, `n_answer_tokens`. With repeats also `mean@n`, `pass@k` (unbiased) and
    `maj@k` (mean over all choices of k samples). With `verifier=llm` also `exact_match_verified`.
    """

    options: TaskOptions
    corpus: Corpus
    llm: TaskLLM | None
    count_tokens: Callable[[str], int] | None = None

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        """Build the task from its YAML.

        Raises:
            TaskConfigError: `metadata` holds a value of the wrong type or an unknown style.
            LLMConfigError: Verifier or judge is on, without model, endpoint or key.
            DataNotFoundError: The questions are not there.
            DataError: The questions cannot be understood.
        """
        try:
            self._build(deepcopy({k: v for k, v in (config or {}).items() if k != "class"}))
        except HarnessError as err:
            raise for_command_line(err) from None

    def _build(self, cfg: dict[str, Any]) -> None:
        self.options = read_options(cfg)
        self.llm = task_llm(str(cfg.get("task")), cfg.get("metadata"))
        cfg["metadata"] = {"version": 1.0, **(cfg.get("metadata") or {})}
        cfg["repeats"] = self.options.repeats
        cfg.setdefault("metric_list", [])
        cfg.setdefault("test_split", "test")
        cfg.setdefault("num_fewshot", 0)
        cfg.setdefault("filter_list", [{"name": "none", "filter": [{"function": KeepAll}]}])
        generation = cfg.setdefault("generation_kwargs", {})
        # lm-eval's default stop is a blank line, which would cut the reasoning.
        generation.setdefault("until", [])
        if self.options.repeats > 1 and not generation.get("do_sample"):
            log.warning(
                "%s: repeats=%d with greedy decoding gives equal samples; "
                "set do_sample=true and a temperature in --gen_kwargs",
                cfg.get("task"),
                self.options.repeats,
            )
        super().__init__(config=cfg)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Load the questions and write their source and digest into the task's metadata."""
        self.corpus = load_corpus(
            self.options.benchmark,
            self.options.data_path,
            choice_seed=self.options.choice_seed,
        )
        bench = self.corpus.benchmark
        if bench.rows is not None and len(self.corpus.rows) != bench.rows:
            log.warning(
                "%s: %d questions, the full set has %d (source %s)",
                self.config.task,
                len(self.corpus.rows),
                bench.rows,
                self.corpus.source,
            )
        self.dataset = as_dataset(self.corpus)
        self.config.metadata = {
            **(self.config.metadata or {}),
            "data_source": _public(self.corpus.source),
            "data_sha256": self.corpus.sha256,
        }

    def build_all_requests(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Build the requests, and say where the call departs from the published protocol.

        Raises:
            LLMRequestError: Verifier or judge is on, and its endpoint does not answer.
            TaskConfigError: lm-eval's cache of requests is on (its key holds neither prompt
                style nor hint seed nor data, so it would return prompts of another run), or one
                of lm-eval's own models would drop the reasoning or cut a prompt.
        """
        if kwargs.get("cache_requests"):
            raise for_command_line(
                TaskConfigError(
                    f"{self.task_name}: --cache_requests would return the prompts of another "
                    "prompt_style, hint_seed or data_path; leave it out"
                )
            )
        if not kwargs.get("apply_chat_template"):
            log.warning(
                "%s: no chat template; R1-like and instruct models need --apply_chat_template",
                self.task_name,
            )
        if kwargs.get("system_instruction"):
            log.warning("%s: a system prompt is set; DeepSeek-R1 is run without", self.task_name)
        if self.llm is not None:
            try:
                self.llm.check()
            except LLMRequestError as err:
                raise for_command_line(err) from None
        try:
            model = plain_model(kwargs.get("chat_template"))
            refuse_dropped_reasoning(model, self.task_name)
            self.count_tokens = token_counter(model)
            super().build_all_requests(**kwargs)
            prompts = [instance.args[0] for instance in self.instances]
            refuse_cut_prompts(model, prompts, self.config.generation_kwargs or {}, self.task_name)
        except TaskConfigError as err:
            raise for_command_line(err) from None

    def doc_to_text(self, doc: dict, doc_to_text: Any = None) -> str:
        """Return the user message of a question."""
        return render(
            doc["question"], style=self.options.prompt_style, options=doc.get("choices") or ()
        )

    def doc_to_target(self, doc: Any, doc_to_target: Any = None) -> str:
        """Return the gold answer."""
        return doc["answer"]

    def apply_filters(self) -> list[Instance] | None:
        """Apply the filters; with verifier or judge on, ask about all responses at once."""
        instances = super().apply_filters()
        if self.llm is not None and "bypass" not in self._metric_fn_list:
            self.llm.prefetch(self)
        return instances

    def with_verdicts(self, records: list[Record]) -> list[Record]:
        """Return the records of a question, with what an LLM said where one is asked."""
        return records if self.llm is None else self.llm.with_verdicts(records)

    def process_results(self, doc: dict, results: Sequence) -> dict[str, Any]:
        """Return the metrics of a question and leave its records in `doc["_diag"]`.

        Args:
            doc: the question.
            results: one list of responses (plain `str` or `Generation`).
        """
        if "bypass" in self._metric_fn_list:  # lm_eval --predict_only
            return {"bypass": 0}
        responses = _responses(results[0])
        records = self.with_verdicts(
            [self.record(doc, text, sample=i) for i, text in enumerate(responses)]
        )
        doc[DIAG_KEY] = {
            "records": [pack(r, str(t), 0) for r, t in zip(records, responses, strict=True)]
        }
        values: dict[str, list[float | None]] = {
            "exact_match": [r.correct for r in records],
            "exact_match_lenient": [r.correct_lenient for r in records],
            "no_answer": [r.status == "no_answer" for r in records],
            "truncation": [r.status == "truncated" if r.ending_known else None for r in records],
            "n_tokens": [r.n_tokens for r in records],
            "n_reasoning_tokens": [r.n_reasoning_tokens for r in records],
            "n_answer_tokens": [
                r.n_tokens - r.n_reasoning_tokens
                if r.n_tokens is not None and r.n_reasoning_tokens is not None
                else None
                for r in records
            ],
        }
        # What the model does not tell is left out, not counted as zero.
        means = {
            name: sum(float(v) for v in known) / len(known)
            for name, column in values.items()
            if (known := [v for v in column if v is not None])
        }
        return {**means, **self._repeated(records), **self._verified(records)}

    def _verified(self, records: Sequence[Record]) -> dict[str, float | None]:
        """Return `exact_match_verified` where the verifier is on; None without its verdicts.

        It comes a second time as `_stderr`: lm-eval makes no error for an aggregation of ours.
        """
        if self.llm is None or not self.llm.verifier:
            return {}
        value = None
        if self.llm.failed is None:
            value = sum(map(verified_correct, records)) / len(records)
        return {"exact_match_verified": value, "exact_match_verified_stderr": value}

    def _repeated(self, records: Sequence[Record]) -> dict[str, float]:
        """Return what several samples of a question say together, {} for one sample."""
        n = len(records)
        if n < 2:
            return {}
        right = sum(record.correct for record in records)
        out: dict[str, float | None] = {f"mean@{n}": right / n}
        for k, majority in maj_at_ks(records, self.options.ks()).items():
            out[f"pass@{k}"] = pass_at_k(n, right, k)
            out[f"maj@{k}"] = majority
        return {name: value for name, value in out.items() if value is not None}

    def record(
        self,
        doc: dict,
        text: str,
        *,
        sample: int = 0,
        arm: Arm = "none",
        hint_id: str | None = None,
        hint_sign: Any = None,
        hint_target: str | None = None,
    ) -> Record:
        """Return the scored record of one response.

        Args:
            doc: the question.
            text: the response, `Generation` or plain.
            sample: index of the repeat.
            arm: `none`, `hint` or `placebo`.
            hint_id: template of the hint or placebo.
            hint_sign: `correct` or `wrong` in the hint arm.
            hint_target: the hinted answer in the hint arm.
        """
        kind, options = self.corpus.benchmark.kind, doc.get("choices") or None
        meta: dict[str, Any] = {}
        if isinstance(text, Generation):
            reasoning, final = text.reasoning, text.final
            truncated = text.finish_reason == "length"
            meta = {
                "n_tokens": text.n_tokens,
                "n_reasoning_tokens": text.n_reasoning_tokens,
                "finish_reason": text.finish_reason,
                "intervention": text.intervention,
                "seed": text.seed,
            }
        else:
            opened = self._prompt_opens_reasoning() or THINK_START in text
            reasoning, final = split_reasoning(
                text, think_end=self.options.think_end, opened=opened
            )
            # A plain string does not say how it ended; reasoning that never closed was cut.
            truncated = opened and self.options.think_end not in text
            if self.count_tokens is not None:
                before = text[: len(text) - len(final)]
                meta = {
                    "n_tokens": self.count_tokens(text),
                    "n_reasoning_tokens": self.count_tokens(before),
                }
        scored = score(final, doc["answer"], kind=kind, truncated=truncated, options=options)
        return Record(
            task=self.task_name,
            qid=doc["qid"],
            arm=arm,
            hint_id=hint_id,
            hint_sign=hint_sign,
            hint_target=hint_target,
            gold=doc["answer"],
            answer=scored.answer,
            status=scored.status,
            correct=scored.correct,
            how=scored.how,
            correct_lenient=lenient_correct(str(text), doc["answer"], kind=kind, options=options),
            reasoning=reasoning,
            final=final,
            sample=sample,
            question=with_options(doc["question"], options or ()),
            level=doc.get("level"),
            n_choices=len(options) if options else None,
            **meta,
        )

    def _prompt_opens_reasoning(self) -> bool:
        """Return whether the chat template put an opening delimiter at the end of the prompt."""
        instances: list[Instance] = self._instances or []
        return bool(instances) and instances[0].args[0].rstrip().endswith(THINK_START)

    def aggregation(self) -> dict[str, Callable]:
        """Return the aggregation of each metric: the mean over questions."""
        own: dict[str, Callable] = dict.fromkeys(self.metric_names(), mean)
        own["exact_match_verified"] = mean_if_known
        own["exact_match_verified_stderr"] = error_if_known(mean_stderr)
        return {**own, **super().aggregation()}

    def higher_is_better(self) -> dict[str, bool | None]:
        """Return the direction of each metric, None where neither is good as such."""
        own: dict[str, bool | None] = {
            "exact_match": True,
            "exact_match_lenient": True,
            "no_answer": False,
            "truncation": False,
            "n_tokens": None,
            "n_reasoning_tokens": None,
            "n_answer_tokens": None,
        }
        if self.llm is not None and self.llm.verifier:
            own["exact_match_verified"] = True
        if self.options.repeats > 1:
            own[f"mean@{self.options.repeats}"] = True
            own |= {f"{name}@{k}": True for k in self.options.ks() for name in ("pass", "maj")}
        return {**own, **super().higher_is_better()}

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of all metrics that the task can report."""
        return tuple(SteerTask.higher_is_better(self))


def _responses(result: Any) -> list[str]:
    return [result] if isinstance(result, str) else list(result)


def _public(source: str) -> str:
    """Return where data comes from; files of this package without where it is installed."""
    path = Path(source)
    inside = path.is_absolute() and path.is_relative_to(tasks_dir())
    return str(Path("tasks") / path.relative_to(tasks_dir())) if inside else source
