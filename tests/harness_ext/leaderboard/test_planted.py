"""The example of a planted feature is a configuration that can find it; docs tell what it found."""

import runpy

import pytest

from harness_ext.leaderboard.config import parse_config


@pytest.fixture(scope="module")
def example(repo_root):
    return runpy.run_path(str(repo_root / "examples" / "leaderboard" / "planted.py"))


def test_the_example_is_a_configuration(example):
    config = parse_config(example["BOARD"])
    assert config.features[0] == example["FEATURE"]
    assert config.nulls.random_features + config.nulls.random_directions >= 19  # p_null <= .05
