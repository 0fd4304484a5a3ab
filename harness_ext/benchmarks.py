"""The benchmarks we know: their files, hub names, schemas, and how a row of each is read.

A reader gets a row with lower-case column names and gives `qid`, `question`, `answer`, and where
the benchmark has them `choices` (option texts; the answer is then a letter), `level`, `meta`.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness_ext.choices import LETTERS
from harness_ext.errors import DataError
from harness_ext.extract import Kind

Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Where the rows of a benchmark come from and how its answers are compared.

    Attributes:
        name: id, and the prefix of the question ids.
        file: file name in a data folder.
        kind: what an answer is (`number`, `math`, `choice`).
        columns: columns of the benchmark's own schema (case does not matter), named in errors.
        read: turns `(row number, raw row)` into a row.
        hub: `(repository, configuration, split)`, or None for one that is on no hub.
        embedded: path below the task folder, or None.
        rows: expected number of rows of the full set, or None.
        gated: the hub gives it only to those who accepted its terms.
        shuffle: options are put into an order that depends on the question's id and a seed.
        number_range: lowest and highest answer that the benchmark allows, or None.
        order: questions come by id, or in the order of the source (where ids sort by topic, the
            first N would be one topic).
    """

    name: str
    file: str
    kind: Kind
    columns: tuple[str, ...]
    read: Callable[[int, Row], Row] = field(repr=False)
    hub: tuple[str, str | None, str] | None = None
    embedded: str | None = None
    rows: int | None = None
    gated: bool = False
    shuffle: bool = False
    number_range: tuple[int, int] | None = None
    order: Literal["qid", "source"] = "qid"


def option_order(qid: str, texts: Sequence[str], seed: int) -> list[int]:
    """Return the places of `texts` in the order in which they are shown.

    A function of the id, the seed and the texts only: the same in any process, with any limit,
    and whatever order the source has them in.
    """

    def rank(i: int) -> tuple[bytes, int]:
        key = f"{seed}\x1f{qid}\x1f{texts[i]}".encode()
        return hashlib.sha256(key).digest(), i

    return sorted(range(len(texts)), key=rank)


def _read_gsm8k(i: int, raw: Row) -> Row:
    _, mark, gold = str(raw["answer"]).rpartition("####")
    if not mark:
        raise DataError(
            f"row {i}: answer ends in {str(raw['answer'])[-30:]!r}, expected '#### N' "
            "(schema of openai/gsm8k, configuration main)"
        )
    return {
        "qid": raw.get("qid") or f"gsm8k-{i:05d}",
        "question": raw["question"],
        "answer": gold,
    }


def _read_aime(name: str) -> Callable[[int, Row], Row]:
    def read(i: int, raw: Row) -> Row:
        answer = str(raw["answer"]).strip()
        if not re.fullmatch(r"\d{1,3}", answer):
            raise DataError(f"row {i}: answer {answer!r} is no whole number from 0 to 999")
        own = str(raw.get("id", i)).strip()
        return {
            "qid": raw.get("qid") or f"{name}-{own.zfill(2)}",
            "question": raw["problem"],
            "answer": answer,
            "meta": {"url": raw["url"]} if raw.get("url") else {},
        }

    return read


def _read_math500(i: int, raw: Row) -> Row:
    # "test/precalculus/807.json"
    own = str(raw["unique_id"]).removeprefix("test/").removesuffix(".json").replace("/", "-")
    return {
        "qid": raw.get("qid") or f"math500-{own}",
        "question": raw["problem"],
        "answer": raw["answer"],
        "level": raw.get("level"),
        "meta": {"subject": raw["subject"]} if raw.get("subject") else {},
    }


def _read_gpqa(i: int, raw: Row) -> Row:
    names = ("correct answer", *(f"incorrect answer {n}" for n in (1, 2, 3)))
    # Stripped as lighteval does: the source has stray blanks that would give options away.
    choices = [str(raw[name] if raw[name] is not None else "").strip() for name in names]
    if len(set(choices)) < len(choices):
        raise DataError(f"row {i} ({raw['record id']}): two options are equal")
    return {
        "qid": raw.get("qid") or f"gpqa-{raw['record id']}",
        "question": raw["question"],
        "answer": "A",
        "choices": choices,
        "meta": {k: raw[k] for k in ("subdomain", "high-level domain") if raw.get(k)},
    }


def _read_aqua(i: int, raw: Row) -> Row:
    options, letter = list(raw["options"]), str(raw["correct"]).strip()
    choices = []
    for expected, option in zip(LETTERS, options, strict=False):
        match = re.match(r"\s*\(?([A-J])\s*\)\s*(.*)", str(option), re.DOTALL)
        if not match or match.group(1) != expected:
            raise DataError(f"row {i}: option {option!r} does not start with '{expected})'")
        choices.append(match.group(2).strip())
    # The source has no ids; that of a question must not depend on where it stands in a file.
    digest = hashlib.sha256(f"{raw['question']}\x1f{options}".encode()).hexdigest()
    return {
        "qid": raw.get("qid") or f"aqua-{digest[:10]}",
        "question": raw["question"],
        "answer": letter,
        "choices": choices,
    }


def _read_own(i: int, raw: Row) -> Row:
    qid = raw.get("qid")
    if not qid:
        raise DataError(f"row {i}: no 'qid'; rows of this schema need qid, question, answer")
    return dict(raw)


_AIME = {"columns": ("problem", "answer"), "number_range": (0, 999), "rows": 30}

BENCHMARKS: dict[str, Benchmark] = {
    b.name: b
    for b in (
        Benchmark(
            name="gsm8k",
            file="gsm8k_test.jsonl",
            kind="number",
            columns=("question", "answer"),
            read=_read_gsm8k,
            hub=("openai/gsm8k", "main", "test"),
            rows=1319,
        ),
        Benchmark(
            name="aime24",
            file="aime24_test.jsonl",
            kind="number",
            read=_read_aime("aime24"),
            hub=("HuggingFaceH4/aime_2024", None, "train"),
            **_AIME,
        ),
        Benchmark(
            name="aime25",
            file="aime25_test.jsonl",
            kind="number",
            read=_read_aime("aime25"),
            hub=("math-ai/aime25", None, "test"),
            **_AIME,
        ),
        Benchmark(
            name="math500",
            file="math500_test.jsonl",
            kind="math",
            columns=("problem", "answer", "unique_id"),
            read=_read_math500,
            hub=("HuggingFaceH4/MATH-500", None, "test"),
            rows=500,
            order="source",
        ),
        Benchmark(
            name="gpqa_diamond",
            file="gpqa_diamond.jsonl",
            kind="choice",
            columns=(
                "Record ID",
                "Question",
                "Correct Answer",
                "Incorrect Answer 1",
                "Incorrect Answer 2",
                "Incorrect Answer 3",
            ),
            read=_read_gpqa,
            hub=("Idavidrein/gpqa", "gpqa_diamond", "train"),
            rows=198,
            gated=True,
            shuffle=True,
            order="source",
        ),
        Benchmark(
            name="aqua",
            file="aqua_test.jsonl",
            kind="choice",
            columns=("question", "options", "correct"),
            read=_read_aqua,
            hub=("deepmind/aqua_rat", "raw", "test"),
            rows=254,
            order="source",
        ),
        Benchmark(
            name="arith",
            file="arith.jsonl",
            kind="number",
            columns=("qid", "question", "answer"),
            read=_read_own,
            embedded="steer_arith/items.jsonl",
            rows=360,
        ),
    )
}


class OwnBenchmark(BaseModel):
    """A benchmark that a user describes in the `metadata` of a YAML, without code.

    Attributes:
        name: id, and the prefix of the question ids.
        kind: what an answer is: `number`, `math`, or `choice` (a letter).
        file: file name in a data folder, by default `NAME.jsonl`.
        hub: `[repository, configuration or null, split]`.
        columns: names of the source's columns by ours (`qid`, `question`, `answer`, `choices`,
            `level`); what is not named is called as here.
        rows: number of questions of the full set; another one is warned about.
        shuffle: put the options of each question into an order of its own.
        number_range: lowest and highest answer, for wrong hints of `number`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    kind: Kind
    file: str | None = None
    hub: tuple[str, str | None, str] | None = None
    columns: dict[Literal["qid", "question", "answer", "choices", "level"], str] = {}
    rows: int | None = Field(default=None, ge=1)
    shuffle: bool = False
    number_range: tuple[int, int] | None = None

    def benchmark(self) -> Benchmark:
        """Return it in the form of the built-in ones."""
        names = {c: self.columns.get(c, c) for c in ("question", "answer")}
        if self.kind == "choice":
            names["choices"] = self.columns.get("choices", "choices")
        qid, level = self.columns.get("qid", "qid"), self.columns.get("level", "level")

        def read(i: int, raw: Row) -> Row:
            if raw.get(qid.lower()) is None:
                raise DataError(f"row {i}: no {qid!r}; every question needs an id that stays")
            row = {ours: raw[theirs.lower()] for ours, theirs in names.items()}
            return {
                **row,
                "qid": f"{self.name}-{raw[qid.lower()]}",
                "level": raw.get(level.lower()),
            }

        return Benchmark(
            name=self.name,
            file=self.file or f"{self.name}.jsonl",
            kind=self.kind,
            columns=(qid, *names.values()),
            read=read,
            hub=self.hub,
            rows=self.rows,
            shuffle=self.shuffle,
            number_range=self.number_range,
            order="source",
        )


def benchmark(name: str | Mapping[str, Any]) -> Benchmark:
    """Return the benchmark called `name`, or the one that a mapping describes (`OwnBenchmark`).

    Raises:
        DataError: There is none, or the mapping does not follow the schema.
    """
    if isinstance(name, Mapping):
        try:
            return OwnBenchmark.model_validate(name).benchmark()
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "benchmark"
            raise DataError(
                f"benchmark key {where!r} is {first.get('input')!r}: {first['msg']}; "
                "see docs/adding_tasks.md"
            ) from None
    try:
        return BENCHMARKS[name]
    except KeyError:
        raise DataError(
            f"unknown benchmark {name!r}; known are {', '.join(sorted(BENCHMARKS))}"
        ) from None
