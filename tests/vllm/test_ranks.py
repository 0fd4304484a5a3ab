"""Several workers: each shard of a layer edits alike, each stage edits its own layers."""

import pytest

from tests.vllm import tiny
from tests.vllm.receipts import check_receipt
from tests.vllm.reference import CLOSE


@pytest.mark.parametrize(
    ("size", "staged"),
    [({"tensor_parallel_size": 2}, False), ({"pipeline_parallel_size": 2}, True)],
    ids=["tensor parallel", "pipeline parallel"],
)
def test_two_ranks_equal_the_reference(engines, tmp_path, ask, say, size, staged):
    model = tiny.make(tmp_path, "llama")
    engine = engines.host(f"ranks {size}")
    engine.call(
        "start",
        **tiny.arguments(model.path, *tiny.LAYERS, distributed_executor_backend="mp", **size),
    )
    assert len(set(engine.call("inside", "pids"))) == 3
    requests, results, differ = tiny.ask_all(engine, model, ask)
    for request, result in zip(requests, results, strict=True):
        gap = model.reference.misfit(request["prompt"], result["outputs"][0], request.get("spec"))
        assert gap < CLOSE, request
    n = len(model.prompts) * len(model.specs)
    say(f"{differ} of {n} steered outputs differ from unsteered ones")
    assert differ >= n // 2
    check_receipt(
        engine,
        model.reference,
        requests,
        results,
        points=[*tiny.LAYERS],
        ranks=2,
        staged=staged,
    )
