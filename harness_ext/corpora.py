"""Benchmark questions from a local file, an environment folder, the hub, or the package itself.

Every source is brought to the same rows, so that the digest of a hub copy and of a local copy
of the same benchmark agree. Nothing here is random: questions come in the order of their ids or
of their source, and options in an order that is a function of the question's id and a seed.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from harness_ext.benchmarks import (
    BENCHMARKS,
    Benchmark,
    OwnBenchmark,
    Row,
    benchmark,
    option_order,
)
from harness_ext.choices import LETTERS
from harness_ext.errors import DataError, DataNotFoundError
from harness_ext.paths import tasks_dir

__all__ = [
    "BENCHMARKS",
    "DATA_ENV",
    "Benchmark",
    "Corpus",
    "OwnBenchmark",
    "as_dataset",
    "benchmark",
    "lm_eval_dataset",
    "load_corpus",
]

DATA_ENV = "SAE_STEERED_DATA"
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Corpus:
    """Rows `{qid, question, answer, choices, level, meta}`, and where they came from.

    `choices` are option texts in the order shown, [] for free-form answers. `sha256` is that of
    the rows by id, options in the source's order: the hub's copy and a local one agree, and so
    do two seeds.
    """

    rows: tuple[Row, ...]
    source: str
    sha256: str
    benchmark: Benchmark


def load_corpus(
    name: str | Mapping[str, Any], data_path: str | None = None, *, choice_seed: int = 0
) -> Corpus:
    """Return the questions of a benchmark.

    The first that applies: `data_path` (a file, or a folder that holds the benchmark's file),
    the folder named by the environment variable `SAE_STEERED_DATA`, the package's own items
    (`arith`), the hub. Files are `.jsonl`, `.json`, `.csv` or `.parquet`. A benchmark that the
    package holds reads the folder of the environment variable only if its file lies there.

    Args:
        name: id in `BENCHMARKS`, or what `OwnBenchmark` describes.
        data_path: file or folder, usually from `--metadata data_path=…`.
        choice_seed: seed of the order of options, for benchmarks that shuffle them.

    Raises:
        DataNotFoundError: A named file or folder is not there, or the hub cannot be reached.
        DataError: Rows lack a column, an id comes twice, an answer is empty or names no option.
    """
    bench = benchmark(name)
    path = _local_file(bench, data_path)
    if path is not None:
        raw, source = _read_file(path), str(path)
    else:
        raw, source = _read_hub(bench)
    rows = _normalise(bench, raw, source)
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda r: r["qid"]):
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    if bench.shuffle:
        rows = [_shuffled(row, choice_seed) for row in rows]
    return Corpus(tuple(rows), source, digest.hexdigest(), bench)


def _shuffled(row: Row, seed: int) -> Row:
    order = option_order(row["qid"], row["choices"], seed)
    gold = LETTERS[order.index(LETTERS.index(row["answer"]))]
    return {**row, "choices": [row["choices"][i] for i in order], "answer": gold}


def _local_file(bench: Benchmark, data_path: str | None) -> Path | None:
    """Return the local file to read, or None for the hub."""
    own = tasks_dir() / bench.embedded if bench.embedded else None
    if data_path:
        path = Path(data_path).expanduser()
        if path.is_dir():
            found = _in_folder(path, bench)
            if found is not None:
                return found
            if own is None:
                raise DataNotFoundError(
                    f"data_path {str(path)!r} holds no {bench.file}; put it there, or name the file"
                )
            return own
        if not path.is_file():
            raise DataNotFoundError(
                f"data_path {str(path)!r} is neither a file nor a folder; "
                f"give a file or a folder that holds {bench.file}"
            )
        return path
    folder = os.environ.get(DATA_ENV)
    if folder:
        path = _in_folder(Path(folder).expanduser(), bench)
        if path is not None:
            return path
        if own is None:
            raise DataNotFoundError(
                f"{DATA_ENV}={folder} holds no {bench.file}; put it there, or unset {DATA_ENV} "
                f"to read {bench.hub[0] if bench.hub else 'the hub'}"
                f"{' (' + _gate(bench.hub[0]) + ')' if bench.gated and bench.hub else ''}"
            )
    return own


def _in_folder(folder: Path, bench: Benchmark) -> Path | None:
    """Return the benchmark's file in a folder, in any of the file types that are read."""
    stem = bench.file.rsplit(".", 1)[0]
    for suffix in SUFFIXES:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    return None


def _read_file(path: Path) -> list[Row]:
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"{path}: file type {path.suffix!r} is not read; give {', '.join(SUFFIXES)}"
        )
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        text = path.read_text(encoding="utf-8-sig" if path.suffix == ".csv" else "utf-8")
        if path.suffix == ".json":
            raw = json.loads(text)
        elif path.suffix == ".csv":
            raw = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            # Not splitlines(): strings may hold U+2028 and the like as they are, in a CSV file too.
            raw = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, OSError, csv.Error) as err:  # ValueError: JSON, UTF-8 and Arrow errors
        raise DataError(f"{path}: not readable as {path.suffix} ({err}); expected UTF-8") from err
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        raise DataError(f"{path}: expected a list of objects, one a question")
    return raw


def _read_hub(bench: Benchmark) -> tuple[list[Row], str]:
    if bench.hub is None:
        raise DataNotFoundError(f"{bench.name} is on no hub; give data_path with {bench.file}")
    repo, config, split = bench.hub
    try:
        data = datasets.load_dataset(repo, config, split=split)
    except Exception as err:  # the hub's client raises many types, all mean the same here
        first = (str(err).splitlines() or [""])[0][:160]
        remedy = _gate(repo) if bench.gated else "go online"
        raise DataNotFoundError(
            f"{bench.name}: cannot read {repo} from the hub ({type(err).__name__}: {first}); "
            f"{remedy}, or set {DATA_ENV}=DIR or --metadata data_path=… with {bench.file}"
        ) from err
    rows = [dict(row) for row in data]  # type: ignore[arg-type]
    return rows, f"hf://datasets/{repo}/{config or 'default'}/{split}"


def _gate(repo: str) -> str:
    return (
        f"it is gated: accept its terms at https://huggingface.co/datasets/{repo} and log in with "
        "`hf auth login`"
    )


def _normalise(bench: Benchmark, raw: list[Row], source: str) -> list[Row]:
    if not raw:
        raise DataError(f"{source}: no rows; {bench.name} needs at least one question")
    rows: dict[str, Row] = {}
    for i, given in enumerate(raw):
        item = {str(column).lower(): value for column, value in given.items()}
        missing = [c for c in bench.columns if c.lower() not in item]
        if missing:
            raise DataError(
                f"{source}: row {i} has columns {sorted(map(str, given))}, {bench.name} needs "
                f"{', '.join(bench.columns)}; missing {', '.join(missing)}"
            )
        try:
            row = _row(i, bench.read(i, item), bench)
        except DataError as err:
            raise DataError(f"{source}: {err}") from None
        if row["qid"] in rows:
            raise DataError(f"{source}: id {row['qid']!r} comes twice; ids must be unique")
        rows[row["qid"]] = row
    return list(rows.values()) if bench.order == "source" else [rows[qid] for qid in sorted(rows)]


def _row(i: int, read: Row, bench: Benchmark) -> Row:
    row = {
        "qid": str(read["qid"]),
        "question": str(read["question"]).strip(),
        "answer": re.sub(r"\s+", " ", str(read["answer"])).strip(),
        "choices": [str(choice) for choice in read.get("choices") or ()],
        "level": str(read["level"]) if read.get("level") is not None else None,
        "meta": json.dumps(read.get("meta") or {}, sort_keys=True, ensure_ascii=False),
    }
    if not row["answer"] or not row["question"]:
        raise DataError(f"row {i} ({row['qid']}) has an empty question or answer")
    if bench.kind == "choice":
        letters = LETTERS[: len(row["choices"])]
        if not 2 <= len(row["choices"]) <= len(LETTERS) or not all(row["choices"]):
            raise DataError(
                f"row {i} ({row['qid']}) has options {row['choices']}; 2 to {len(LETTERS)} "
                "that are not empty are needed"
            )
        if len(row["answer"]) != 1 or row["answer"] not in letters:
            raise DataError(
                f"row {i} ({row['qid']}) has the answer {row['answer']!r}, "
                f"which is none of its options {letters}"
            )
    elif row["choices"]:
        raise DataError(
            f"row {i} ({row['qid']}) has options, {bench.name} has answers of kind {bench.kind!r}"
        )
    return row


def as_dataset(corpus: Corpus) -> dict[str, datasets.Dataset]:
    """Return `{"test": Dataset}`: qid, question, answer, choices (a list), level, meta (JSON)."""
    text = datasets.Value("string")
    features = datasets.Features(
        {
            **dict.fromkeys(("qid", "question", "answer"), text),
            "choices": datasets.Sequence(text),
            **dict.fromkeys(("level", "meta"), text),
        }
    )
    return {"test": datasets.Dataset.from_list(list(corpus.rows), features=features)}


def lm_eval_dataset(
    *,
    benchmark: str | Mapping[str, Any],
    data_path: str | None = None,
    choice_seed: int = 0,
    **_: Any,
) -> dict[str, datasets.Dataset]:
    """Return a benchmark for the `custom_dataset` key of a user's own lm-eval YAML.

    Our tasks call `load_corpus` themselves; lm-eval hands every key of `--model_args` and
    `--metadata` to this function, hence the ignored keywords.

    Raises:
        DataNotFoundError: See `load_corpus`.
        DataError: See `load_corpus`.
    """
    return as_dataset(load_corpus(benchmark, data_path, choice_seed=choice_seed))
