"""Rankings survive a file, and their best features are specs that the next command takes."""

import dataclasses
import json

import pyarrow.parquet
import pytest
import torch
import yaml

from interventions.backends.hf import HFSteering
from interventions.default_model import wheel_label
from interventions.errors import FeatureError, SpecError
from interventions.features.scored import (
    Scored,
    best_spec,
    next_command,
    read_scored,
    write_scored,
    write_spec,
    write_table,
)
from interventions.plan import ModelFacts, make_plan
from interventions.receipt import TokenFacts
from interventions.spec_io import load_spec
from interventions.subject import load_subject
from tests.tiny_models import D_MODEL, D_SAE, N_LAYERS, save_model, save_sae


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subject")
    sae = save_sae(folder / "sae", max_act=5.0, median_norm=3.0, model_name="another/model")
    return load_subject(str(save_model(folder / "model")), str(sae.path), check_model=False)


def ranking(subject, **more):
    rows = [{"feature": 7, "score": 2.0}, {"feature": 3, "score": 1.0, "max_act": 9.0}]
    given = {"text": {"path": "a.jsonl"}, "settings": {"alpha": 0.7}, "features": rows, **more}
    return Scored.of("reason", subject, **given)


def test_a_ranking_comes_back_from_its_file(subject, tmp_path):
    scored = ranking(subject, notes=["one"], facts={"tokens": 12})
    write_scored(tmp_path / "new" / "scores.json", scored)
    assert read_scored(tmp_path / "new" / "scores.json").as_dict() == scored.as_dict()
    assert [row["max_act"] for row in scored.features] == [5.0, 9.0]


def test_figures_that_are_not_finite_are_null(subject, tmp_path):
    rows = [{"feature": 1, "score": float("inf"), "q": float("nan")}]
    write_scored(tmp_path / "a.json", ranking(subject, features=rows))
    raw = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert raw["features"][0]["score"] is None
    assert raw["features"][0]["q"] is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"features": 3}'])
def test_another_file_is_refused(content, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(FeatureError, match=r"x\.json"):
        read_scored(tmp_path / "x.json")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_the_spec_steers_the_features_it_names(subject, tmp_path, suffix):
    path = tmp_path / f"best.{suffix}"
    write_spec(path, ranking(subject), top=2, strength=2.0, positions="all")
    plan = make_plan(load_spec(path), ModelFacts(subject.label, D_MODEL, N_LAYERS))
    (layer,) = plan.layers
    assert str(layer.hook_point) == str(subject.hook_point)
    assert layer.median_norm == 3.0
    assert [e.feature for e in plan.spec.edits] == [7, 3]
    assert [e.strength * e.max_act for e in plan.spec.edits] == [10.0, 18.0]
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = subject.model(ids).logits
        steering = HFSteering(subject.model, plan, TokenFacts())
        with steering:
            steering.begin(torch.tensor([0]), torch.tensor([ids.shape[1]]))
            assert not torch.equal(subject.model(ids).logits, before)


def test_an_sae_for_another_model_makes_a_spec_that_says_so(subject):
    assert "check_model" not in best_spec(ranking(subject))  # a folder tells no model's name
    named = dataclasses.replace(subject, label="some/thing")
    assert best_spec(ranking(named))["check_model"] is False


@pytest.mark.parametrize(
    ("features", "more", "message"),
    [
        ([], {}, "no feature was found"),
        ([{"feature": 1, "score": 1.0, "max_act": 0.0}], {}, "feature 1 has no largest activation"),
        ([{"feature": 1, "score": 1.0}], {"op": "spin"}, "op"),
    ],
)
def test_what_cannot_be_steered_is_refused(subject, features, more, message):
    with pytest.raises((FeatureError, SpecError), match=message):
        best_spec(ranking(subject, features=features), **more)


def test_a_spec_is_yaml_or_json(subject, tmp_path):
    with pytest.raises(FeatureError, match="neither"):
        write_spec(tmp_path / "spec.txt", ranking(subject))
    write_spec(tmp_path / "a.yaml", ranking(subject), op="ablate")
    assert yaml.safe_load((tmp_path / "a.yaml").read_text())["edits"] == [
        {"op": "ablate", "feature": 7}
    ]


def test_the_table_keeps_all_features_and_its_provenance(tmp_path):
    columns = {"feature": list(range(D_SAE)), "score": torch.rand(D_SAE)}
    write_table(tmp_path / "all.parquet", columns, {"kind": "reason"})
    table = pyarrow.parquet.read_table(tmp_path / "all.parquet")
    assert table.column("score").to_pylist() == columns["score"].tolist()
    assert json.loads(table.schema.metadata[b"sae_steered"]) == {"kind": "reason"}


def test_the_next_command_names_the_model_unless_it_is_the_embedded_one(subject):
    assert f"--model {subject.label}" in next_command(ranking(subject), "a.yaml")
    ours = Scored("x", {"model": "m", "sae": {"default": True}}, {}, {}, [])
    assert "--model" not in next_command(ours, "a.yaml")
    # Another SAE on the embedded model: its label says which weights these are, and loads nothing.
    label = wheel_label("0.1.2", "b179c9523d0e")
    trained = Scored("x", {"model": label, "sae": {"path": "mine"}}, {}, {}, [])
    assert next_command(trained, "a b.yaml").startswith("sae-steered evaluate --spec 'a b.yaml' ")
