"""Seeded samples are the same alone, in a batch and in chunks."""

import pytest

from tests.vllm.conftest import ALL_LAYERS
from tests.vllm.receipts import check_receipt

pytestmark = pytest.mark.real


def test_seeded_requests_in_chunks(inner, world, ask, say):
    names = [None, "add", "clamp prompt", "add generated", "gated units"]
    params = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 12}

    def group():
        return [
            ask(world.prompts[i], world.specs.get(name), seed=40 + i, **params)
            for i, name in enumerate(names)
        ]

    inner.call("inside", "chunk", 768, each=0)
    alone = [inner.generate([request])[0]["outputs"] for request in group()]
    plain = [
        inner.generate([ask(world.prompts[i], seed=40 + i, **params)])[0]["outputs"]
        for i in range(len(names))
    ]
    changed = sum(a != b for a, b in zip(alone[1:], plain[1:], strict=True))
    for each in (0, 7, 31):
        inner.call("inside", "chunk", 768, each=each)
        inner.call("inside", "record")
        assert inner.call("reset")
        requests = group()
        results = inner.generate(requests)
        steps = inner.call("inside", "recorded")
        held = {n for step in steps if len(step) > 1 for n in step.values()}
        assert not each or max(held) == each
        assert [result["outputs"] for result in results] == alone, f"chunks of {each}"
        check_receipt(inner, world.reference, requests, results, points=ALL_LAYERS, acts=False)
    inner.call("inside", "chunk", 768, each=0)
    say(f"{changed} of {len(names) - 1} steered samples differ from unsteered ones")
    assert changed >= 3
