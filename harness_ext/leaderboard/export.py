"""The flat table as CSV and Parquet."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness_ext.leaderboard.flat import RECOMPUTE, columns

_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
# A spreadsheet runs a cell that starts so; labels and prompts are anybody's text.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_csv(lines: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Return `path`, written as CSV with a head; undefined is empty.

    Texts that a spreadsheet would run as a formula get an apostrophe in front.
    """
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, columns(lines), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _safe(value) for key, value in line.items()} for line in lines)
    return path


def write_parquet(lines: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Return `path`, written as Parquet; undefined is null, and the schema names the command."""
    names = columns(lines)
    schema = pa.schema(
        [pa.field(name, _type([line.get(name) for line in lines])) for name in names],
        metadata={"recompute": RECOMPUTE},
    )
    pq.write_table(pa.Table.from_pylist([dict(line) for line in lines], schema=schema), path)
    return path


def _type(values: Sequence[Any]) -> pa.DataType:
    """Return the type of a column; numbers that are whole in one place only are floats."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return pa.float64()
    return _TYPES[kinds.pop()] if len(kinds) == 1 else pa.string()


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
