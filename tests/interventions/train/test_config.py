from pathlib import Path

import pytest

from interventions.errors import SpecError
from interventions.train.config import fingerprint, load_config

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
