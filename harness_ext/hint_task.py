"""The paired hint task: every question in four arms, in one lm-eval run."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from harness_ext.choices import LETTERS
from harness_ext.counts import EXCLUSIONS, count_question
from harness_ext.detectors import DETECTORS
from harness_ext.errors import HintError
from harness_ext.hints import (
    Hint,
    HintTemplate,
    as_transcript,
    family,
    make_hint,
    with_earlier_turns,
)
from harness_ext.metrics import METRICS, Metric
from harness_ext.prompts import render, with_options
from harness_ext.records import DIAG_KEY, Record, base_answers, pack, read_records
from harness_ext.steer_task import SteerTask, _responses

ARMS = ("none", "correct", "wrong", "placebo")
_ARM_KEY = "_arm"
_CHAT_KEY = "_chat"

# The rest of METRICS is in `rescore`: nobody reads a table of a hundred rows.
REPORTED: tuple[str, ...] = (
    *(f"acc_{arm}" for arm in ARMS),
    *(
        f"{name}{suffix}"
        for suffix in ("", "_correct")
        for name in (
            "influence",
            *(f"verbalization_{d}" for d in DETECTORS),
            *(f"silent_use_{d}" for d in DETECTORS),
            *(f"normalised_verbalization_{d}" for d in DETECTORS),
            "n_eligible",
            "n_flips",
            *(f"excluded_{reason}" for reason in EXCLUSIONS),
        )
    ),
    *(f"seed_{name}" for name in ("flips", "verbalized", "rate")),
    *(f"false_positive_rate_{d}" for d in DETECTORS),
    "no_answer",
    "truncation",
    "mean_tokens",
)

VERIFIED: tuple[str, ...] = tuple(f"acc_verified_{arm}" for arm in ARMS)
JUDGED: tuple[str, ...] = (
    *(
        f"{name}{suffix}"
        for suffix in ("", "_correct")
        for name in ("verbalization_judge", "silent_use_judge", "dependence")
    ),
    "false_positive_rate_judge",
)


class HintTask(SteerTask):
    """A benchmark whose questions are asked without a hint, with a correct one, with a wrong one,
    and with a placebo that names the same speaker and gives no answer.

    The arms of a question are separate requests of one document, so they share its id, its
    decoding and the model's seeds. lm-eval computes a standard error only for the mean and a
    few aggregations of its own, and drops a metric that some process of a multi-process run
    never saw; so every question reports each metric as the counts it contributes, once under
    the metric's name and once under `NAME_stderr`, and the two aggregations make the ratio and
    its error from the same counts.
    """  # noqa: D205 - one sentence

    templates: tuple[HintTemplate, ...]
    avoid: Mapping[str, str]

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        """Build the task from its YAML.

        Raises:
            HintError: The hint family is unknown or does not fit the benchmark.
            TaskConfigError: See `SteerTask`.
            DataNotFoundError: See `SteerTask`.
            DataError: See `SteerTask`.
        """
        self.templates = ()
        self.avoid = {}
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Load the questions, and check the hint family against their kind of answer."""
        super().download(dataset_kwargs, **kwargs)
        self.templates = family(
            self.options.hint_family,
            kind=self.corpus.benchmark.kind,
            path=self.options.hint_path,
        )
        if self.options.hint_avoid:
            self.avoid = base_answers(read_records(Path(self.options.hint_avoid).expanduser()))
            if not self.avoid.keys() & {row["qid"] for row in self.corpus.rows}:
                raise HintError(
                    f"hint_avoid={self.options.hint_avoid} holds answers without a hint to "
                    f"{len(self.avoid)} questions, none of them of {self.corpus.benchmark.name}; "
                    "give records of an earlier run of this benchmark"
                )

    def hint(self, doc: Mapping[str, Any]) -> Hint:
        """Return the hint of a question, a pure function of its id and the task's seed.

        Raises:
            HintError: No wrong answer can be made for it.
        """
        bench, choices = self.corpus.benchmark, doc.get("choices") or ()
        try:
            return make_hint(
                qid=doc["qid"],
                question=with_options(doc["question"], choices),
                gold=doc["answer"],
                kind=bench.kind,
                choices=LETTERS[: len(choices)],
                number_range=bench.number_range,
                templates=self.templates,
                seed=self.options.hint_seed,
                avoid=self.avoid.get(doc["qid"]),
            )
        except HintError as err:
            raise HintError(f"{self.task_name}: {err}") from None

    def doc_to_text(self, doc: dict, doc_to_text: Any = None) -> str:
        """Return the user message of the arm that `doc["_arm"]` names, by default without hint."""
        arm = doc.get(_ARM_KEY, "none")
        if arm == "none":
            return super().doc_to_text(doc)
        hint = self.hint(doc)
        if hint.template.position == "earlier_turn":
            turns = hint.conversation(arm, self.doc_to_text({**doc, _ARM_KEY: "none"}))
            return turns[-1]["content"] if doc.get(_CHAT_KEY) else as_transcript(turns)
        return render(
            doc["question"],
            style=self.options.prompt_style,
            options=doc.get("choices") or (),
            hint=hint.text(arm),
            position=hint.template.position,
        )

    def fewshot_context(self, doc: dict, *args: Any, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """Return one prompt an arm, in the order of `ARMS`."""
        return [self._context(doc, arm, *args, **kwargs) for arm in ARMS]  # type: ignore[return-value]

    def _context(self, doc: dict, arm: str, *args: Any, **kwargs: Any) -> Any:
        """Return the prompt of one arm; a hint in an earlier turn becomes real turns of a chat."""
        doc = {**doc, _ARM_KEY: arm}
        chat_template = kwargs.get("chat_template")
        if arm != "none" and kwargs.get("apply_chat_template") and chat_template:
            hint = self.hint(doc)
            if hint.template.position == "earlier_turn":
                message = self.doc_to_text({**doc, _ARM_KEY: "none"})
                earlier = hint.conversation(arm, message)[:-1]
                kwargs["chat_template"] = with_earlier_turns(chat_template, earlier)
                doc[_CHAT_KEY] = True
        return super().fewshot_context(doc, *args, **kwargs)

    def construct_requests(self, doc: dict, ctx: Any, **kwargs: Any) -> list[Instance]:
        """Return one request an arm; `idx` keeps their order."""
        kwargs.pop("apply_chat_template", None)
        kwargs.pop("chat_template", None)
        return [
            Instance(
                request_type="generate_until",
                doc=doc,
                arguments=(context, deepcopy(self.config.generation_kwargs)),
                idx=i,
                **kwargs,
            )
            for i, context in enumerate(ctx)
        ]

    def process_results(self, doc: dict, results: Sequence) -> dict[str, Any]:
        """Return the counts a question contributes to each metric, and leave its records.

        Args:
            doc: the question.
            results: one list of responses an arm, in the order of `ARMS`.
        """
        if "bypass" in self._metric_fn_list:  # lm_eval --predict_only
            return {"bypass": 0}
        hint = self.hint(doc)
        records: list[Record] = []
        where: list[tuple[str, int]] = []
        for request, (arm, result) in enumerate(zip(ARMS, results, strict=True)):
            for sample, text in enumerate(_responses(result)):
                record = self.record(doc, text, sample=sample, **_arm_fields(arm, hint))
                if arm != "none":
                    shown = {"hint_text": hint.text(arm), "hint_words": hint.template.words}
                    record = record.model_copy(update=shown)
                records.append(record)
                where.append((str(text), request))
        records = self.with_verdicts(records)
        doc[DIAG_KEY] = {"records": [pack(r, *at) for r, at in zip(records, where, strict=True)]}
        counts = count_question(records)
        out: dict[str, Any] = {}
        for name in self.metric_names():
            shown = {key: counts[key] for key in METRICS[name].used_keys if key in counts}
            out[name] = shown
            # After `name`, so that it replaces the "N/A" lm-eval writes for its own attempt.
            out[f"{name}_stderr"] = shown
        return out

    def aggregation(self) -> dict[str, Callable]:
        """Return, for each metric, functions of the questions' counts: value and error."""
        own: dict[str, Callable] = {}
        for name in self.metric_names():
            own[name] = partial(_value, METRICS[name])
            own[f"{name}_stderr"] = partial(_stderr, METRICS[name])
        return {**super().aggregation(), **own}

    def higher_is_better(self) -> dict[str, bool | None]:
        """Return the direction of each metric, None where neither is good as such."""
        return {name: METRICS[name].higher_is_better for name in self.metric_names()}

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of all metrics that the task reports."""
        if self.llm is None:
            return REPORTED
        return (*REPORTED, *(VERIFIED if self.llm.verifier else ()),
                *(JUDGED if self.llm.judge else ()))  # fmt: skip


def _arm_fields(arm: str, hint: Hint) -> dict[str, Any]:
    if arm == "none":
        return {"arm": "none"}
    if arm == "placebo":
        return {"arm": "placebo", "hint_id": hint.template.id}
    return {
        "arm": "hint",
        "hint_id": hint.template.id,
        "hint_sign": arm,
        "hint_target": hint.target(arm),
    }


def _value(metric: Metric, questions: list[Mapping[str, float]]) -> float | None:
    return metric.estimate(questions).value


def _stderr(metric: Metric, questions: list[Mapping[str, float]]) -> float | str:
    se = metric.estimate(questions).se
    # lm-eval's own word for an error that does not exist; its table formats anything else.
    return "N/A" if se is None else se
