"""Receipts held against the tokens: by rank, by request, by edit."""

from typing import Any

import torch

from tests.vllm.engine import Engine
from tests.vllm.reference import Reference

BLOCK = 32
BORDER = 1e-3
"""Relative distance of a norm from the guard's limit at which fp32 may decide otherwise."""


def check_receipt(
    engine: Engine,
    reference: Reference,
    requests: list[dict[str, Any]],
    results: list[dict[str, Any]],
    *,
    points: list[int],
    ranks: int = 1,
    staged: bool = False,
    acts: bool = True,
    whole: bool = True,
) -> list[dict[str, Any]]:
    """Return the facts of every request, by rank, after holding them against its tokens.

    Args:
        engine: that ran the requests.
        reference: that knows which tokens an edit names, is guarded at, and fires at.
        requests: those with a tag are checked.
        results: of the requests.
        points: layers that the engine declared, in order.
        ranks: workers.
        staged: whether each of them steers other layers; else all steer every layer.
        acts: whether guarded and fired rows are compared, too (one run of the reference each).
        whole: whether every request ran to its end: else nothing is said of the rows' number.
    """
    steered = [(q, a) for q, a in zip(requests, results, strict=True) if q.get("tag")]
    receipts = engine.call("receipt", [q["tag"] for q, _ in steered])
    assert len(receipts) == ranks
    for receipt in [_joined(receipts)] if staged else receipts:
        assert receipt["failures"] == []
        for request, result in steered:
            entries = receipt["requests"][request["tag"]]
            assert len(entries) == len(result["outputs"])
            for entry, output in zip(entries, result["outputs"], strict=True):
                _check(reference, request, result, output, entry, points, acts, whole)
    return receipts


def _joined(receipts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the receipt of a pipeline, whose stages count their own layers."""
    joined = {**receipts[0], "failures": [text for one in receipts for text in one["failures"]]}
    joined["requests"] = {
        tag: [
            {**stages[0], "counts": {k: v for stage in stages for k, v in stage["counts"].items()}}
            for stages in zip(*(receipt["requests"][tag] for receipt in receipts), strict=True)
        ]
        for tag in receipts[0]["requests"]
    }
    return joined


def _check(
    reference: Reference,
    request: dict[str, Any],
    result: dict[str, Any],
    output: list[int],
    entry: dict[str, Any],
    points: list[int],
    acts: bool,
    whole: bool,
) -> None:
    prompt, spec = request["prompt"], request["spec"]
    n_prompt = request.get("prompt_len") or len(prompt)
    assert entry["prompt_len"] == n_prompt
    ids = [*prompt, *output[:-1]]
    ran = torch.zeros(len(ids), dtype=torch.int64)
    for start, end in entry["spans"]:
        assert end <= len(ids), f"rows {start}..{end} of a request of {len(ids)} tokens"
        ran[start:end] += 1
    if whole:
        _check_cover(entry["spans"], result["cached"] or 0, len(ids))
    seen = reference.run(ids, n_prompt, spec)[1] if acts else {}
    by_layer = reference.edits(spec)
    assert {int(index) for index in entry["counts"]} == {points.index(layer) for layer in by_layer}
    for layer, edits in by_layer.items():
        counts = entry["counts"][points.index(layer)]
        for number, (edit, counted) in enumerate(zip(edits, counts, strict=True)):
            here = reference.positions(edit, spec, ids, n_prompt)
            name = f"{request['tag']}, layer {layer}, edit {number}: {edit}"
            assert counted[0] == int(ran[here].sum()), name
            if acts:
                one = seen[layer]
                guarded = int(ran[one.guarded[number]].sum())
                assert abs(counted[1] - guarded) <= _unsure(reference, spec, edit, one), name
                reads = edit.get("op", "clamp") in ("clamp", "ablate", "scale")
                if reads or edit.get("when") == "active":
                    fired = int(ran[one.fired[number]].sum())
                    # Gates at their very threshold may fall either way.
                    assert abs(counted[2] - fired) <= 1 + fired // 50, name


def _check_cover(spans: list[list[int]], cached: int, end: int) -> None:
    """Hold rows that ran against the cache's part: nothing else may be missing."""
    covered = cached
    for start, stop in spans:
        # After a preemption a request goes on behind the blocks that are cached by then, and some
        # may be those of another request with the same tokens and the same intervention.
        assert start <= covered or start % BLOCK == 0, f"{spans}, {cached} cached, {end} tokens"
        covered = stop
    assert covered == end, f"{spans}, {cached} cached, {end} tokens"


def _unsure(reference: Reference, spec: Any, edit: Any, seen: Any) -> int:
    limit = reference._limit(spec, edit)
    norms = seen.x.norm(dim=1)
    return int(((norms - limit).abs() < BORDER * limit).sum()) if limit < float("inf") else 0
