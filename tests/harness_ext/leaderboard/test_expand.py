"""Which rows a configuration makes, how random ones are drawn and scaled, and what they promote."""

import json

import pytest
import torch

from harness_ext.leaderboard.calibrate import Calibration, calibrate, lexical
from harness_ext.leaderboard.config import LeaderboardError, parse_config
from harness_ext.leaderboard.expand import Features, candidates, chosen_features, fixed_rows
from harness_ext.leaderboard.nulls import Nulls, with_changes
from harness_ext.leaderboard.rows import PLAN, all_rows
from interventions.hook_points import parse_hook_point
from interventions.plan import ModelFacts, make_plan
from interventions.spec import SAERef, parse_spec
from tests.harness_ext.leaderboard.boards import tiny_config
from tests.tiny_models import D_MODEL, save_sae

POINT = parse_hook_point("blocks.1.hook_resid_post")
FACTS = ModelFacts("tiny", d_model=D_MODEL, n_layers=3)
DEFAULT = ModelFacts("HuggingFaceTB/SmolLM2-135M-Instruct", d_model=576, n_layers=30)


@pytest.fixture(scope="module")
def calibration(tiny):
    return calibrate({"pretrained": tiny[0], "device": "cpu"}, [POINT])


def config_of(tiny, **more):
    return parse_config(tiny_config(*tiny, **more))


def test_rows_are_every_feature_under_every_size_of_every_edit(tiny):
    edits = [{"op": "clamp", "strength": [0.5, 1]}, {"op": "ablate"},
             {"op": "add", "value": 3, "positions": "generated"}]  # fmt: skip
    config = config_of(tiny, edits=edits)
    found = candidates(config, Features(config.sae), FACTS)
    assert [planned.row.id for planned in found] == [
        "f0_clamp_0.5_max", "f5_clamp_0.5_max", "f0_clamp_1_max", "f5_clamp_1_max",
        "f0_ablate", "f5_ablate", "f0_add_3_generated", "f5_add_3_generated",
    ]  # fmt: skip
    row = found[0].row
    assert (row.op, row.strength, row.value, row.feature) == ("clamp", 0.5, 3.0, 0)
    assert (row.hook_point, row.positions) == (str(POINT), "all")
    again = make_plan(parse_spec(row.spec or {}), FACTS)
    assert again.fingerprint == row.fingerprint
    assert [planned.row.kind for planned in fixed_rows(config)] == ["baseline", "prompt"]


def test_two_rows_of_one_name_are_refused(tiny):
    config = config_of(tiny, edits=[{"op": "add", "value": 3}] * 2)
    with pytest.raises(LeaderboardError, match="2 rows are called 'f0_add_3'"):
        candidates(config, Features(config.sae), FACTS)


def test_random_features_come_from_all_densities_and_are_never_taken_twice():
    from safetensors.torch import load_file

    from interventions.default_model import default_sae_path

    features = Features(SAERef(default=True))
    drawn = features.random(20, seed="a")
    assert drawn == features.random(20, seed="a") != features.random(20, seed="b")
    density = load_file(default_sae_path() / "stats.safetensors")["density"]
    ranks = density.argsort().argsort()[drawn].tolist()
    assert [rank * 20 // len(density) for rank in ranks] == list(range(20))
    rest = features.random(4000, seed="a", without=drawn)
    assert len(set(rest) | set(drawn)) == 4020
    with pytest.raises(LeaderboardError, match=r"4608 random features .* has 4588 live"):
        features.random(4608, seed="a", without=drawn)


def test_without_statistics_nothing_is_called_live(tmp_path):
    sae = SAERef(path=str(save_sae(tmp_path / "bare").path))
    with pytest.raises(LeaderboardError, match="its live features are unknown; name features"):
        Features(sae).random(2, seed="a")


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"about": 1, "features": rows}])
def test_features_come_from_the_file_of_a_command(tiny, tmp_path, wrap):
    file = tmp_path / "found.json"
    file.write_text(json.dumps(wrap([{"feature": n, "score": 1.0} for n in (7, 3, 9)])))
    config = config_of(tiny, features=[3, {"file": str(file), "top": 2}, {"random": 3}])
    chosen = chosen_features(config, Features(config.sae))
    assert chosen[:2] == [3, 7]
    assert len(set(chosen)) == 5
    for text in ("[]", '[{"f": 1}]', "{"):
        file.write_text(text)
        with pytest.raises(LeaderboardError, match=str(file)):
            chosen_features(config, Features(config.sae))


def test_the_mean_change_is_what_the_editor_does_to_the_stream(calibration, tiny):
    resid = calibration.resid[POINT]
    sae = Features(SAERef(path=tiny[1])).sae

    def change(**edit):
        spec = {"sae": {"path": tiny[1]}, "edits": [{"feature": 4, **edit}], "norm_guard": None}
        return calibration.mean_change(make_plan(parse_spec(spec), FACTS))

    acts, length = sae.encode(resid)[:, 4], float(sae.W_dec[4].norm())
    assert change(op="add", value=3) == pytest.approx(3 * length, rel=1e-5)
    clamped = float((9 - acts).abs().mean()) * length
    assert change(op="clamp", value=9) == pytest.approx(clamped, rel=1e-4)
    assert change(op="ablate") == pytest.approx(float(acts.mean()) * length, rel=1e-4)


def test_tokens_that_the_guard_leaves_alone_do_not_count(tiny):
    resid = torch.randn(6, D_MODEL, generator=torch.Generator().manual_seed(0))
    resid[2] *= 1000
    calibration = Calibration({POINT: resid}, {POINT: 8.0}, None, ())
    spec = {"sae": {"path": tiny[1]}, "edits": [{"op": "add", "value": 2, "unit": "residual"}]}
    assert calibration.mean_change(make_plan(parse_spec(spec), FACTS)) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize(
    "edit",
    [
        {"op": "add", "value": 4},
        {"op": "add", "value": -4},
        {"op": "clamp", "strength": 2},
        {"op": "scale", "value": 6},
        {"op": "project", "value": 5, "unit": "residual"},
    ],
)
def test_nulls_of_every_operator_push_as_far_as_the_median_candidate(
    tiny, calibration, tmp_path, edit
):
    config = config_of(tiny, edits=[edit], features=[0, 1, 2], prompts=[])
    features = Features(config.sae)
    tried = with_changes(candidates(config, features, FACTS), calibration)
    found = Nulls(config, features, FACTS, calibration, tmp_path).rows(tried)
    changes = sorted(planned.row.mean_change or 0.0 for planned in tried)
    for planned in found:
        assert planned.row.mean_change == pytest.approx(changes[1], rel=2e-3)
        assert planned.plan is not None
        if planned.row.kind == "random_feature":
            assert planned.row.op == edit["op"]
            measured = calibration.mean_change(planned.plan)
            assert measured == pytest.approx(changes[1], rel=2e-3)
            if edit.get("value", 0) < 0:
                assert (planned.row.value or 0) < 0


def test_every_size_has_its_own_nulls(tiny, calibration, tmp_path):
    config = config_of(tiny, edits=[{"op": "add", "value": [2, 8]}, {"op": "ablate"}])
    features = Features(config.sae)
    tried = with_changes(candidates(config, features, FACTS), calibration)
    found = Nulls(config, features, FACTS, calibration, tmp_path).rows(tried)
    assert [planned.row.kind for planned in found] == (
        ["random_feature"] * 2 + ["random_direction"] * 2
    ) * 3
    matched = [planned.row.matches or "" for planned in found]
    assert [name.split("_", 1)[1] for name in matched[::4]] == ["add_2", "add_8", "ablate"]


def test_without_weights_a_length_is_needed(tiny, tmp_path):
    config = config_of(tiny)
    features = Features(config.sae)
    tried = candidates(config, features, FACTS)
    with pytest.raises(LeaderboardError, match=r"give nulls\.mean_change"):
        Nulls(config, features, FACTS, None, tmp_path).rows(tried)
    given = config_of(tiny, nulls={"random_features": 1, "random_directions": 1, "mean_change": 3})
    found = Nulls(given, features, FACTS, None, tmp_path).rows(tried)
    length = float(features.sae.W_dec[found[0].row.feature].norm())  # type: ignore[index]
    assert found[0].row.value == pytest.approx(3 / length)
    assert found[1].row.value == 3


def test_promoted_tokens_are_those_of_the_largest_logits(calibration, tiny):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny[0], dtype=torch.float32)
    spec = {"sae": {"path": tiny[1]}, "edits": [{"op": "add", "feature": 4, "value": 2}]}
    plan = make_plan(parse_spec(spec), FACTS)
    direction = Features(SAERef(path=tiny[1])).sae.W_dec[4]
    logits = model.lm_head.weight.float() @ (direction * model.model.norm.weight.float())
    logits = logits - model.lm_head.weight.float().mul(model.model.norm.weight).mean(0) @ direction
    words = [calibration.words[i] for i in logits.topk(10).indices.tolist()]
    assert list(calibration.promoted(plan)) == words
    away = {**spec, "edits": [{"op": "add", "feature": 4, "value": -2}]}
    opposite = calibration.promoted(make_plan(parse_spec(away), FACTS))
    assert list(opposite) == [calibration.words[i] for i in (-logits).topk(10).indices.tolist()]


def test_lexical_words_are_those_a_detector_counts():
    words = (" music", " teacher", "Professor", " hint", "ing", " source", "the", " expert")
    assert lexical(words) == (" teacher", "Professor", " hint", " source", " expert")


def test_rows_are_planned_once_for_all_processes(tiny, tmp_path):
    config = config_of(tiny)
    features = Features(config.sae)
    rows, created = all_rows(config, features, FACTS, tmp_path)
    data = json.loads((tmp_path / PLAN).read_text())
    # Another machine would measure this in its last bits otherwise.
    value = data["rows"][3]["spec"]["edits"][0]["value"]
    data["rows"][3]["spec"]["edits"][0]["value"] = value * 1.000001
    data["created"] = "2026-01-01T00:00:00Z"
    (tmp_path / PLAN).write_text(json.dumps(data))
    again, when = all_rows(config, features, FACTS, tmp_path)
    assert (when, created) == ("2026-01-01T00:00:00Z", created)
    assert again[3].plan is not None
    assert rows[3].plan is not None
    assert again[3].plan.fingerprint != rows[3].plan.fingerprint
    other = config_of(tiny, seed=7)
    anew, _ = all_rows(other, features, FACTS, tmp_path)
    assert json.loads((tmp_path / PLAN).read_text())["digest"] != data["digest"]
    assert anew[0].row == rows[0].row
    assert [p.row for p in all_rows(other, features, FACTS, tmp_path)[0]] == [p.row for p in anew]
    (tmp_path / PLAN).write_text("{")
    assert [p.row for p in all_rows(other, features, FACTS, tmp_path)[0]] == [p.row for p in anew]


def test_rows_are_planned_anew_where_a_file_of_the_configuration_changed(tiny, tmp_path):
    spec, found = tmp_path / "mine.yaml", tmp_path / "found.json"
    folder, sae = tmp_path / "out", tmp_path / "sae"
    folder.mkdir()
    save_sae(sae, max_act=6.0, median_norm=8.0)

    def plan():
        config = config_of(
            (tiny[0], str(sae)), features={"file": str(found)}, specs=[str(spec)], prompts=[]
        )
        rows, _ = all_rows(config, Features(config.sae), FACTS, folder)
        return {planned.row.id: planned.row for planned in rows}

    def write(value, feature):
        edit = {"op": "add", "feature": 3, "value": value}
        told = {"name": "mine", "sae": {"path": str(sae)}, "edits": [edit]}
        spec.write_text(json.dumps(told))
        found.write_text(json.dumps([{"feature": feature}]))

    write(2.0, 0)
    first = plan()
    assert plan() == first
    write(3.0, 0)
    second = plan()
    assert second["spec-mine"].value == 3.0
    write(3.0, 5)
    third = plan()
    assert "f5_add_20" in third
    assert "f0_add_20" not in third
    save_sae(sae, max_act=6.0, median_norm=8.0, seed=9)
    fourth = plan()
    assert fourth["f5_add_20"].fingerprint != third["f5_add_20"].fingerprint
    assert fourth["f5_add_20"].mean_change != third["f5_add_20"].mean_change
