"""One JSON line a response: the schema, reading and writing, and lm-eval's own samples files."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from harness_ext.errors import RecordError
from harness_ext.extract import How
from harness_ext.llm.verdicts import JudgeVerdict, Relies, VerifierVerdict
from harness_ext.verifier import Status

Arm = Literal["none", "hint", "placebo"]
DIAG_KEY = "_diag"
# For records that do not say how many options there were.
_KNOWN_OPTIONS = {"gpqa": 4, "aqua": 5}


class Label(BaseModel):
    """What a person says about a response, by the rule in docs/detectors.md.

    Attributes:
        mentions: the response says that it was given an answer.
        relies: what the hint was to the answer.
        case: the kind of trace, such as `mention_final_only` or `trap_source_word`.
        target: what the question's hinted arm says; for a response of an arm without an answer.
        by: who labelled it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mentions: bool
    relies: Relies
    case: str = ""
    target: str | None = None
    by: str = ""

    @property
    def dependent(self) -> bool:
        """Return whether the answer relies on the hint."""
        return self.relies in ("decisive", "partial")


class Published(BaseModel):
    """What a foreign file says about a response, kept beside our own scoring of it.

    Attributes:
        correct: the file's verdict.
        prediction: the file's extracted answer, None where it found none.
        gold: the reference answer as the file writes it, None where it is no text there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    correct: bool
    prediction: str | None
    gold: str | None


class Record(BaseModel):
    """What one response was and what it counts as.

    Attributes:
        task: lm-eval task name.
        qid: question id, the same in all arms.
        arm: `none`, `hint` or `placebo`.
        hint_id: template, None in the arm without a hint.
        hint_sign: whether the hinted answer is the gold one; None outside the hint arm.
        hint_target: the hinted answer; None outside the hint arm.
        hint_text: what the prompt of a hint or placebo arm says beyond the question.
        hint_words: regular expressions that name the hint's speaker, for the lexicon.
        gold: reference answer.
        answer: extracted answer, None where there is none.
        status: what became of the response.
        correct: whether the answer equals gold.
        n_tokens: generated tokens, None where the model does not say.
        finish_reason: `stop` or `length`, None where the model does not say.
        reasoning: text before the closing reasoning delimiter.
        final: text after it.
        intervention: fingerprint of the intervention, `none` without one.
        sample: index of the repeat; sample i of an arm is paired with sample i of the others.
        question: the question without any hint, for detectors that look into it.
        level: difficulty level of the item.
        how: the rule that found the answer.
        correct_lenient: whether the whole response, cut or not, gives the gold answer.
        n_reasoning_tokens: generated tokens of the reasoning.
        n_choices: number of options, None for free-form answers.
        seed: sampling seed, None for greedy decoding.
        verified: what the LLM verifier said, None where it was not asked; `correct` stays.
        judge: what the LLM judge said about the hint, None where it was not asked.
        label: what a person said about it, None for most records.
        published: what the file says that the record was read from, for `1_runs.json` files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    qid: str
    arm: Arm
    hint_id: str | None = None
    hint_sign: Literal["correct", "wrong"] | None = None
    hint_target: str | None = None
    hint_text: str | None = None
    hint_words: tuple[str, ...] = ()
    gold: str
    answer: str | None = None
    status: Status
    correct: bool
    n_tokens: int | None = None
    finish_reason: Literal["stop", "length"] | None = None
    reasoning: str
    final: str
    intervention: str = "none"
    sample: int = 0
    question: str | None = None
    level: str | None = None
    how: How | None = None
    correct_lenient: bool | None = None
    n_reasoning_tokens: int | None = None
    n_choices: int | None = None
    seed: int | None = None
    verified: VerifierVerdict | None = None
    judge: JudgeVerdict | None = None
    label: Label | None = None
    published: Published | None = None

    @field_validator("intervention", mode="before")
    @classmethod
    def _no_intervention(cls, value: Any) -> Any:
        return "none" if value is None else value

    @model_validator(mode="after")
    def _check_arm(self) -> "Record":
        if self.arm == "hint" and (self.hint_sign is None or self.hint_target is None):
            raise ValueError("arm 'hint' needs hint_sign and hint_target")
        if self.arm != "hint" and (self.hint_sign is not None or self.hint_target is not None):
            raise ValueError(f"arm {self.arm!r} gives no answer, hint_sign and target must be null")
        if self.status == "answered" and self.answer is None:
            raise ValueError("status 'answered' needs an answer")
        return self

    @property
    def options(self) -> int | None:
        """Return the number of options: `n_choices`, or what the benchmark is known to have."""
        if self.n_choices is not None or not re.fullmatch(r"[A-J]", self.gold):
            return self.n_choices
        return next((n for name, n in _KNOWN_OPTIONS.items() if name in self.task), None)

    @property
    def ending_known(self) -> bool:
        """Return whether it is known if the response was cut.

        A model that returns plain text does not say. Of a response that reasoned it is known at
        least that it got through its reasoning.
        """
        return self.finish_reason is not None or self.status == "truncated" or bool(self.reasoning)

    @property
    def arm_name(self) -> str:
        """Return `none`, `correct`, `wrong` or `placebo`."""
        return self.hint_sign or self.arm


def write_records(records: Iterable[Record], path: Path) -> int:
    """Return the number of records written to `path`, one JSON object a line."""
    n = 0
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(record.model_dump_json() + "\n")
            n += 1
    return n


def read_records(path: Path) -> list[Record]:
    """Return the records of a records file or of an lm-eval `samples_*.jsonl` of our tasks.

    Raises:
        RecordError: The file is missing, a line is not JSON, or breaks the schema.
    """
    try:
        # Not splitlines(): JSON strings may hold U+2028 and the like as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as err:
        raise RecordError(f"{path}: cannot be read ({err}); give a .jsonl file") from err
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except json.JSONDecodeError as err:
            raise RecordError(f"{path}:{number}: not JSON ({err.msg}); one object a line") from None
        try:
            if isinstance(raw, dict) and "filtered_resps" in raw:
                records.extend(records_of_sample(raw))
            else:
                records.append(Record.model_validate(raw))
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "record"
            raise RecordError(f"{path}:{number}: {where}: {first['msg']}") from None
        except RecordError as err:
            raise RecordError(f"{path}:{number}: {err}") from None
    if not records:
        raise RecordError(f"{path}: no records; expected one JSON object a line")
    return records


def records_of_sample(sample: dict[str, Any]) -> list[Record]:
    """Return the records that a task left in a line of lm-eval's samples file.

    Raises:
        RecordError: The line is not one of our tasks' (no `_diag` in its `doc`).
    """
    doc = sample.get("doc")
    diag = doc.get(DIAG_KEY) if isinstance(doc, dict) else None
    if not isinstance(diag, dict) or "records" not in diag:
        raise RecordError(f"no doc.{DIAG_KEY}.records: only samples of steer_ tasks can be read")
    try:
        return [_unpack(packed, sample["resps"]) for packed in diag["records"]]
    except (KeyError, IndexError, TypeError) as err:
        raise RecordError(f"doc.{DIAG_KEY} does not fit resps ({type(err).__name__})") from err


def base_answers(records: Iterable[Record]) -> dict[str, str]:
    """Return the answer without a hint of every question that has one, by question id.

    With several samples it is that of the first; for `--metadata hint_avoid=FILE`.
    """
    first: dict[str, Record] = {}
    for record in records:
        if record.arm == "none" and record.answer is not None:
            old = first.get(record.qid)
            if old is None or record.sample < old.sample:
                first[record.qid] = record
    return {qid: record.answer for qid, record in first.items() if record.answer is not None}


def pack(record: Record, text: str, request: int) -> dict[str, Any]:
    """Return a record for `doc["_diag"]`: its texts as lengths into the logged response.

    Args:
        record: the record.
        text: the whole response, as lm-eval logs it.
        request: index of the request within the document, so that `resps[request][sample]` is
            `text`.
    """
    packed = record.model_dump(exclude={"reasoning", "final"}, exclude_none=True)
    packed["request"] = request
    if text.startswith(record.reasoning) and text.endswith(record.final):
        packed["lengths"] = [len(record.reasoning), len(record.final)]
    else:  # a model whose delimiters are special tokens may return text without them
        packed["texts"] = [record.reasoning, record.final]
    return packed


def _unpack(packed: dict[str, Any], resps: list[list[str]]) -> Record:
    fields = dict(packed)
    request = fields.pop("request")
    if "texts" in fields:
        reasoning, final = fields.pop("texts")
    else:
        n_reasoning, n_final = fields.pop("lengths")
        text = resps[request][fields.get("sample", 0)]
        reasoning, final = text[:n_reasoning], text[len(text) - n_final :]
    return Record.model_validate({**fields, "reasoning": reasoning, "final": final})
