"""Specs checked before a request, the SAEs of a server, and the gate of the engine core."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from interventions.backends.vllm import adapter, plugin
from interventions.backends.vllm.admission import Admission
from interventions.backends.vllm.compiled import check_compiled
from interventions.backends.vllm.config import parse_config
from interventions.errors import SpecError, SteeringError
from tests import tiny_models

POINTS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
POINT = POINTS[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def admission(model):
    return make(model)


def make(model, **config):
    import transformers

    text = transformers.AutoConfig.from_pretrained(model)
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(model), hf_text_config=text, dtype=torch.float32, revision=None
        )
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    return Admission(vllm_config, parse_config({"hook_points": POINTS, **config}), tokenizer)


@pytest.fixture
def spec(saes):
    return {
        "sae": {"path": saes["relu"]},
        "hook_point": POINT,
        "norm_guard": None,
        "edits": [{"op": "add", "feature": 3, "value": 2.0}],
    }


def test_a_point_that_was_not_declared_is_refused(model):
    only = make(model, hook_points=POINTS[:1])
    with pytest.raises(SpecError, match=r"not at blocks\.1"):
        only.admit({"norms": [POINT], "tag": "t"}, 5)
    assert only.index(only.points[0]) == 0


def test_text_that_nests_deeply_is_refused(admission):
    for text in ("[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000):
        with pytest.raises(SpecError):
            admission.admit(text, 5)


def test_a_missing_median_is_left_to_the_caller_of_check(admission, spec):
    guarded = {**spec, "norm_guard": 10.0}
    assert [str(point) for point in admission.check(guarded).missing_medians] == [POINT]
    with pytest.raises(SteeringError, match="median"):
        admission.admit(guarded, 5)
    assert not admission.check({**guarded, "median_norm": 3.0}).missing_medians
    far = {**guarded, "edits": [{**guarded["edits"][0], "feature": 999}]}
    with pytest.raises(SteeringError, match="feature 999"):
        admission.check(far)


def test_an_undeclared_point_is_told_before_a_missing_median(model, spec):
    with pytest.raises(SpecError, match="declare it"):
        make(model, hook_points=POINTS[:1]).check({**spec, "norm_guard": 10.0})


def test_check_refuses_what_admit_refuses(model, spec):
    strict = make(model, max_edits=1)
    two = {**spec, "edits": [*spec["edits"], {"op": "ablate", "feature": 4}]}
    for ask in (strict.check, lambda data: strict.admit(data, 5)):
        with pytest.raises(SpecError, match="2 edits"):
            ask(two)


def test_a_server_reads_the_saes_that_it_lists(model, spec, saes):
    with pytest.raises(SpecError, match="does not read the SAE"):
        make(model, saes=[]).admit(spec, 5)
    listed = make(model, saes=[{"path": saes["relu"]}]).admit(spec, 5)
    assert listed == make(model, saes="any").admit(spec, 5) == make(model).admit(spec, 5)


def test_many_threads_get_the_same(admission, spec):
    specs = [{**spec, "edits": [{**spec["edits"][0], "feature": n % 7}]} for n in range(70)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: admission.admit(one, 5), specs))
    prints = [one["compiled"]["fp"] for one in found]
    assert prints == prints[:7] * 10
    assert len(set(prints)) == 7


def test_an_uncompiled_or_foreign_request_is_seen(admission, spec):
    good = admission.admit(spec, 5)
    for entry in (spec, json.dumps(spec), None, 7, {"compiled": "x"}):
        with pytest.raises(SpecError, match="no frontend compiled"):
            check_compiled(entry, "r")
    with pytest.raises(SpecError, match=r"graph version 0\.0"):
        check_compiled({"compiled": {**good["compiled"], "graph": "0.0"}}, "r")


def vllm_config(connector):
    transfer = SimpleNamespace(kv_connector=connector) if connector else None
    return SimpleNamespace(
        parallel_config=SimpleNamespace(),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace()),
        model_config=SimpleNamespace(),
        speculative_config=None,
        kv_transfer_config=transfer,
    )


def test_kv_from_elsewhere_is_refused_unless_it_is_found_by_the_engines_keys():
    for connector in (None, "OffloadingConnector", "SimpleCPUOffloadConnector"):
        assert adapter.refusals(vllm_config(connector)) == []
    for connector in ("LMCacheConnectorV1", "NixlConnector", "ExampleConnector", "MultiConnector"):
        (reason,) = adapter.refusals(vllm_config(connector))
        assert reason.startswith(f"the KV connector {connector} may bring KV")


def test_prompts_whose_end_or_tokens_are_unknown_are_refused():
    for entry in ({}, {"prompt_len": 2}):
        plugin._check_prompt(SimpleNamespace(prompt_token_ids=[1, 2]), entry)
        plugin._check_prompt(SimpleNamespace(prompt_token_ids=[1, 2], resumable=False), entry)
        with pytest.raises(SpecError, match="prompt of embeddings"):
            plugin._check_prompt(SimpleNamespace(prompt_token_ids=None, resumable=False), entry)
        with pytest.raises(SpecError, match="arrives in parts"):
            plugin._check_prompt(SimpleNamespace(prompt_token_ids=[1, 2], resumable=True), entry)
    with pytest.raises(SpecError, match=r"`prompt_len` 3 is outside 1\.\.2"):
        plugin._check_prompt(SimpleNamespace(prompt_token_ids=[1, 2]), {"prompt_len": 3})
