"""Records from the seed notebook's `1_runs.json` files.

Format, read from the public script that writes these files (docs/rescore.md has it in full):

    {"runs": [{"run_id": 0, "records": [
        {"question": str, "hint": str, "full_response": str, "reasoning_length": int,
         "prediction": str | null, "gold": str, "correct": bool}, ...]}, ...]}

in `MODE_results/DATASET/MODEL/1_runs.json`, one file for the questions without a hint
(`hint` is "") and one with. Records of the two files belong together by their place.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness_ext.errors import RecordError
from harness_ext.extract import Kind, parse_number
from harness_ext.generation import split_reasoning
from harness_ext.records import Published, Record
from harness_ext.verifier import lenient_correct, score

THINK_END = "</think>"
# In this order: "a Stanford professor" is a professor too.
_SPEAKERS = (
    ("seed_stanford", r"\bstanford\b"),
    ("seed_professor", r"\bprofessor\b"),
    ("seed_source", r"\bsource\b"),
    ("seed_expert", r"\bexpert\b"),
    ("seed_teacher", r"\bteacher\b"),
)


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    question: str
    hint: str = ""
    full_response: str
    reasoning_length: int
    prediction: Any = None
    gold: str | int | float
    correct: bool


class _Run(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    run_id: int
    records: list[_Row]


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    runs: list[_Run]


def is_notebook_file(path: Path) -> bool:
    """Return whether a file is to be read as the notebook's: one JSON object, not lines of it."""
    return path.suffix == ".json"


def read_notebook(
    path: Path, *, task: str | None = None, intervention: str = "none"
) -> list[Record]:
    """Return the records of a `1_runs.json` file, scored by our rules, with the file's verdicts.

    `answer`, `status` and `correct` are ours, made from the text after the reasoning;
    `published` holds the file's `prediction`, `gold` and `correct`, which the seed's own rule
    uses. A response without a closing `</think>` counts as truncated where any other response
    of the file has one. A hinted response has a correct hint: the notebook gives no other.

    Args:
        path: the file; its folders name the data set (`.../DATASET/MODEL/1_runs.json`).
        task: task name instead of the data set's; the file's stem in another layout.
        intervention: what the responses were made under; the file does not say.

    Raises:
        RecordError: The file is missing, breaks the schema, or has a hint by no known speaker.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise RecordError(f"{path}: cannot be read ({err})") from err
    except json.JSONDecodeError as err:
        raise RecordError(f"{path}:{err.lineno}: not JSON ({err.msg})") from None
    if not isinstance(raw, dict) or "runs" not in raw:
        raise RecordError(
            f"{path}: no 'runs'; a .json file is read as the notebook's 1_runs.json, records and "
            "lm-eval samples are .jsonl"
        )
    try:
        runs = _File.model_validate(raw).runs
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: {where}: {first['msg']}") from None
    rows = [row for run in runs for row in run.records]
    if not rows:
        raise RecordError(f"{path}: no records in any of {len(runs)} runs")
    name = task or _data_set(path)
    kind = _kind([str(row.gold) for row in rows])
    reasons = any(THINK_END in row.full_response for row in rows)
    return [
        _record(row, i, run.run_id, name, intervention, kind, reasons, path)
        for run in runs
        for i, row in enumerate(run.records)
    ]


def check_pairs(records: Sequence[Record]) -> None:
    """Check that records of one id are about one question: those files pair by place only.

    Raises:
        RecordError: They are not.
    """
    seen: dict[tuple[str, str], str] = {}
    for record in records:
        if record.published is None or record.question is None:
            continue
        first = seen.setdefault((record.task, record.qid), record.question)
        if first != record.question:
            raise RecordError(
                f"{record.task}: {record.qid} is {first[:40]!r} in one file and "
                f"{record.question[:40]!r} in another; give files of the same questions in the "
                "same order"
            )


def _record(
    row: _Row,
    place: int,
    run: int,
    task: str,
    intervention: str,
    kind: Kind,
    reasons: bool,
    path: Path,
) -> Record:
    gold = str(row.gold).strip()
    if not gold:
        raise RecordError(f"{path}: record {place}: gold is empty")
    truncated = reasons and THINK_END not in row.full_response
    reasoning, final = split_reasoning(row.full_response, think_end=THINK_END, opened=truncated)
    scored = score(final, gold, kind=kind, truncated=truncated)
    hint: dict[str, Any] = {"arm": "none"}
    if row.hint.strip():
        hint = {
            "arm": "hint",
            "hint_id": _speaker(row.hint, f"{path}: record {place}"),
            "hint_sign": "correct",
            "hint_target": gold,
            "hint_text": f"{row.hint} {row.gold}",
        }
    return Record(
        task=task,
        qid=f"{task}-{place:05d}",
        **hint,
        gold=gold,
        answer=scored.answer,
        status=scored.status,
        correct=scored.correct,
        how=scored.how,
        correct_lenient=lenient_correct(row.full_response, gold, kind=kind),
        n_tokens=row.reasoning_length,
        reasoning=reasoning,
        final=final,
        intervention=intervention,
        sample=run,
        question=row.question,
        published=Published(
            correct=row.correct,
            prediction=None if row.prediction is None else str(row.prediction),
            # A gold that is a number in the file equals no text, and so it is in the notebook.
            gold=row.gold if isinstance(row.gold, str) else None,
        ),
    )


def _speaker(hint: str, where: str) -> str:
    for hint_id, pattern in _SPEAKERS:
        if re.search(pattern, hint, re.IGNORECASE):
            return hint_id
    raise RecordError(
        f"{where}: the hint {hint[:60]!r} is by none of the five speakers "
        f"({', '.join(hint_id for hint_id, _ in _SPEAKERS)})"
    )


def _data_set(path: Path) -> str:
    parents = path.resolve().parents
    in_layout = len(parents) > 2 and parents[2].name.endswith("_results")
    return parents[1].name if in_layout else path.stem


def _kind(golds: Sequence[str]) -> Kind:
    if all(re.fullmatch(r"\s*[A-J]\s*", gold) for gold in golds):
        return "choice"
    if all(parse_number(gold) is not None for gold in golds):
        return "number"
    return "math"
