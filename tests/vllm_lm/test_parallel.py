"""Several engines or ranks: the same responses, and a receipt of all of them.

The default model has nine heads, which do not divide by two; a tiny one has four.
"""

import pytest

from tests import tiny_models
from tests.vllm.tiny import CONFIG, D_MODEL
from tests.vllm_lm.programs import finish, model_args, start

OPTIONS = ("--limit", "6", "--gen_kwargs", "max_gen_toks=16")
LAYER = 1


@pytest.fixture(scope="module")
def run(tmp_path_factory, engines):
    """Return a function from vLLM's arguments to what lm-eval's program leaves behind."""
    engines.close()
    folder = tmp_path_factory.mktemp("parallel")
    more = {**CONFIG["llama"], "max_position_embeddings": 1024}
    model = tiny_models.save_model(folder / "model", "llama", **more)
    sae = tiny_models.save_sae(folder / "sae", layer=LAYER, d_model=D_MODEL)
    arguments = {
        "pretrained": model,
        "max_model_len": 1024,
        "sae_path": sae.path,
        "sae_feature_idx": 3,
        "sae_op": "add",
        "sae_value": 30,
    }

    def made(name, **sizes):
        out = folder / name
        return finish(start(out, model_args(**arguments, **sizes), *OPTIONS, chat=False), out)

    return made


@pytest.fixture(scope="module")
def single(run):
    return run("single")


@pytest.mark.parametrize(
    "size", ["data_parallel_size", "tensor_parallel_size", "pipeline_parallel_size"]
)
def test_two(run, single, size):
    found = run(size, **{size: 2})
    assert found["steered"]["engine"][size] == 2
    assert found["steered"]["intervention"] == single["steered"]["intervention"]
    assert found["responses"] == single["responses"]
    assert len({str(resps) for resps in found["responses"].values()}) > 1
    (edit,), (reference,) = (one["steered"]["receipt"]["edits"] for one in (found, single))
    assert found["steered"]["receipt"]["rows"] == 6
    cached = found["steered"]["receipt"]["cached_tokens"]
    assert edit["selected"] + cached == (
        reference["selected"] + single["steered"]["receipt"]["cached_tokens"]
    )
