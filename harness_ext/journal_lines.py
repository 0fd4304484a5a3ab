"""One line of a journal file: JSON with a checksum, and what reading a file of them finds.

A line is `{"key":"<32 hex>","sum":"<16 hex>","entry":{...}}`: valid JSON for any tool, and of
fixed width up to the entry, so that a file is indexed without parsing it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FORMAT = 1
FACTS_KEY = "0" * 32
"""Key of a file's first line, which says by what the file was written."""

_KEY = slice(8, 40)
_SUM = slice(49, 65)
_BODY = 75
_START, _MIDDLE, _ENTRY, _END = b'{"key":"', b'","sum":"', b'","entry":', b"}\n"


@dataclass(frozen=True)
class Line:
    """What stands at one place of a file.

    Attributes:
        offset: byte where it begins.
        length: in bytes, line end included.
        state: `good`; `bad` (the checksum or the shape is wrong); `partial` (no line end).
        key: of a good line, '' otherwise.
    """

    offset: int
    length: int
    state: Literal["good", "bad", "partial"]
    key: str = ""


def to_line(key: str, entry: Mapping[str, Any]) -> bytes:
    """Return the line of an entry.

    Raises:
        TypeError: the entry is not plain data.
        ValueError: it holds a number that is not finite.
    """
    body = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode()
    name = key.encode()
    return b"".join((_START, name, _MIDDLE, _checksum(name, body), _ENTRY, body, _END))


def from_line(line: bytes, key: str) -> dict[str, Any] | None:
    """Return the entry of a line, or None if it is not the intact line of `key`."""
    if _good_key(line) != key:
        return None
    return json.loads(line[_BODY : -len(_END)])


def read_lines(path: Path, start: int = 0) -> Iterator[Line]:
    """Yield what stands in a file from byte `start` on, in order."""
    offset = start
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            length = len(line)
            if not line.endswith(b"\n"):
                yield Line(offset, length, "partial")
            else:
                key = _good_key(line)
                yield Line(offset, length, "good" if key else "bad", key)
            offset += length


def _good_key(line: bytes) -> str:
    shaped = (
        line.startswith(_START)
        and line[40:49] == _MIDDLE
        and line[65:_BODY] == _ENTRY
        and line.endswith(_END)
    )
    if not shaped or line[_SUM] != _checksum(line[_KEY], line[_BODY : -len(_END)]):
        return ""
    return line[_KEY].decode("ascii", "replace")


def _checksum(key: bytes, body: bytes) -> bytes:
    sha = hashlib.blake2b(key, digest_size=8)
    sha.update(body)
    return sha.hexdigest().encode()
