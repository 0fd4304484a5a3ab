"""`sae-steered facts` and `sae-steered find`: what they print, write and refuse."""

import json

import pytest

from harness_ext.cli import main
from interventions.features.scored import Scored, write_scored
from tests.interventions.features.facts_cases import make_text
from tests.tiny_models import save_model, save_sae


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    save_model(folder / "model")
    save_sae(folder / "sae", median_norm=2.0)
    make_text(folder)
    return folder


def facts(base, out, *more):
    given = ["facts", "--model", f"{base}/model", "--sae-path", f"{base}/sae", "--text"]
    given += [f"{base}/text.jsonl", "--tokens", "1200", "--context", "48", "--out", f"{base}/{out}"]
    return main([*given, *more])


def test_facts_then_find_then_a_spec(base, capsys):
    assert (
        facts(base, "f", "--json", "--causal", "--inject", "--features", "3,5", "--passages", "8")
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["read"] == 1200
    assert report["causal"]["features"] == 2
    assert sum(report["injection"].values()) == 2
    spec = base / "found.yaml"
    given = ["find", f"{base}/f", "--activates-on", "t", "--spec-out", str(spec)]
    assert main([*given, "--out", f"{base}/found.json"]) == 0
    printed = capsys.readouterr().out
    assert "steer with it:\n  sae-steered evaluate" in printed
    assert "by `activates on`" in printed
    kept = json.loads((base / "found.json").read_text())
    assert kept["kind"] == "find"
    best = kept["features"][0]["feature"]
    assert f"feature: {best}\n" in spec.read_text()
    assert (
        main(["find", f"{base}/f", "--scores", f"{base}/found.json", "--top", "1", "--json"]) == 0
    )
    assert [r["feature"] for r in json.loads(capsys.readouterr().out)["features"]] == [best]
    # The ranking is a shortlist for the measurements, too.
    assert facts(base, "f", "--inject", "--scores", f"{base}/found.json", "--top", "3") == 0
    assert "injection token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--features", "3"], "choose what --causal and --inject measure"),
        (["--causal", "--features", "3;4"], "is no list of numbers such as 12,345"),
        (["--causal", "--features", "99"], "feature 99 is outside 0..47"),
        (["--causal", "--features", "3", "--scores", "x.json"], "not both"),
        (["--causal", "--scores", "x.json"], "x.json cannot be read"),
        (["--window", "3"], "holds facts of other settings"),
    ],
)
def test_facts_refuses_what_it_cannot_do(base, capsys, more, message):
    assert facts(base, "g") == 0
    assert facts(base, "g", *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sae-steered facts: error: ")
    assert message in error


@pytest.mark.parametrize("wrong", [["--features", "99"], ["--features", "x"], ["--scores", "x"]])
def test_a_wrong_shortlist_is_refused_before_the_text_is_read(base, wrong):
    assert facts(base, "never", "--causal", *wrong) == 2
    assert not (base / "never").exists()


def test_a_ranking_of_another_sae_is_refused_before_the_text_is_read(base, capsys):
    rows = [{"feature": 1, "score": 1.0}]
    subject = {"sae_hash": "00", "sae_label": "another"}
    write_scored(base / "other.json", Scored("find", subject, None, {}, rows))
    assert facts(base, "never", "--causal", "--scores", f"{base}/other.json") == 2
    assert "ranks features of another, not of" in capsys.readouterr().err
    assert not (base / "never").exists()


def test_find_names_words_that_are_no_token(base, capsys):
    assert facts(base, "h") == 0
    assert main(["find", f"{base}/h", "--activates-on", "t", "Zebra"]) == 0
    assert "note: no single token of this model, so not looked for: zebra" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["find", f"{base}/h", "--activates-on", "zebra"]) == 2
    assert "`activates on` means no token of this model: it has no" in capsys.readouterr().err
    assert main(["find", f"{base}/h", "--promotes", "/zebra/"]) == 2
    assert "means no token of this model: none matches" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("find F --within 0", "--within: 0 is less than 1"),
        ("find F --share 3", "--share: 3 is no share"),
        ("find F --density a b", "--density: 'a' is no number"),
        ("find F --top -1", "--top: -1 is less than 1"),
        ("find F --spec-strength nan", "--spec-strength: nan is not finite"),
        ("facts --out F --lens -1", "--lens: -1 is less than 1"),
        ("facts --out F --strength inf", "--strength: inf is not finite"),
        ("facts --out F --guard -1", "--guard: -1 is less than 0"),
        ("facts --out F --tokens many", "--tokens: 'many' is no whole number"),
        ("score reason --batch-tokens 0", "--batch-tokens: 0 is less than 1"),
        ("score reason --alpha nan", "--alpha: nan is not finite"),
        ("score contrast --keep 0", "--keep: 0 is less than 1"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_read(capsys, command, message):
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_strength_of_the_spec_is_the_users(base, capsys):
    spec = base / "weak.yaml"
    assert facts(base, "w") == 0
    given = ["find", f"{base}/w", "--top", "1", "--spec-out", str(spec), "--spec-strength", "0.5"]
    assert main(given) == 0
    assert "strength: 0.5\n" in spec.read_text()
    assert f"--spec {spec}" in capsys.readouterr().out


def test_find_refuses_a_folder_without_facts(base, capsys):
    assert main(["find", str(base), "--promotes", "t"]) == 2
    assert "holds no facts" in capsys.readouterr().err


@pytest.mark.real
def test_the_default_sae_has_a_feature_for_new_lines(tmp_path, capsys):
    out = tmp_path / "f"
    given = ["--text", "docs:stdlib", "--tokens", "3000", "--context", "128", "--out", str(out)]
    assert main(["facts", *given, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["alive"] > 2000
    assert report["sinks"] >= report["rows"]  # the first token of every row
    assert 20 < report["mean_l0"] < 45
    assert main(["find", str(out), "--mostly-on", r"/^\n+$/", "--share", "0.8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["features"]
    assert found
    assert all(row["share"] >= 0.8 for row in found)
