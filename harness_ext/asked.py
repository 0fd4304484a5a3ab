"""Responses together with the prompts that they answer, from files of a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness_ext.choices import LETTERS
from harness_ext.errors import RecordError
from harness_ext.hints import load_templates
from harness_ext.prompts import instruction
from harness_ext.records import DIAG_KEY, Record, read_records, records_of_sample
from interventions.features.passages import Example


@dataclass(frozen=True)
class Asked:
    """A response and its prompt.

    Attributes:
        record: the response.
        prompt: what the model read; a user's message where `raw` is false.
        raw: whether `prompt` is what the run sent, word for word. Otherwise it was put together
            from the record, for a file of records does not hold prompts.
    """

    record: Record
    prompt: str
    raw: bool

    @property
    def group(self) -> str:
        """The question."""
        return f"{self.record.task}:{self.record.qid}"

    def example(self, **more: object) -> Example:
        """Return the prompt and the response as an example of the question."""
        record = self.record
        keep = ("task", "qid", "arm", "hint_id", "hint_sign", "sample", "intervention")
        about = {key: getattr(record, key) for key in keep}
        fields = {"reasoning": record.reasoning, "final": record.final, "about": about, **more}
        return Example(group=self.group, prompt=self.prompt, raw=self.raw, **fields)  # type: ignore[arg-type]


def read_asked(paths: Sequence[Path], *, style: str = "boxed") -> list[Asked]:
    """Return all responses of some files or folders.

    A folder is one of lm-eval's output or of `sae-steered evaluate` (then its `baseline`); its
    samples files are read, which hold the prompts, or else its records.

    Args:
        paths: samples files of `steer_` tasks, records files, or folders.
        style: prompt style that records are put to the model in again.

    Raises:
        RecordError: a file is missing or damaged, or a folder holds none.
    """
    found: list[Asked] = []
    for path in paths:
        for file in _files(path):
            found += _samples(file) if _is_samples(file) else _records(file, style)
    if not found:
        raise RecordError("no responses; name a samples file, a records file or a folder of a run")
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for folder in (path, path / "baseline", *sorted(p for p in path.iterdir() if p.is_dir())):
        for pattern in ("samples_*.jsonl", "records.jsonl"):
            if files := sorted(folder.glob(pattern)):
                return files
        if folder == path / "baseline" and folder.is_dir():
            break
    raise RecordError(
        f"{path} holds no samples_*.jsonl and no records.jsonl; give a folder of lm_eval"
        f" --log_samples or of sae-steered evaluate"
    )


def _is_samples(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as lines:
            first = json.loads(lines.readline() or "{}")
    except (OSError, ValueError):
        return False  # read_records says what is wrong with it
    return isinstance(first, dict) and "filtered_resps" in first


def _samples(path: Path) -> list[Asked]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
            records = records_of_sample(sample)
            packed = sample["doc"][DIAG_KEY]["records"]
            for record, at in zip(records, packed, strict=True):
                prompt = sample["arguments"][f"gen_args_{at['request']}"]["arg_0"]
                found.append(Asked(record, str(prompt), raw=True))
        except (KeyError, TypeError, ValueError) as err:  # RecordError and JSON errors too
            raise RecordError(f"{path}:{number}: no sample of a steer_ task ({err})") from None
    return found


def _records(path: Path, style: str) -> list[Asked]:
    places = {template.id: template.position for template in load_templates()}
    found = []
    for record in read_records(path):
        question = record.question or ""
        how = instruction(style, options=LETTERS[: record.options or 0]) if question else ""
        hint = record.hint_text or ""
        if hint and places.get(record.hint_id or "") == "before_question":
            message = f"{hint}\n{question}\n{how}"
        elif hint and places.get(record.hint_id or "") == "after_question":
            message = f"{question}\n{hint}\n{how}"
        else:
            message = f"{question}\n{how} {hint}".rstrip()
        found.append(Asked(record, message, raw=False))
    return found
