"""What cannot be steered rightly does not start, and says why."""

import pytest

from tests import tiny_models
from tests.vllm import tiny


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(
        tiny_models.save_model(tmp_path_factory.mktemp("llama"), "llama", **tiny.CONFIG["llama"])
    )


def speculative():
    ngram = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    return {"speculative_config": ngram}


SETTINGS = {
    "speculative decoding": (speculative(), "speculative decoding"),
    "unknown layer": ({"additional_config": {"sae_steered": "blocks.4.hook_resid_post"}}, "0..3"),
    "no hook point": ({"additional_config": {"sae_steered": {"hook_points": []}}}, "at least one"),
    "unknown key": (
        {"additional_config": {"sae_steered": {"hook_points": "all", "layers": 3}}},
        "layers",
    ),
    "another version's graph": (
        {"additional_config": {"sae_steered": {"hook_points": "all", "graph": "0.1"}}},
        "graph version 0.1",
    ),
    "too many edits": (
        {"additional_config": {"sae_steered": {"hook_points": "all", "max_edits": 1000}}},
        "max_edits",
    ),
    "pooling": ({"runner": "pooling"}, "pooling"),
    "KV found by tokens alone": (
        {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
        "the KV connector ExampleConnector may bring KV that another intervention made",
    ),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_that_cannot_be_right(tiny_host, llama, what):
    changes, words = SETTINGS[what]
    refused = tiny_host.call("refused", **tiny.arguments(llama, 1, **changes))
    assert words in refused.partition("Traceback")[0]


@pytest.mark.parametrize(("name", "value"), [("enable_dbo", True), ("ubatch_size", 2)])
def test_micro_batches_are_refused_where_a_platform_has_them(tiny_host, llama, name, value):
    """On CPU vLLM itself has none; the check is asked about a real config that has them."""
    reasons = tiny_host.call("inside", "refusals", tiny.arguments(llama, 1), **{name: value})
    assert len(reasons) == 1
    assert "micro-batching" in reasons[0]


def test_a_mixture_of_experts(tiny_host, tmp_path):
    refused = tiny_host.call("refused", **tiny.arguments(tiny.save_mixture(tmp_path), 1))
    assert "MixtralForCausalLM cannot be steered in vLLM" in refused
    assert "MixtralDecoderLayer" in refused


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_the_transformers_fallback(tiny_host, llama, tmp_path, family):
    """transformers' own layers, of the same names and another shape: asked for, or because there
    is no class of vLLM's own.
    """
    if family == "llama":
        changes, path = {"model_impl": "transformers"}, llama
    else:
        changes, path = {}, str(tiny_models.save_model(tmp_path, "neox", **tiny.CONFIG["neox"]))
    refused = tiny_host.call("refused", **tiny.arguments(path, 1, **changes))
    assert "cannot be steered in vLLM" in refused
    assert "its layers are transformers'" in refused
    assert "backend=hf" in refused


def test_after_all_refusals_an_engine_starts(tiny_host, llama):
    assert tiny_host.call("refused", **tiny.arguments(llama, 1)) == ""
