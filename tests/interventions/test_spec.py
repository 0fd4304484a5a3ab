"""Specs are checked strictly, and a wrong one is told in one line."""

import json

import pytest
from pydantic import ValidationError

from interventions.errors import SpecError, SteeringError
from interventions.spec import DEFAULT_NORM_GUARD, InterventionSpec, SAERef, parse_spec
from interventions.spec_io import load_spec, spec_from_args

SAE = {"path": "somewhere"}


def spec_with(edit, **more):
    return {"sae": SAE, "edits": [edit], **more}


GOOD = {"op": "clamp", "feature": 3, "value": 4.0}

BAD = [
    (spec_with({**GOOD, "value": float("nan")}), ["edits.1.value", "finite", "nan"]),
    (spec_with({**GOOD, "value": float("inf")}), ["edits.1.value", "finite"]),
    (spec_with({"op": "add", "feature": 3, "strength": float("nan")}), ["strength", "finite"]),
    (spec_with({"op": "add", "feature": 3}), ["edits.1", "`value` or `strength`", "neither"]),
    (spec_with({**GOOD, "strength": 2}), ["either `value` or `strength`", "both"]),
    (spec_with({**GOOD, "max_act": 2}), ["`max_act` goes with `strength`"]),
    (spec_with({"op": "add", "feature": 1, "strength": 1, "max_act": 0}), ["max_act", "greater"]),
    (spec_with({**GOOD, "feature": -1}), ["edits.1.feature", "-1"]),
    (spec_with({**GOOD, "feature": 1.5}), ["edits.1.feature", "1.5"]),
    (spec_with({**GOOD, "feature": "tea"}), ["edits.1.feature", "'tea'"]),
    (spec_with({**GOOD, "feature": True}), ["edits.1.feature", "True"]),
    (spec_with({**GOOD, "value": True}), ["edits.1.value", "True"]),
    (spec_with({**GOOD, "op": "boost"}), ["edits.1.op", "'boost'", "'clamp'"]),
    (spec_with({**GOOD, "positions": "first"}), ["positions", "'first'", "'last_prompt'"]),
    (spec_with({**GOOD, "stregth": 1}), ["edits.1.stregth", "unknown key", "strength"]),
    (spec_with(GOOD, postions="all"), ["postions", "unknown key", "positions"]),
    (spec_with({**GOOD, "sae": {"path": "x", "relase": "y"}}), ["relase", "known keys", "release"]),
    (spec_with({"op": "ablate", "feature": 1, "value": 0}), ["`ablate` takes no value"]),
    (spec_with({"op": "scale", "feature": 1, "strength": 2}), ["`scale` needs `value`"]),
    (spec_with({"op": "scale", "feature": 1, "value": 2, "unit": "residual"}), ["no unit"]),
    (spec_with({**GOOD, "origin": "b_dec"}), ["`origin` goes with `project`"]),
    (spec_with({"op": "add", "strength": 1, "unit": "residual"}), ["remove `unit`"]),
    (spec_with({**GOOD, "hook_point": "blocks.1.hook_mlp_out"}), ["not on the residual stream"]),
    (spec_with(GOOD, hook_point="nowhere"), ["nowhere", "blocks.<layer>.hook_resid_post"]),
    (spec_with(GOOD, norm_guard=0), ["norm_guard", "greater than 0"]),
    (spec_with(GOOD, norm_guard=False), ["norm_guard", "null for none"]),
    (spec_with(GOOD, median_norm=-1), ["median_norm must be positive"]),
    (spec_with(GOOD, median_norm={"layers.1": 0}), ["median_norm must be positive"]),
    ({"edits": [GOOD]}, ["edit 1 names no SAE"]),
    ({"sae": {}, "edits": [GOOD]}, ["exactly one of", "release"]),
    ({"sae": {"path": "a", "repo": "b/c"}, "edits": [GOOD]}, ["exactly one of"]),
    ({"sae": {"release": "gemma"}, "edits": [GOOD]}, ["'gemma' needs the `id`"]),
    ({"sae": SAE, "edits": GOOD}, ["edits", "tuple"]),
]


@pytest.mark.parametrize(("data", "parts"), BAD, ids=[parts[0] for _, parts in BAD])
def test_a_wrong_spec_is_told_in_one_line(data, parts):
    with pytest.raises(SpecError) as caught:
        parse_spec(data, source="spec.json")
    message = str(caught.value)
    assert message.startswith("spec.json: ")
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SteeringError)


def test_all_problems_are_told_at_once():
    with pytest.raises(SpecError) as caught:
        parse_spec(spec_with({**GOOD, "feature": -1, "value": "x"}, nonsense=1))
    assert all(part in str(caught.value) for part in ("-1", "'x'", "nonsense"))


def test_every_default():
    spec = parse_spec(spec_with(GOOD))
    (edit,) = spec.edits
    assert (spec.positions, spec.skip_bos, spec.norm_guard) == ("all", False, 10.0)
    assert (edit.unit, edit.when, edit.origin, edit.positions) == ("sae", "always", "zero", None)
    assert spec.sae_of(edit) == SAERef(path="somewhere")
    assert InterventionSpec().edits == ()


def test_a_spec_is_frozen():
    spec = parse_spec(spec_with(GOOD))
    with pytest.raises(ValidationError):
        spec.name = "other"


def test_hook_points_are_made_canonical():
    spec = parse_spec(spec_with({**GOOD, "hook_point": "layers.2"}, hook_point="model.layers.1"))
    assert spec.hook_point == "blocks.1.hook_resid_post"
    assert spec.edits[0].hook_point == "blocks.2.hook_resid_post"


JSON = '{"sae": "default", "edits": [{"op": "add", "feature": 7, "strength": 1.5}]}'
YAML = "sae: default\nedits:\n  - {op: add, feature: 7, strength: 1.5}\n"


def test_json_yaml_text_and_mapping_are_one(tmp_path):
    (tmp_path / "s.json").write_text(JSON)
    (tmp_path / "s.yaml").write_text(YAML)
    (tmp_path / "s.yml").write_text(YAML)
    named = [load_spec(tmp_path / f"s.{kind}") for kind in ("json", "yaml", "yml")]
    assert {spec.name for spec in named} == {"s"}
    inline = [load_spec(JSON), load_spec(json.loads(JSON)), spec_from_args({"spec": JSON})]
    edits = {spec.edits for spec in [*named, *inline]}
    assert len(edits) == 1
    assert all(spec.sae == SAERef(default=True) for spec in [*named, *inline])


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("s.json", "{", ["not JSON"]),
        ("s.json", "[1]", ["a mapping of keys", "list"]),
        ("s.json", '{"edits": [{"op": "add", "value": NaN}], "sae": "x"}', ["finite"]),
        ("s.yaml", "a: [", ["not YAML"]),
        ("s.yaml", "just text", ["a mapping of keys", "str"]),
        ("s.yaml", "edits:\n- {op: add, feature: 1, value: .nan}\nsae: x", ["finite"]),
        ("s.txt", JSON, [".json", ".yaml", "nor a JSON object"]),
        ("s.json", b"\xff\xfe\x00", ["UTF-8"]),
        ("s.csv", b"\xff\xfe\x00", ["UTF-8"]),
        ("s.csv", "a,b\n1,2\n", ["row 1", "columns are those of lm-eval"]),
        ("s.csv", "loader,action,sparse_model,hookpoint,feature_index\n", ["nothing to steer"]),
        ("s.pt", b"not a tensor file", ["pickles are never run"]),
    ],
)
def test_files_that_are_no_spec(tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("name", ["gone.json", "gone.yaml", "gone.csv", "gone.pt"])
def test_a_file_that_is_not_there(name):
    with pytest.raises(SpecError, match=f"'{name}' does not exist"):
        load_spec(name)


AIRI = {
    "sae_release": "gemma-scope-2b-pt-res-canonical",
    "sae_id": "layer_20/width_16k/canonical",
    "sae_feature_idx": 46379,
    "sae_strength": 2.0,
    "sae_max_activation": 5.84,
}


def test_the_names_of_the_airi_fork():
    spec = spec_from_args({**AIRI, "pretrained": "x", "dtype": "bfloat16"})
    assert spec is not None
    (edit,) = spec.edits
    assert spec.sae == SAERef(release=AIRI["sae_release"], id=AIRI["sae_id"])
    assert (edit.op, edit.feature, edit.strength, edit.max_act) == ("clamp", 46379, 2.0, 5.84)
    # What is not named is as in a file: sinks are guarded.
    assert (spec.positions, spec.norm_guard) == ("all", DEFAULT_NORM_GUARD)


@pytest.mark.parametrize("features", [[1, 2, 3], (1, 2, 3), "1/2/3", "[1/2/3]"])
def test_several_features_inline(features):
    spec = spec_from_args({**AIRI, "sae_feature_idx": features, "sae_op": "add"})
    assert spec is not None
    assert [(edit.feature, edit.op) for edit in spec.edits] == [(1, "add"), (2, "add"), (3, "add")]


def test_inline_settings_of_the_spec():
    spec = spec_from_args(
        {
            "sae_path": "p",
            "sae_feature_idx": 1,
            "sae_value": 3,
            "sae_positions": "generated",
            "sae_skip_bos": True,
            "sae_norm_guard": "off",
            "sae_hook_point": "layers.3",
            "sae_scale": 2.0,
            "sae_when": "active",
            "sae_name": "n",
        }
    )
    assert spec is not None
    assert (spec.positions, spec.skip_bos, spec.norm_guard) == ("generated", True, None)
    assert (spec.hook_point, spec.name) == ("blocks.3.hook_resid_post", "n")
    assert spec.sae == SAERef(path="p", scale=2.0)
    assert spec.edits[0].when == "active"


def test_edits_with_inline_defaults_and_the_embedded_sae():
    spec = spec_from_args({"edits": '[{"op": "ablate", "feature": 4}]', "sae_positions": "prompt"})
    assert spec is not None
    assert (spec.sae, spec.positions) == (SAERef(default=True), "prompt")
    assert spec_from_args({"pretrained": "x"}) is None


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ({**AIRI, "sae_stength": 2}, ["unknown argument 'sae_stength'", "sae_strength"]),
        ({**AIRI, "spec": "s.json"}, ["'spec' and 'sae_release' are both given"]),
        ({"spec": "s.json", "edits": []}, ["'spec' and 'edits' are both given"]),
        ({"sae_path": "x", "sae_strength": 2}, ["`sae_feature_idx` is missing"]),
        ({**AIRI, "sae_strength": "much"}, ["strength", "'much'"]),
        ({**AIRI, "sae_strength": None}, ["neither"]),
        ({**AIRI, "sae_release": None}, ["exactly one of"]),
        ({"edits": "[{"}, ["`edits`", "not JSON"]),
        ({"edits": 3}, ["edits", "tuple"]),
        ({"sae_path": "x", "sae_intervention_path": "gone.pt"}, ["'gone.pt' does not exist"]),
    ],
)
def test_wrong_arguments_are_told_in_one_line(args, parts):
    with pytest.raises(SpecError) as caught:
        spec_from_args(args)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
