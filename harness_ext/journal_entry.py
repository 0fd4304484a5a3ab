"""What a response journal keeps, and the key under which it is kept."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from harness_ext.errors import HarnessError
from harness_ext.generation import Generation
from harness_ext.journal_lines import FORMAT
from interventions.editor import EditCounts


class JournalError(HarnessError, OSError):
    """A journal cannot be opened or written."""


@dataclass(frozen=True)
class Entry:
    """What the journal keeps under a key.

    Attributes:
        response: a generation, or a `(log probability, is greedy)` score.
        counts: what the editor counted for this response, one an edit in the receipt's order;
            () where nothing was edited.
        info: plain data that travels along and changes nothing, such as a question id.
    """

    response: Generation | tuple[float, bool]
    counts: tuple[EditCounts, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


def response_key(
    *,
    backend: str,
    model: str,
    intervention: str,
    prompt: Sequence[int],
    decoding: Mapping[str, Any],
    seed: int | None = None,
    continuation: Sequence[int] | None = None,
) -> str:
    """Return the 32 hex digits under which a response is kept.

    Everything that changes a response must be in here. What changes only the last bits of a
    matrix product is not (versions, device, batch): the journal records those beside the responses.

    Args:
        backend: `hf`, `vllm`, ...: engines sample differently from one seed.
        model: identity of the weights and of the tokenizer, not a name.
        intervention: fingerprint, or 'none'.
        prompt: token ids, in full.
        decoding: plain data: the most tokens of this response, stop strings, sampling options,
            reasoning delimiters, and whatever else the engine is told; {} for a score.
        seed: of this response; None for greedy decoding and for scores.
        continuation: token ids that are scored; None for a generation.

    Raises:
        JournalError: `decoding` is not plain data.
    """
    data = {
        "format": FORMAT,
        "backend": backend,
        "model": model,
        "intervention": intervention,
        "prompt": [int(i) for i in prompt],
        "decoding": dict(decoding),
        "seed": seed,
        "continuation": None if continuation is None else [int(i) for i in continuation],
    }
    try:
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise JournalError(f"decoding {decoding} cannot be a journal key: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def to_data(key: str, entry: Entry) -> dict[str, Any]:
    """Return an entry as plain data for JSON.

    Raises:
        JournalError: it would not come back equal.
    """
    data: dict[str, Any] = {"counts": [astuple(count) for count in entry.counts]}
    if entry.info:
        data["info"] = dict(entry.info)
    if isinstance(entry.response, Generation):
        data |= {"text": str(entry.response), "meta": dict(entry.response.__dict__)}
    else:
        score, greedy = entry.response
        # JSON has no infinity.
        data["score"] = [score if math.isfinite(score) else repr(score), bool(greedy)]
    try:
        back = from_data(json.loads(json.dumps(data, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise JournalError(f"response {key} cannot be kept: {error}; use plain data") from None
    if isinstance(entry.response, Generation) and vars(back.response) != vars(entry.response):
        raise JournalError(f"response {key} would not come back equal: {vars(entry.response)}")
    return data


def from_data(data: Mapping[str, Any]) -> Entry:
    """Return the entry that `to_data` made plain."""
    counts = tuple(EditCounts(*row) for row in data["counts"])
    info = data.get("info", {})
    if "score" in data:
        score, greedy = data["score"]
        return Entry((float(score), bool(greedy)), counts, info)
    return Entry(Generation(data["text"], **data["meta"]), counts, info)
