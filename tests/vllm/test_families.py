"""One test a family of models: pairs of hidden and residual, and single tensors."""

import pytest

from tests.vllm import tiny
from tests.vllm.receipts import check_receipt
from tests.vllm.reference import CLOSE

FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "gpt2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_equals_the_reference(tiny_host, tmp_path, ask, say, family):
    model = tiny.make(tmp_path, family)
    tiny_host.call("start", **tiny.arguments(model.path, *tiny.LAYERS))
    requests, results, differ = tiny.ask_all(tiny_host, model, ask)
    worst = 0.0
    for request, result in zip(requests, results, strict=True):
        (output,) = result["outputs"]
        gap = model.reference.misfit(request["prompt"], output, request.get("spec"))
        assert gap < CLOSE, request
        worst = max(worst, gap)
    n = len(model.prompts) * len(model.specs)
    say(f"{differ} of {n} steered outputs differ from unsteered ones; largest margin {worst:.1g}")
    assert differ >= n // 2
    check_receipt(tiny_host, model.reference, requests, results, points=[*tiny.LAYERS])
