"""Proof in life: a feature with a known effect on the embedded model is found among random ones."""

import json
import runpy

import pytest
import yaml

from harness_ext.cli import main
from harness_ext.leaderboard.config import parse_config
from harness_ext.leaderboard.results import Results


@pytest.fixture(scope="module")
def example(repo_root):
    return runpy.run_path(str(repo_root / "examples" / "leaderboard" / "planted.py"))


def test_the_example_is_a_configuration(example):
    config = parse_config(example["BOARD"])
    assert config.features[0] == example["FEATURE"]
    assert config.nulls.random_features + config.nulls.random_directions >= 19  # p_null <= .05


@pytest.mark.real
@pytest.mark.slow
def test_a_planted_feature_is_found_among_random_ones_and_nothing_else(example, tmp_path):
    file = example["plant"](tmp_path)
    config = yaml.safe_load(file.read_text())
    config["features"] = [example["FEATURE"], {"random": 6}]
    config["nulls"] = {"random_features": 6, "random_directions": 3}
    config["statistics"] = {"metrics": ["mean_tokens"]}
    file.write_text(yaml.safe_dump(config))
    out = tmp_path / "board"
    assert main(["leaderboard", "run", str(file), "--output", str(out)]) == 0
    results = Results.model_validate_json((out / "results.json").read_text())
    (family,) = results.families
    (cell,) = [c for c in results.cells if c.discovery]
    assert family.discoveries == (cell.row,)
    assert f"f{example['FEATURE']}" in cell.row
    assert cell.rank == 1
    assert cell.q is not None
    assert cell.q <= 0.05
    assert cell.effect.hi is not None
    assert cell.effect.hi < 0
    # All were pushed as far: it is the direction that did it, not the length.
    rows = json.loads((out / "rows.json").read_text())
    changes = {row["id"]: row["mean_change"] for row in rows if row.get("mean_change")}
    assert len(changes) == 16
    assert max(changes.values()) == pytest.approx(min(changes.values()), rel=0.02)
