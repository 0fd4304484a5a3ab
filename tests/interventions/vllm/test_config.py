"""What an engine declares: read in every short form, refused with one line."""

from types import SimpleNamespace

import pytest

from interventions.backends.vllm.config import GRAPH, KEY, declared, parse_config
from interventions.errors import HookPointError, SpecError
from interventions.fingerprint import SCHEMA
from interventions.hook_points import HookPoint

POST = "blocks.2.hook_resid_post"


@pytest.mark.parametrize(
    "data", ["2", "layers.2", POST, [POST], {"hook_points": POST}, {"hook_points": ["layers.2"]}]
)
def test_short_forms_mean_the_same(data):
    assert parse_config(data).hook_points == (POST,)


def test_hook_points_come_by_depth_and_once():
    points = parse_config([POST, "blocks.0.hook_resid_pre", "layers.2", "0"]).points(4, "m")
    assert points == (HookPoint(0, "resid_post"), HookPoint(0, "resid_pre"), HookPoint(2))
    assert parse_config("all").points(3, "m") == tuple(HookPoint(layer) for layer in range(3))


def test_what_is_sent_to_the_workers_is_read_back():
    config = parse_config({"hook_points": ["2", "3"], "max_edits": 5, "saes": ["default"]})
    assert parse_config(config.model_dump(mode="json")) == config
    assert config.graph == GRAPH


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"hook_point": POST}, "`hook_points`: Field required; `hook_point`: Extra inputs"),
        ({"hook_points": []}, "name at least one hook point, or 'all'"),
        ({"hook_points": [POST], "max_edits": 0}, "greater than or equal to 1"),
        ({"hook_points": [POST], "max_edits": 257}, "less than or equal to 256"),
        (["blocks.2.hook_mlp_out"], "not on the residual stream"),
        (["somewhere"], "unknown hook point 'somewhere'"),
        ({"hook_points": 3.5}, "name at least one hook point"),
    ],
)
def test_bad_configs_are_refused_on_one_line(data, message):
    with pytest.raises(SpecError) as error:
        parse_config(data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert KEY in str(error.value)


def test_another_version_is_refused():
    with pytest.raises(SpecError, match=f"graph version 0.7, this process has {GRAPH}"):
        parse_config({"hook_points": [POST], "graph": "0.7"})
    assert GRAPH.endswith(f".{SCHEMA}"), "other maths is another graph"


def test_a_layer_outside_the_model_is_refused():
    with pytest.raises(HookPointError, match=r"layer 2 is outside 0..1 of tiny"):
        parse_config(POST).points(2, "tiny")


@pytest.mark.parametrize("additional", [None, {}, {"other": 1}, {KEY: None}, "text"])
def test_an_engine_that_declares_nothing(additional):
    assert declared(SimpleNamespace(additional_config=additional)) is None


def test_an_engine_that_declares_hook_points():
    config = declared(SimpleNamespace(additional_config={KEY: [POST]}))
    assert config == parse_config(POST)
