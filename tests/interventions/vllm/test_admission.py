"""What a frontend takes and refuses: every bad entry is one clear line, and the next one works."""

import json
from types import SimpleNamespace

import pytest
import torch

from interventions.backends.vllm.admission import Admission
from interventions.backends.vllm.compiled import unpack
from interventions.backends.vllm.config import parse_config
from interventions.errors import SpecError, SteeringError
from interventions.fingerprint import weights_digest
from interventions.plan import ModelFacts, make_plan
from interventions.spec import parse_spec
from tests import tiny_models

POINTS = ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def admission(folder):
    return make(folder)


def make(folder, tokenizer=None, **config):
    text = SimpleNamespace(hidden_size=tiny_models.D_MODEL, num_hidden_layers=tiny_models.N_LAYERS)
    model_config = SimpleNamespace(
        model=str(folder), hf_text_config=text, dtype=torch.float32, revision=None
    )
    config = parse_config({"hook_points": POINTS, "max_edits": 3, **config})
    vllm_config = SimpleNamespace(model_config=model_config)
    return Admission(vllm_config, config, tokenizer or tiny_models.make_tokenizer())


@pytest.fixture
def spec(saes):
    return {
        "sae": {"path": saes["jumprelu"]},
        "edits": [{"feature": 7, "op": "clamp", "value": 3.0}],
        "norm_guard": None,
    }


def test_all_ways_of_asking_mean_the_same(admission, spec):
    ways = [spec, {"spec": spec}, json.dumps(spec), json.dumps({"spec": spec})]
    admitted = [admission.admit(way, 5) for way in ways]
    assert all(one == admitted[0] for one in admitted)
    assert set(admitted[0]) == {"compiled"}


def test_the_fingerprint_is_that_of_the_other_backend(admission, spec, folder):
    """One spec on one model has one fingerprint, wherever it runs."""
    identity = weights_digest(tiny_models.make_model())
    facts = ModelFacts(str(folder), tiny_models.D_MODEL, tiny_models.N_LAYERS, identity)
    plan = make_plan(parse_spec(spec), facts)
    compiled = unpack(admission.admit(spec, 5)["compiled"])
    assert compiled.fingerprint == plan.fingerprint
    assert torch.equal(compiled.hooks[0].w, plan.layers[0].groups[0].directions.w)


def test_what_is_said_beside_the_spec_travels_with_it(admission, spec):
    admitted = admission.admit({"spec": spec, "tag": "row 3", "prompt_len": 5}, 5)
    assert (admitted["tag"], admitted["prompt_len"]) == ("row 3", 5)
    assert "spec" not in admitted, "workers need no SAE files"
    before_the_prompt_is_known = admission.admit({"spec": spec, "prompt_len": 99}, None)
    assert before_the_prompt_is_known["prompt_len"] == 99


def test_the_unsteered_baseline_is_a_request_like_any_other(admission, spec):
    assert admission.admit({**spec, "edits": []}, 5) == {}
    assert admission.admit({"spec": {**spec, "edits": []}, "tag": "t"}, 5) == {}


def test_norms_stand_in_place_of_a_spec(admission):
    admitted = admission.admit({"norms": POINTS, "tag": "n"}, 5)
    assert admitted["norms"] is True
    assert [hook.index for hook in unpack(admitted["compiled"]).hooks] == [0, 1]


def edit(**change):
    return lambda spec: {**spec, "edits": [{**spec["edits"][0], **change}]}


def with_key(**change):
    return lambda spec: {"spec": spec, **change}


DEEP = "[" * 100_000
CYCLE: dict = {}
CYCLE["edits"] = [CYCLE]
BAD = {
    "unknown key beside the spec": (with_key(strenght=1), "unknown key 'strenght'.*known keys"),
    "unknown key of the spec": (lambda s: {**s, "edit": []}, "`edit`: unknown key"),
    "unknown key of an edit": (edit(valeu=1), r"`edits\.1\.valeu`: unknown key"),
    "keys that are no text": (lambda s: {1: 2, "a": 3, "spec": s}, "unknown key"),
    "spec keys that are no text": (lambda s: {"spec": {1: 2, "a": 3}}, "JSON|unknown key"),
    "a cycle": (lambda s: {"spec": CYCLE}, "cannot be written as JSON"),
    "no plain data": (lambda s: {"spec": {"edits": {1, 2}}}, "cannot be written as JSON"),
    "nan": (edit(value=float("nan")), "finite number"),
    "infinity": (edit(value=float("inf")), "finite number"),
    "nan in text": (lambda s: json.dumps(edit(value=float("nan"))(s)), "finite number"),
    "a guard of nan": (lambda s: {**s, "norm_guard": float("nan")}, "norm_guard"),
    "a switch for a number": (edit(value=True), "is no switch"),
    "feature outside the SAE": (edit(feature=48), r"feature 48 is outside 0\.\.47"),
    "negative feature": (edit(feature=-1), "greater than or equal to 0"),
    "a feature of a googol": (edit(feature=10**100), "outside"),
    "unknown op": (edit(op="multiply"), "'add', 'clamp'"),
    "layer outside the model": (edit(hook_point="blocks.9.hook_resid_post"), "layer 9 is outside"),
    "layer that was not declared": (edit(hook_point="2"), r"not at blocks\.2\..*declare it"),
    "not the residual stream": (edit(hook_point="blocks.1.hook_mlp_out"), "not on the residual"),
    "too many edits": (
        lambda s: {**s, "edits": [{**s["edits"][0], "feature": n} for n in range(4)]},
        "4 edits at .* takes 3",
    ),
    "two edits that contradict": (
        lambda s: {**s, "edits": s["edits"] * 2}, "both set feature 7",
    ),
    "no such SAE": (lambda s: {**s, "sae": {"path": "/nowhere/at/all"}}, "/nowhere/at/all"),
    "no median norm": (lambda s: {**s, "norm_guard": 10.0}, "median residual norm"),
    "prompt_len 0": (with_key(prompt_len=0), r"`prompt_len` 0 is outside 1\.\.5"),
    "prompt_len past the prompt": (with_key(prompt_len=6), r"`prompt_len` 6 is outside 1\.\.5"),
    "prompt_len of a text": (with_key(prompt_len="3"), "`prompt_len` is a number"),
    "prompt_len of a switch": (with_key(prompt_len=True), "`prompt_len` is a number"),
    "prompt_len of a fraction": (with_key(prompt_len=2.5), "`prompt_len` is a number"),
    "a tag that is no text": (with_key(tag=3), "`tag` is a text"),
    "spec of a list": (lambda s: {"spec": [s]}, "`spec` is a mapping"),
    "spec of nothing": (lambda s: {"spec": None}, "`spec` is a mapping"),
    "a list": (lambda s: [s], "is a mapping, or one as JSON text, not list"),
    "a number": (lambda s: 3, "not int"),
    "bytes": (lambda s: b"{}", "not bytes"),
    "no JSON": (lambda s: "{feature: 7}", "is not JSON"),
    "no text at all": (lambda s: "", "is not JSON"),
    "JSON of a list": (lambda s: "[1]", "not list"),
    "JSON without an end": (lambda s: DEEP, "is not JSON"),
    "JSON of a huge number": (lambda s: '{"spec": ' + "9" * 5000 + "}", "is not JSON|`spec`"),
    "a megabyte": (lambda s: " " * (1 << 20) + json.dumps(s), "characters, at most 1048576"),
    "norms and a spec": (with_key(norms=POINTS, tag="t"), "in place of `spec`"),
    "norms without a tag": (lambda s: {"norms": POINTS}, "needs a `tag`"),
    "norms nowhere": (lambda s: {"norms": [], "tag": "t"}, "list of hook points"),
    "norms of a layer not declared": (lambda s: {"norms": ["2"], "tag": "t"}, "declare it"),
    "norms of a layer outside": (lambda s: {"norms": ["9"], "tag": "t"}, "layer 9 is outside"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_entries_are_refused(admission, spec, what):
    make_entry, message = BAD[what]
    entry = make_entry(spec)
    with pytest.raises(SteeringError, match=message) as error:
        admission.admit(entry, 5)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000
    assert admission.admit(spec, 5)["compiled"], "the next request is served"


def test_a_long_but_legal_text_is_read(admission, spec):
    text = json.dumps(spec)
    assert admission.admit(text + " " * ((1 << 20) - len(text)), 5)["compiled"]


def test_a_topk_sae_needs_a_threshold(admission, tmp_path):
    sae = tiny_models.save_sae(tmp_path, architecture="topk", layer=1)
    spec = {"sae": {"path": str(sae.path)}, "norm_guard": None}
    gated = {**spec, "edits": [{"feature": 2, "op": "ablate"}]}
    with pytest.raises(SteeringError, match="threshold"):
        admission.admit(gated, 5)
    added = {**spec, "edits": [{"feature": 2, "op": "add", "value": 1.0}]}
    assert admission.admit(added, 5)["compiled"]


def test_an_sae_of_another_width_is_refused(admission, tmp_path, spec):
    sae = tiny_models.save_sae(tmp_path, d_model=16)
    with pytest.raises(SteeringError, match=r"width 16, .* has 32"):
        admission.admit({**spec, "sae": {"path": str(sae.path)}}, 5)


def test_thinking_needs_delimiters_of_one_token(admission, spec):
    thinking = {**spec, "positions": "thinking"}
    compiled = unpack(admission.admit(thinking, 5)["compiled"])
    tokenizer = tiny_models.make_tokenizer()
    assert compiled.think == tuple(
        tokenizer.convert_tokens_to_ids([tiny_models.THINK_START, tiny_models.THINK_END])
    )
    with pytest.raises(SpecError, match=r"`think_start` '<reason>' is \d+ tokens"):
        admission.admit({**thinking, "think_start": "<reason>"}, 5)


def test_an_engine_without_a_tokenizer(folder, spec):
    held = make(folder)
    held.tokenizer = None
    with pytest.raises(SpecError, match="no tokenizer"):
        held.admit(spec, 5)


def test_a_spec_is_compiled_once(admission, spec, monkeypatch):
    admission.admit(spec, 5)
    monkeypatch.setattr(admission, "plan", None)  # not callable
    assert admission.admit(json.loads(json.dumps(spec)), 7)["compiled"]
