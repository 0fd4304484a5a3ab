"""The poison matrix can fail: it does as soon as KV blocks are keyed as plain vLLM keys them."""

import pytest

from tests.vllm.matrix import run_matrix

pytestmark = pytest.mark.real
SOME = ("unsteered", "all", "another", "generated")


def test_the_matrix_fails_without_the_key(inner, world, ask, say):
    inner.call("inside", "without_keys", True)
    try:
        wrong, text = run_matrix(inner, world, ask, SOME)
    finally:
        inner.call("inside", "without_keys", False)
    poisoned = [line for line in wrong if "reference" in line]
    say(f"{text}, of these {len(poisoned)} outputs, for example: {'; '.join(poisoned[:3])}")
    assert len(poisoned) >= 6
    # Unsteered traffic is poisoned, too.
    assert any(line.startswith("unsteered after") for line in poisoned)
    # The engine's own key back in place, nothing is wrong.
    assert run_matrix(inner, world, ask, SOME)[0] == []
