"""A request that lost its KV blocks in the middle of its answer goes on as it was steered."""

from itertools import pairwise

import pytest

from tests.vllm.conftest import ALL_LAYERS
from tests.vllm.receipts import check_receipt
from tests.vllm.reference import CLOSE

pytestmark = pytest.mark.real


def test_preempted_requests_equal_the_reference(inner, world, ask, say):
    names = ["clamp", "add", "clamp prompt", "three layers", "clamp thinking", "two positions"]
    # The last ones to come are the first to go.
    names += ["thinking and generated", "rescaled", "scale generated", "add generated"]
    requests = [ask(world.prompts[i], world.specs[n], max_tokens=72) for i, n in enumerate(names)]
    requests = [ask(prompt, max_tokens=72) for prompt in world.prompts[:4]] + requests
    _, blocks = inner.call("inside", "blocks")
    assert blocks < 4 * len(requests)
    before = inner.call("metric", "vllm:num_preemptions")
    assert inner.call("reset")
    results = inner.generate(requests)
    preempted = inner.call("metric", "vllm:num_preemptions") - before
    steered = list(zip(requests, results, strict=True))[4:]
    (receipt,) = check_receipt(
        inner,
        world.reference,
        [request for request, _ in steered],
        [result for _, result in steered],
        points=ALL_LAYERS,
    )
    # Rows that ran twice, and those that ran twice although they were generated.
    again = {}
    for name, (request, _) in zip(names, steered, strict=True):
        (entry,) = receipt["requests"][request["tag"]]
        spans = entry["spans"]
        again[name] = [
            min(end, after_end) - max(start, after_start, entry["prompt_len"])
            for (start, end), (after_start, after_end) in pairwise(spans)
        ]
    generated = [name for name, rows in again.items() if any(n > 0 for n in rows)]
    for name, (request, result) in zip(names, steered, strict=True):
        gap = world.reference.misfit(request["prompt"], result["outputs"][0], request["spec"])
        assert gap < CLOSE, name
    plain = {tuple(q["prompt"]): a["outputs"] for q, a in zip(requests, results, strict=True)
             if "spec" not in q}  # fmt: skip
    differ = sum(plain.get(tuple(q["prompt"]), a["outputs"]) != a["outputs"] for q, a in steered)
    say(
        f"{preempted:.0f} preemptions, generated rows ran again for {generated}; {differ} of 4"
        f" steered outputs differ from unsteered ones"
    )
    assert preempted > 0
    # Of interventions that hold where something was generated and nowhere else.
    assert {"rescaled", "scale generated", "add generated"} & set(generated)
    assert differ >= 3
