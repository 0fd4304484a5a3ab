import json
from pathlib import Path

import pytest

from interventions.default_model import default_sae_path
from interventions.errors import SpecError
from interventions.train.config import TrainConfig, TrainerConfig, fingerprint, load_config

_GOOD = """
name: tiny
generate: {tokens: 100}
trainer: {d_sae: 64, k: 4, tokens_seen: 1000}
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_the_shipped_config_asks_for_what_the_issue_asks_for():
    config = load_config(Path(__file__).parents[3] / "examples" / "train" / "default.yaml")
    assert str(config.hook) == "blocks.15.hook_resid_post"
    assert (config.model, config.trainer.d_sae, config.trainer.k) == ("default", 4608, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trainer: {d_sae: 64, k: 64, tokens_seen: 9}", "k=64 must be below d_sae=64"),
        ("trainer: {d_sae: 64, k: 4, tokens_seen: 9, lrr: 1}", r"trainer\.lrr: Extra inputs"),
        ("trainer: {d_sae: 64, tokens_seen: 9}", "architecture batchtopk needs k"),
        ("trainer: {d_sae: 64, k: 4, tokens_seen: 9, lr: -1}", r"trainer\.lr: .*got -1"),
        ("generate: {tokens: 0}", "there is no text"),
        ("docs: {tokens: 5}", r"docs\.tokens=5 needs docs\.packages"),
        ("seed: [1]", "seed: .*valid integer"),
    ],
)
def test_a_bad_key_is_one_line(tmp_path, change, message):
    key = change.split(":")[0]
    lines = [line for line in _GOOD.strip().splitlines() if not line.startswith(key + ":")]
    path = _write(tmp_path, "\n".join([*lines, change]))
    with pytest.raises(SpecError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_no_yaml_and_no_mapping(tmp_path):
    with pytest.raises(SpecError, match="name a YAML file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="is not YAML") as caught:
        load_config(_write(tmp_path, "a: [1"))
    assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="holds a list"):
        load_config(_write(tmp_path, "- 1"))


def test_fingerprint_sees_every_setting(tmp_path):
    good = load_config(_write(tmp_path, _GOOD))
    other = load_config(_write(tmp_path, _GOOD + "seed: 1\n"))
    assert fingerprint(good) == fingerprint(load_config(_write(tmp_path, _GOOD)))
    assert fingerprint(good) != fingerprint(other)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ("d_sae: 64, expansion: 2, k: 4", "one of d_sae and expansion"),
        ("k: 4", "one of d_sae and expansion"),
        ("d_sae: 64, architecture: topk", "architecture topk needs k"),
        ("d_sae: 64, k: 4, architecture: standard", r"its sparsity is options\.l1_coefficient"),
        ("d_sae: 64, k: 4, architecture: topk, backend: own", "own trains batchtopk, not topk"),
        ("d_sae: 64, k: 4, options: {a: 1}", "options is a setting of backend saelens"),
        ("d_sae: 64, k: 4, b_dec: zeros", "b_dec is a setting of backend saelens"),
        ("d_sae: 64, architecture: standard, clip: 2", "clip is a setting of backend own"),
        ("d_sae: 64, k: 4, architecture: relu", r"trainer\.architecture: .*got 'relu'"),
    ],
)
def test_settings_of_the_trainer_that_cannot_work_are_one_line(tmp_path, trainer, message):
    text = f"name: tiny\ngenerate: {{tokens: 9}}\ntrainer: {{tokens_seen: 9, {trainer}}}\n"
    with pytest.raises(SpecError, match=message) as caught:
        load_config(_write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("harvest: {store: false}", "harvest.store: false reads `text` alone"),
        ("text: {sources: []}", r"text\.sources"),
        ("text: {sources: [{path: a.jsonl, weight: -1}]}", r"text\.sources\.0\.weight"),
        ("log: {to: tensorboard, project: p}", r"log\.to"),
        ("log: {to: wandb}", r"log\.project: Field required"),
    ],
)
def test_other_settings_that_cannot_work_are_one_line(tmp_path, text, message):
    with pytest.raises(SpecError, match=message) as caught:
        load_config(_write(tmp_path, _GOOD + text + "\n"))
    assert "\n" not in str(caught.value)


def test_a_buffer_below_two_batches_is_refused(tmp_path):
    text = """
name: tiny
text: {sources: [{path: a.jsonl}]}
harvest: {store: false, buffer_tokens: 100}
trainer: {d_sae: 64, k: 4, tokens_seen: 1000, batch_size: 64}
"""
    with pytest.raises(SpecError, match=r"buffer_tokens=100 must be at least twice"):
        load_config(_write(tmp_path, text))


def test_expansion_becomes_d_sae():
    config = TrainerConfig(expansion=16, tokens_seen=9, architecture="standard")
    assert config.resolved(4096).width == 65_536
    with pytest.raises(SpecError, match="is not resolved"):
        _ = config.width
    with pytest.raises(SpecError, match="k=40 must be below d_sae=32"):
        TrainerConfig(expansion=1, k=40, tokens_seen=9).resolved(32)


def test_the_shipped_sae_is_explained_by_the_shipped_config():
    config = load_config(Path(__file__).parents[3] / "examples" / "train" / "default.yaml")
    log = json.loads((default_sae_path() / "training_log.json").read_text())
    assert TrainConfig.model_validate(log["config"]) == config
    metadata = json.loads((default_sae_path() / "cfg.json").read_text())["metadata"]
    assert metadata["config_fingerprint"] == fingerprint(config)


def test_a_later_setting_changes_the_fingerprint_only_when_it_is_used():
    plain = TrainerConfig(d_sae=64, k=4, tokens_seen=9)
    same = TrainerConfig(d_sae=64, k=4, tokens_seen=9, backend="auto", b_dec="mean")
    other = TrainerConfig(d_sae=64, k=4, tokens_seen=9, backend="saelens")
    assert fingerprint(plain) == fingerprint(same) != fingerprint(other)


@pytest.mark.parametrize("name", ["small", "default", "r1_distill_llama_8b"])
def test_every_example_parses(name):
    assert load_config(Path(__file__).parents[3] / "examples" / "train" / f"{name}.yaml").name
