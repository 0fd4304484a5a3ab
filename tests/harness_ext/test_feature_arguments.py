"""Arguments that commands about features share, and the line each bad one ends in."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness_ext.feature_arguments import add_subject, add_text, sae_of, subject_of, text_of
from interventions.errors import ModelMismatchError, SpecError, TextError
from interventions.spec import SAERef
from tests.tiny_models import save_sae


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_subject(parser)
    add_text(parser, tokens=1000, context=64)
    return parser.parse_args(list(arguments))


@pytest.mark.parametrize(
    ("arguments", "ref"),
    [
        ([], {"default": True}),
        (["--sae-path", "runs/x"], {"path": "runs/x"}),
        (["--sae-path", "runs/x", "--sae-id", "a/b"], {"path": "runs/x", "id": "a/b"}),
        (["--model", "m", "--sae-repo", "o/n", "--sae-id", "f"], {"repo": "o/n", "id": "f"}),
        (["--model", "m", "--sae-release", "r", "--sae-id", "i"], {"release": "r", "id": "i"}),
    ],
)
def test_the_sae_is_the_one_named(arguments: list[str], ref: dict[str, str]) -> None:
    assert sae_of(_parsed(arguments)) == SAERef.model_validate(ref)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sae-path", "a", "--sae-repo", "b/c"], "give one of --sae-path, --sae-repo"),
        (["--sae-release", "r"], "--sae-release r needs --sae-id"),
        (["--sae-id", "i"], "--sae-id goes with --sae-release"),
        (["--model", "gpt2"], "no SAE given for 'gpt2'; name one with --sae-release"),
    ],
)
def test_an_sae_named_by_half_or_twice_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        sae_of(_parsed(arguments))


def test_settings_reach_the_subject(model_folder, tmp_path: Path) -> None:
    sae = str(save_sae(tmp_path, median_norm=3.0).path)
    arguments = ["--model", model_folder(), "--sae-path", sae, "--guard", "4", "--dtype", "float64"]
    subject = subject_of(_parsed([*arguments, "--device", "cpu"]))
    assert subject.limit == pytest.approx(12.0)
    assert subject.describe()["dtype"] == "float64"
    assert subject.device.type == "cpu"


def test_a_guard_of_0_is_off(model_folder, tmp_path: Path) -> None:
    sae = str(save_sae(tmp_path, median_norm=3.0).path)
    arguments = ["--model", model_folder(), "--sae-path", sae, "--guard", "0"]
    assert subject_of(_parsed(arguments)).limit is None


@pytest.mark.real
def test_another_model_is_accepted_only_when_asked(tmp_path: Path) -> None:
    sae = str(save_sae(tmp_path, d_model=576, model_name="google/gemma-2-2b", median_norm=1.0).path)
    with pytest.raises(ModelMismatchError, match="gemma-2-2b"):
        subject_of(_parsed(["--sae-path", sae]))
    assert subject_of(_parsed(["--sae-path", sae, "--any-model"])).sae.d_sae == 48


def test_text_comes_from_files_packages_and_the_hub() -> None:
    found = text_of(
        _parsed(
            ["--text", "a.jsonl", "--text", "docs:stdlib", "--text", "hub:o/n", "--split", "test"]
        )
    )
    one, two, three = (source.model_dump(exclude_none=True) for source in found.sources)
    assert one["path"] == "a.jsonl"
    assert tuple(two["docs"]) == ("stdlib",)
    assert (three["dataset"], three["split"]) == ("o/n", "test")
    assert "name" not in three
    (named,) = text_of(_parsed(["--text", "hub:o/n:metadata"])).sources
    assert (named.dataset, named.name) == ("o/n", "metadata")
    assert (found.tokens, found.context) == (1000, 64)


def test_columns_and_templates_go_to_files_and_data_sets() -> None:
    column = text_of(_parsed(["--text", "a.jsonl", "--column", "body", "--tokens", "7"]))
    assert column.sources[0].text == "body"
    assert column.tokens == 7
    template = text_of(_parsed(["--text", "a.jsonl", "--template", "{q} {a}"]))
    assert template.sources[0].template == "{q} {a}"


def test_a_text_config_stands_for_all(tmp_path: Path) -> None:
    path = tmp_path / "text.yaml"
    path.write_text("sources: [{docs: [stdlib]}]\ntokens: 5\ncontext: 9\n")
    found = text_of(_parsed(["--text-config", str(path)]))
    assert (found.tokens, found.context) == (5, 9)
    found = text_of(_parsed(["--text-config", str(path), "--tokens", "30"]))
    assert (found.tokens, found.context) == (30, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no text given; name a file"),
        (["--text", "a.jsonl", "--text-config", "b.yaml"], "--text or --text-config, not both"),
        (["--column", "body", "--text-config", "b.yaml"], "--column or --text-config, not both"),
        (["--text-config", "/no/such.yaml"], "/no/such.yaml cannot be read"),
    ],
)
def test_missing_text_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        text_of(_parsed(arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "holds a list; a text config is a mapping"),
        ("a: [", "cannot be read"),
        ("", "holds a NoneType"),
    ],
)
def test_a_text_config_of_another_shape_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "text.yaml"
    path.write_text(content)
    with pytest.raises(SpecError, match=message) as caught:
        text_of(_parsed(["--text-config", str(path)]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", ["sources: []\n", "sources: [{docs: [stdlib]}]\nnonsense: 1\n", "tokens: 5\n"]
)
def test_an_impossible_text_config_is_refused(tmp_path: Path, settings: str) -> None:
    path = tmp_path / "text.yaml"
    path.write_text(settings)
    with pytest.raises((SpecError, TextError), match=r"text\.yaml") as caught:
        text_of(_parsed(["--text-config", str(path)]))
    assert "\n" not in str(caught.value)
