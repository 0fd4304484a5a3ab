"""`sae-steered evaluate` on engines: what is declared for all specs, and a run on a server."""

import pytest

from harness_ext.autoload import install
from harness_ext.evaluate import compare, declaration
from interventions.errors import SAEError, SpecError
from interventions.plan import ModelFacts, make_plan
from interventions.spec_io import load_spec
from tests import tiny_models
from tests.steered_server import CACHED, running

LIMIT = 2


def wanted(sae_folder, name, *edits, **more):
    spec = {"name": name, "norm_guard": None, "sae": {"path": sae_folder()}, "edits": list(edits)}
    return load_spec(spec | more)


def add(feature, **more):
    return {"op": "add", "feature": feature, "value": 5.0, **more}


@pytest.fixture
def plans(sae_folder):
    facts = ModelFacts("tiny", tiny_models.D_MODEL, tiny_models.N_LAYERS)
    specs = [
        wanted(sae_folder, "a", add(1)),
        wanted(sae_folder, "b", *(add(feature) for feature in range(12))),
        wanted(sae_folder, "c", add(1, hook_point="blocks.3.hook_resid_pre")),
    ]
    return [make_plan(spec, facts) for spec in specs]


def test_an_engine_is_declared_at_the_places_of_all_specs(plans):
    # What goes into layer 3 is what comes out of layer 2.
    places = "blocks.1.hook_resid_post+blocks.2.hook_resid_post"
    assert declaration(plans, {}) == {"hook_points": places, "max_edits": 12}
    assert declaration(plans[:1], {}) == {
        "hook_points": "blocks.1.hook_resid_post",
        "max_edits": 8,
    }
    assert declaration([], {}) == {}


def test_what_the_user_declares_is_kept(plans):
    kept = declaration(plans, {"hook_points": "blocks.0.hook_resid_post", "max_edits": "40"})
    assert kept["hook_points"].startswith("blocks.0.hook_resid_post+blocks.1.")
    assert kept["max_edits"] == 40
    assert declaration(plans, {"hook_points": "all"})["hook_points"] == "all"
    assert "hook_points" in declaration([], {"hook_points": ["blocks.0.hook_resid_post"]})


@pytest.fixture
def server(tmp_path):
    install()
    folder = tiny_models.save_model(tmp_path / "model", max_position_embeddings=512)
    with running(folder) as made:
        made.info = {"max_model_len": 512}
        yield made


OPTIONS = {"limit": LIMIT, "gen_kwargs": {"max_gen_toks": 8}, "chat_template": False}


def test_a_comparison_on_a_server(server, sae_folder, tmp_path):
    specs = [wanted(sae_folder, name, add(feature)) for feature, name in enumerate("ab")]
    args = {"backend": "server", "base_url": server.url}
    comparison = compare(args, specs, ["steer_arith_hint"], output=tmp_path / "out", **OPTIONS)
    assert [run.name for run in comparison.runs] == ["baseline", "a", "b"]
    assert len({run.fingerprint for run in comparison.runs}) == 3
    for run in comparison.runs[1:]:
        told = run.results["config"]["sae_steered"]
        (edit,) = told["receipt"]["edits"]
        assert told["receipt"]["rows"] == len(run.records) == 4 * LIMIT
        assert edit["selected"] == edit["expected"] > 4 * LIMIT * (8 - 1 + CACHED)
    assert (tmp_path / "out" / "comparison.json").is_file()


def test_a_bad_spec_is_told_before_the_first_question(server, sae_folder, tmp_path):
    args = {"backend": "server", "base_url": server.url}
    for bad, kind in (
        (add(9999), SAEError),
        (add(1, hook_point="blocks.3.hook_resid_post"), SpecError),
    ):
        specs = [wanted(sae_folder, "good", add(1)), wanted(sae_folder, "bad", bad)]
        with pytest.raises(kind):
            compare(args, specs, ["steer_arith_hint"], output=tmp_path / "out", **OPTIONS)
    assert not server.bodies("/v1/completions")
