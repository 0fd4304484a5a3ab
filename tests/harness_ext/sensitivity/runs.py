"""The command on a tiny model, and what its writer is asked and answers."""

import csv
import re
from pathlib import Path
from typing import Any

from harness_ext.sensitivity.prompts import SEPARATOR
from tests.llm_server import Action, completion

FEATURES = ["3", "7", "11"]


def command(place: Path, tmp_path: Path, url: str, *more: str) -> list[str]:
    """Return the arguments of a run over three features, ten texts each."""
    return [
        "sensitivity", "--model", str(place / "model"), "--sae-path", str(place / "sae"),
        "--text", str(place / "text.jsonl"), "--total-tokens", "3000", "--context-size", "100",
        "--base-url", url, "--llm-model", "writer", "--output-path", str(tmp_path / "out"),
        "--cache", str(tmp_path / "cache"), "--feature-indices", *FEATURES, "--no-check", *more,
    ]  # fmt: skip


def without(given: list[str], option: str) -> list[str]:
    """Return arguments without an option and its value."""
    at = given.index(option)
    return given[:at] + given[at + 2 :]


def example_texts(body: dict[str, Any]) -> list[str]:
    """Return the examples in a request."""
    message = body["messages"][1]["content"]
    return re.split(rf"\n{SEPARATOR}\n", message.split(f"separated by {SEPARATOR}:\n")[1])


def texts(n: int = 10, **changes: Any) -> Action:
    """Return a reply with `n` texts."""
    joined = f"\n{SEPARATOR}\n".join(f"the rain in the inn {i}" for i in range(n))
    return completion(joined, **changes)


def only_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "out").iterdir()
    return folder


def table(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(10**7)
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
