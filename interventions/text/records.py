"""Rows of a source, as plain mappings of columns, in the order of the source."""

import glob
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interventions.errors import TextError
from interventions.text.config import TextSource


def records(source: TextSource) -> Iterator[Mapping[str, Any]]:
    """Yield the records of a source.

    Raises:
        TextError: the source is not there, is damaged, or lacks a column; names it.
    """
    found = _docs(source) if source.docs else _hub(source) if source.dataset else _files(source)
    for number, record in enumerate(found):
        if source.limit is not None and number >= source.limit:
            return
        for column in source.columns:
            if column not in record:
                raise TextError(
                    f"{source.label}: record {number + 1} has no column '{column}'; it has"
                    f" {', '.join(map(str, record))}"
                )
        yield record


def sizes(source: TextSource) -> list[int]:
    """Return the bytes of each local file of a source, in order; a folder counts as one.

    Raises:
        TextError: there is no such file.
    """
    found = []
    for path in map(Path, _names(source) if source.path else []):
        parts = [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]
        found.append(sum(part.stat().st_size for part in parts))
    return found


def _names(source: TextSource) -> list[str]:
    names = sorted(glob.glob(str(Path(str(source.path)).expanduser()), recursive=True))
    if not names:
        raise TextError(f"no file '{source.path}'; give a file, a folder or a pattern")
    return names


def _docs(source: TextSource) -> Iterator[Mapping[str, Any]]:
    from interventions.train.docs_text import find_package, module_documents

    for name in source.docs:
        for _, text in module_documents(find_package(name)):
            yield {"text": text}


def _hub(source: TextSource) -> Iterator[Mapping[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        stream: Any = datasets.load_dataset(
            str(source.dataset),
            source.name,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
        yield from stream
    except (OSError, ValueError, DatasetsError) as error:
        first = str(error).strip().splitlines()[0]
        raise TextError(
            f"data set '{source.dataset}' cannot be read: {first}; check its name, or give a local"
            f" `path`"
        ) from error


def _files(source: TextSource) -> Iterator[Mapping[str, Any]]:
    for name in _names(source):
        path = Path(name)
        try:
            yield from _file(path)
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(f"{path} cannot be read: {error}") from error


def _file(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.is_dir():
        yield from _saved(path)
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".txt":
        yield {"text": path.read_text(encoding="utf-8")}
    elif path.suffix == ".json":
        yield from _list(path)
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _object(path, number, line)
    else:
        raise TextError(
            f"{path}: unknown kind of file; known are .jsonl, .json, .parquet, .txt and folders of"
            f" datasets.save_to_disk"
        )


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise TextError(f"{path} is no Parquet file, or is damaged: {_line(error)}") from error


def _list(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TextError(f"{path} is not JSON ({error}); give a list of objects") from None
    if not isinstance(whole, list):
        raise TextError(f"{path} holds a {type(whole).__name__}; give a list of objects")
    for number, record in enumerate(whole, 1):
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise TextError(f"{path}: item {number} is a {kind}; give a list of objects")
        yield record


def _line(error: Exception) -> str:
    return str(error).replace("\n", " ")


def _object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise TextError(f"{path}:{number}: not JSON ({error.msg}); one object a line") from None
    if not isinstance(found, dict):
        raise TextError(f"{path}:{number}: a {type(found).__name__}; one object a line")
    return found


def _saved(path: Path) -> Iterator[Mapping[str, Any]]:
    import datasets

    try:
        stored = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise TextError(f"{path} is no data set of datasets.save_to_disk: {error}") from error
    if isinstance(stored, datasets.DatasetDict):
        splits = ", ".join(map(str, stored))
        raise TextError(f"{path} holds the splits {splits}; name the folder of one")
    for record in stored:
        yield dict(record)
