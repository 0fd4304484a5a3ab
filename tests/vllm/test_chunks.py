"""A prompt that is cut into chunks is steered like one that is not."""

import pytest

from tests.vllm.cases import THINK
from tests.vllm.conftest import ALL_LAYERS
from tests.vllm.receipts import check_receipt
from tests.vllm.reference import CLOSE

pytestmark = pytest.mark.real
BLOCK = 32
SIZES = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1]


def group(world, ask):
    """Requests of 65, 64, 33 and 1 tokens, so that last chunks of one token and full ones occur."""
    long = (world.prompts[0] + world.prompts[5])[:65]
    edit = {"op": "add", "feature": 3036, "value": 130.0}
    spec = {"sae": "default", "norm_guard": None, "skip_bos": True, "edits": [edit]}
    found = []
    for n in (65, 64, 33, 1):
        found.append(ask(long[:n], max_tokens=8))
        for kind in ("all", "prompt", "generated", "last_prompt", "thinking"):
            more = THINK if kind == "thinking" else {}
            # A prompt of one token is a BOS.
            skip = {"skip_bos": n > 1 and kind != "last_prompt"}
            found.append(ask(long[:n], {**spec, **more, **skip, "positions": kind}, max_tokens=8))
    found.append(ask(long, world.specs["three layers"], max_tokens=8))
    return found


def answers(inner, world, ask):
    requests = group(world, ask)
    assert inner.call("reset")
    results = inner.generate(requests)
    check_receipt(inner, world.reference, requests, results, points=ALL_LAYERS, acts=False)
    return [result["outputs"][0] for result in results]


@pytest.fixture
def whole(inner, world, ask):
    """The outputs without chunks, held against the reference."""
    inner.call("inside", "chunk", 768, each=0)
    outputs = answers(inner, world, ask)
    for request, output in zip(group(world, ask), outputs, strict=True):
        gap = world.reference.misfit(request["prompt"], output, request.get("spec"))
        assert gap < CLOSE, request
    return outputs


def test_chunks_of_each_request(inner, world, ask, whole, say):
    changed = sum(whole[i] != whole[i // 6 * 6] for i in range(24) if i % 6)
    say(f"{changed} of 20 steered outputs differ from unsteered ones")
    assert changed >= 10
    for size in SIZES:
        inner.call("inside", "chunk", 768, each=size)
        inner.call("inside", "record")
        outputs = answers(inner, world, ask)
        steps = inner.call("inside", "recorded")
        # The bound holds where requests share a step; the last one has the engine to itself.
        held = {n for step in steps if len(step) > 1 for n in step.values()}
        assert max(held) == size
        assert 1 in held
        assert outputs == whole, f"chunks of {size}"


def test_chunks_of_a_whole_step(inner, world, ask, whole):
    """Steps of one row and of two, in which prompts and answers compete."""
    for size in SIZES:
        inner.call("inside", "chunk", size, each=0)
        inner.call("inside", "record")
        requests = group(world, ask)
        picked = [3, 5, 12, 15, 19] if size < BLOCK - 1 else range(len(requests))
        assert inner.call("reset")
        results = inner.generate([requests[i] for i in picked])
        steps = inner.call("inside", "recorded")
        assert max(sum(step.values()) for step in steps) == size
        assert [r["outputs"][0] for r in results] == [whole[i] for i in picked], size
    inner.call("inside", "chunk", 768, each=0)
