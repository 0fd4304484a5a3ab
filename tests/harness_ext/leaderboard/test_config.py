"""What a configuration may say, and the one line that each mistake ends in."""

import json
from pathlib import Path

import pytest
import yaml

from harness_ext.leaderboard.config import LeaderboardError, parse_config, read_config

TASK = {"name": "steer_arith"}
LEAST = {"features": [1], "edits": [{"op": "clamp", "value": 5}], "tasks": [TASK]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": [1]}, "feature: unknown key; known are name, model"),
        ({"edits": [{"op": "clamp"}]}, "`clamp` needs either `strength` or `value`"),
        ({"edits": [{"op": "clamp", "value": 1, "strength": 1}]}, "needs either"),
        ({"edits": [{"op": "ablate", "value": 1}]}, "`ablate` takes no strength or value"),
        ({"edits": [{"op": "twist", "value": 1}]}, r"edits.0.op: Input should be 'add'"),
        ({"edits": [{"op": "add", "values": 1}]}, "edits.0.values: unknown key; known are op,"),
        ({"edits": []}, "`features` and `edits` go together"),
        ({"features": [], "edits": []}, "nothing to rank"),
        ({"features": [3, 3]}, "feature 3 is named twice"),
        ({"features": [-1]}, "feature -1 is negative"),
        ({"features": {"random": 2, "file": "x"}}, "give either `random`"),
        ({"features": {"random": 2, "top": 1}}, "`top` goes with `file`"),
        ({"tasks": []}, "tasks: .* at least 1 item"),
        ({"tasks": [{"name": "a", "stage": 2}]}, "number them from 1 without gaps"),
        ({"tasks": [TASK, {"name": "b", "stage": 2}]}, "2 stages need 1 entries of `screening`"),
        ({"screening": [{"keep": 1.5, "metric": "acc_none"}]}, "a number of rows is whole"),
        ({"model": {"journal": "x"}}, "`model` takes no spec, edits or journal"),
        ({"prompts": [{"id": "a b", "text": "x"}]}, "prompts.0.id"),
        ({"prompts": [{"id": "a", "text": "x"}] * 2}, "two prompts are called 'a'"),
        ({"nulls": {"random_features": -1}}, "nulls.random_features"),
        ({"sae": {"release": "x"}}, "needs the `id`"),
    ],
)
def test_a_mistake_ends_in_one_line(change, message):
    with pytest.raises(LeaderboardError, match=message) as caught:
        parse_config({**LEAST, **change}, source="board.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("board.yaml: ")


def test_a_file_that_is_no_config_says_so(tmp_path):
    with pytest.raises(LeaderboardError, match="cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")
    for text, message in (("a: [", "is not YAML"), ("- 1", "holds a list")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(LeaderboardError, match=message) as caught:
            read_config(tmp_path / "bad.yaml")
        assert "\n" not in str(caught.value)


def test_arguments_of_the_command_are_checked_as_those_of_the_file_are(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(LEAST))
    with pytest.raises(LeaderboardError, match="`model` takes no spec, edits or journal"):
        read_config(tmp_path / "c.yaml", {"spec": "mine.yaml"})


def test_an_option_of_the_statistics_may_be_left_empty():
    config = parse_config({**LEAST, "statistics": {"dev_share": None, "split_seed": None}})
    assert (config.dev_share, config.split_seed) == (0.5, 0)


def test_paths_start_at_the_folder_of_the_file(tmp_path):
    data = {**LEAST, "features": {"file": "found.json"}, "specs": ["a.yaml"], "sae": "sae"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(data))
    config = read_config(tmp_path / "c.yaml")
    assert config.features[0].file == tmp_path / "found.json"  # type: ignore[union-attr]
    assert config.specs == (tmp_path / "a.yaml",)
    assert config.sae.path == str(tmp_path / "sae")


def test_arguments_of_the_command_hold_before_the_file_and_leave_its_rows_the_same(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**LEAST, "model": {"dtype": "float32"}}))
    plain = read_config(tmp_path / "c.yaml")
    changed = read_config(tmp_path / "c.yaml", {"backend": "vllm", "dtype": "bfloat16"})
    assert changed.backend == "vllm"
    assert changed.model["dtype"] == "bfloat16"
    assert changed.digest() == plain.digest()
    assert read_config(tmp_path / "c.yaml", {"pretrained": "x"}).digest() != plain.digest()
    assert parse_config({**LEAST, "seed": 1}).digest() != parse_config(LEAST).digest()


@pytest.mark.parametrize("file", sorted(Path("examples/leaderboard").glob("*.yaml")), ids=str)
def test_the_examples_are_configurations(file, repo_root):
    config = read_config(repo_root / file)
    assert json.loads(config.model_dump_json())["tasks"]
