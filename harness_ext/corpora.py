"""Benchmark questions from a local file, an environment folder, the hub, or the package itself.

Every source is brought to the same rows, so that the digest of a hub copy and of a local copy
of the same benchmark agree. Nothing here is random: the order is that of the question ids.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from harness_ext.errors import DataError, DataNotFoundError
from harness_ext.extract import Kind
from harness_ext.paths import tasks_dir

DATA_ENV = "SAE_STEERED_DATA"

Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Where the rows of a benchmark come from and how its answers are compared.

    Attributes:
        name: id, and the prefix of the question ids.
        file: file name in a data folder.
        kind: what an answer is (`number`, `math`, `choice`).
        columns: columns of the benchmark's own schema, named in errors.
        read: turns `(row number, raw row)` into a row.
        hub: `(repository, configuration, split)`, or None for one that the package holds.
        embedded: path below the task folder, or None.
        rows: expected number of rows of the full set, or None.
    """

    name: str
    file: str
    kind: Kind
    columns: tuple[str, ...]
    read: Callable[[int, Row], Row]
    hub: tuple[str, str | None, str] | None = None
    embedded: str | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Corpus:
    """Rows `{qid, question, answer, level, meta}` sorted by qid, and where they came from.

    `sha256` is that of the rows, not of the file: the hub's copy and a local one agree.
    """

    rows: tuple[Row, ...]
    source: str
    sha256: str
    benchmark: Benchmark


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


def _read_own(i: int, raw: Row) -> Row:
    qid = raw.get("qid")
    if not qid:
        raise DataError(f"row {i}: no 'qid'; rows of this schema need qid, question, answer")
    return dict(raw)


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


def benchmark(name: str) -> Benchmark:
    """Return the benchmark called `name`.

    Raises:
        DataError: There is none.
    """
    try:
        return BENCHMARKS[name]
    except KeyError:
        raise DataError(
            f"unknown benchmark {name!r}; known are {', '.join(sorted(BENCHMARKS))}"
        ) from None


def load_corpus(name: str, data_path: str | None = None) -> Corpus:
    """Return the questions of a benchmark.

    The first that applies: `data_path` (a `.jsonl` or `.json` file, or a folder that holds the
    benchmark's file), the folder named by the environment variable `SAE_STEERED_DATA`, the
    package's own items (`arith`), the hub. A benchmark that the package holds reads the folder
    of the environment variable only if its file lies there.

    Args:
        name: id in `BENCHMARKS`.
        data_path: file or folder, usually from `--metadata data_path=…`.

    Raises:
        DataNotFoundError: A named file or folder is not there, or the hub cannot be reached.
        DataError: Rows lack a column, an id comes twice, or an answer is empty.
    """
    bench = benchmark(name)
    path = _local_file(bench, data_path)
    if path is not None:
        raw, source = _read_file(path), str(path)
    else:
        raw, source = _read_hub(bench)
    rows = _normalise(bench, raw, source)
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return Corpus(tuple(rows), source, digest.hexdigest(), bench)


def _local_file(bench: Benchmark, data_path: str | None) -> Path | None:
    """Return the local file to read, or None for the hub."""
    own = tasks_dir() / bench.embedded if bench.embedded else None
    if data_path:
        path = Path(data_path).expanduser()
        if path.is_dir():
            if (path / bench.file).is_file():
                return path / bench.file
            if own is None:
                raise DataNotFoundError(
                    f"data_path {str(path)!r} holds no {bench.file}; put it there, or name the file"
                )
            return own
        if not path.is_file():
            raise DataNotFoundError(
                f"data_path {str(path)!r} is neither a file nor a folder; "
                f"give a .jsonl file or a folder that holds {bench.file}"
            )
        return path
    folder = os.environ.get(DATA_ENV)
    if folder:
        path = Path(folder).expanduser() / bench.file
        if path.is_file():
            return path
        if own is None:
            raise DataNotFoundError(
                f"{DATA_ENV}={folder} holds no {bench.file}; put it there, or unset {DATA_ENV} "
                "to read the hub"
            )
    return own


def _read_file(path: Path) -> list[Row]:
    if path.suffix not in {".jsonl", ".json"}:
        raise DataError(f"{path}: file type {path.suffix!r} is not read; give .jsonl or .json")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            raw = json.loads(text)
        else:
            raw = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
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
        raise DataNotFoundError(
            f"{bench.name}: cannot read {repo} from the hub ({type(err).__name__}: {first}); "
            f"go online, or set {DATA_ENV}=DIR or --metadata data_path=… with {bench.file}"
        ) from err
    rows = [dict(row) for row in data]  # type: ignore[arg-type]
    return rows, f"hf://datasets/{repo}/{config or 'default'}/{split}"


def _normalise(bench: Benchmark, raw: list[Row], source: str) -> list[Row]:
    if not raw:
        raise DataError(f"{source}: no rows; {bench.name} needs at least one question")
    rows: dict[str, Row] = {}
    for i, item in enumerate(raw):
        missing = [c for c in bench.columns if c not in item]
        if missing:
            raise DataError(
                f"{source}: row {i} has columns {sorted(item)}, {bench.name} needs "
                f"{', '.join(bench.columns)}; missing {', '.join(missing)}"
            )
        try:
            row = bench.read(i, item)
        except DataError as err:
            raise DataError(f"{source}: {err}") from None
        row = {
            "qid": str(row["qid"]),
            "question": str(row["question"]).strip(),
            "answer": re.sub(r"\s+", " ", str(row["answer"])).strip(),
            "level": str(row["level"]) if row.get("level") is not None else None,
            "meta": json.dumps(row.get("meta") or {}, sort_keys=True, ensure_ascii=False),
        }
        if not row["answer"] or not row["question"]:
            raise DataError(f"{source}: row {i} ({row['qid']}) has an empty question or answer")
        if row["qid"] in rows:
            raise DataError(f"{source}: id {row['qid']!r} comes twice; ids must be unique")
        rows[row["qid"]] = row
    return [rows[qid] for qid in sorted(rows)]


def as_dataset(corpus: Corpus) -> dict[str, datasets.Dataset]:
    """Return `{"test": Dataset}` with the columns qid, question, answer, level, meta (JSON)."""
    features = datasets.Features(
        {c: datasets.Value("string") for c in ("qid", "question", "answer", "level", "meta")}
    )
    return {"test": datasets.Dataset.from_list(list(corpus.rows), features=features)}


def lm_eval_dataset(
    *, benchmark: str, data_path: str | None = None, **_: Any
) -> dict[str, datasets.Dataset]:
    """Return a benchmark for the `custom_dataset` key of a user's own lm-eval YAML.

    Our tasks call `load_corpus` themselves; lm-eval hands every key of `--model_args` and
    `--metadata` to this function, hence the ignored keywords.

    Raises:
        DataNotFoundError: See `load_corpus`.
        DataError: See `load_corpus`.
    """
    return as_dataset(load_corpus(benchmark, data_path))
