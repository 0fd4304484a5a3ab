"""Several engines or ranks: the same responses, and a receipt of all of them."""

import pytest

from tests.vllm_lm.programs import finish, model_args, start

STEERED = {"sae_feature_idx": 3036, "sae_strength": 1.0}
OPTIONS = ("--limit", "6", "--gen_kwargs", "max_gen_toks=16")


@pytest.fixture(scope="module")
def single(tmp_path_factory, engines):
    engines.close()
    out = tmp_path_factory.mktemp("single") / "out"
    return finish(start(out, model_args(**STEERED), *OPTIONS), out)


@pytest.mark.parametrize("size", ["data_parallel_size", "tensor_parallel_size"])
def test_two(tmp_path, single, size):
    out = tmp_path / "out"
    found = finish(start(out, model_args(**STEERED, **{size: 2}), *OPTIONS), out)
    assert found["steered"]["engine"][size] == 2
    assert found["steered"]["intervention"] == single["steered"]["intervention"]
    assert found["responses"] == single["responses"]
    assert found["steered"]["receipt"]["rows"] == 6
