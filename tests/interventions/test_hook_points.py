import pickle

import pytest

from interventions.errors import HookPointError, SteeringError
from interventions.hook_points import HookPoint, parse_hook_point


@pytest.mark.parametrize(
    ("text", "layer", "site"),
    [
        ("blocks.20.hook_resid_post", 20, "resid_post"),
        ("blocks.0.hook_resid_pre", 0, "resid_pre"),
        ("blocks.3.hook_out", 3, "resid_post"),
        ("layers.20", 20, "resid_post"),
        ("model.layers.20", 20, "resid_post"),
        ("model.language_model.layers.7", 7, "resid_post"),
        ("transformer.h.4", 4, "resid_post"),
        ("gpt_neox.layers.5", 5, "resid_post"),
        ("h.11", 11, "resid_post"),
        ("layer_20/width_16k/average_l0_71", 20, "resid_post"),
        ("layer_20/width_16k/canonical", 20, "resid_post"),
        ("l20r_800m_slimpajama", 20, "resid_post"),
        ("Llama3_1-8B-Base-L15R-8x", 15, "resid_post"),
        ("resid_post_layer_9/trainer_0", 9, "resid_post"),
        ("12-gemmascope-res-16k", 12, "resid_post"),
        (" 13 ", 13, "resid_post"),
        (13, 13, "resid_post"),
    ],
)
def test_every_dialect(text, layer, site):
    assert parse_hook_point(text) == HookPoint(layer, site)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_the_canonical_form_is_read_back(site):
    point = HookPoint(7, site)
    assert parse_hook_point(str(point)) == point


@pytest.mark.parametrize(
    "text",
    ["blocks.3.hook_mlp_out", "blocks.3.attn.hook_z", "layers.3.mlp", "l3m_800m", "L3A"],
)
def test_other_places_are_refused_by_name(text):
    with pytest.raises(HookPointError, match="not on the residual stream") as caught:
        parse_hook_point(text)
    assert text in str(caught.value)


@pytest.mark.parametrize("text", ["", "nonsense", "blocks.x.hook_resid_post", "layers.-1", "-1"])
def test_unknown_text_is_refused_with_the_form_to_write(text):
    with pytest.raises(HookPointError, match=r"blocks\.<layer>\.hook_resid_post"):
        parse_hook_point(text)


@pytest.mark.parametrize("layer", [4, 99])
def test_a_layer_outside_the_model_names_both_limits(layer):
    with pytest.raises(HookPointError) as caught:
        HookPoint(layer).check(4, "tiny")
    message = str(caught.value)
    assert f"layer {layer} is outside 0..3 of tiny" in message
    assert "\n" not in message
    HookPoint(3).check(4, "tiny")


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(HookPointError("x 1")))
    assert isinstance(error, ValueError)
    assert isinstance(error, SteeringError)
    assert str(error) == "x 1"
