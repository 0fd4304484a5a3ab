"""`sae-steered score reason`, as it is typed."""

import json

import pyarrow.parquet
import pytest

from harness_ext import cli
from interventions.spec_io import load_spec
from tests.tiny_models import D_SAE, save_model, save_sae


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reason")
    save_model(folder / "model")
    save_sae(folder / "sae", median_norm=5.0)
    lines = [{"a": f"the wait {i}. But let me", "b": "see it in the end, wait."} for i in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "words.yaml").write_text('wait: ["wait", " wait"]\nbut: ["But"]\nhmm: ["Hmm"]\n')
    return folder


def arguments(place, *more):
    return [
        "score", "reason", "--model", str(place / "model"), "--sae-path", str(place / "sae"),
        "--text", str(place / "text.jsonl"), "--template", "{a} {b}", "--context", "64",
        "--words", str(place / "words.yaml"), *more,
    ]  # fmt: skip


def test_it_prints_and_writes_a_ranking_a_table_and_a_spec(place, tmp_path, capsys):
    out, table, spec = tmp_path / "r.json", tmp_path / "r.parquet", tmp_path / "best.yaml"
    paths = ["--out", str(out), "--table", str(table), "--spec-out", str(spec)]
    assert cli.main(arguments(place, *paths, "--spec-top", "2", "--keep", "10")) == 0
    shown = capsys.readouterr().out
    assert "ReasonScore" in shown
    assert "note: no token near hmm" in shown
    assert f"--spec {spec}" in shown
    found = json.loads(out.read_text())
    assert found["kind"] == "reason"
    assert len(found["features"]) == 10
    scores = [row["score"] for row in found["features"]]
    assert scores == sorted(scores, reverse=True)
    assert found["facts"]["hits"]["hmm"] == 0
    assert found["facts"]["hits"]["wait"] > 0
    rows = pyarrow.parquet.read_table(table).to_pylist()
    assert len(rows) == D_SAE
    first = found["features"][0]
    assert rows[first["feature"]]["score"] == pytest.approx(first["score"])
    assert "mean wait" in rows[0]
    loaded = load_spec(spec)
    assert [edit.feature for edit in loaded.edits] == [r["feature"] for r in found["features"][:2]]
    # The sums are gone once everything is written.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.yaml", "r.json", "r.parquet"]


def test_json_goes_to_stdout_alone_and_units_and_alpha_count(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SAE_STEERED_CACHE", str(tmp_path))
    found = {}
    for name, more in (
        ("published", []),
        ("sae", ["--units", "sae"]),
        ("no entropy", ["--alpha", "0"]),
        ("parity", ["--parity", "--ignore", "0,1"]),
    ):
        assert cli.main(arguments(place, "--json", "--top", "3", *more)) == 0
        found[name] = json.loads(capsys.readouterr().out)
        assert len(found[name]["features"]) == 3
    scores = {name: tuple(r["score"] for r in f["features"]) for name, f in found.items()}
    assert len(set(scores.values())) == 4
    assert found["parity"]["settings"]["cross_documents"] is True
    assert found["parity"]["subject"]["norm_guard"] is None
    assert found["parity"]["settings"]["ignore"] == [0, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ignore", "a"], "--ignore 'a' is no list of ids"),
        (["--words", "nowhere.yaml"], "word list nowhere.yaml cannot be read"),
        (["--window", "-1", "2"], "window (-1, 2) is negative"),
        (["--blocks", "0"], "0 blocks"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, capsys, more, message):
    assert cli.main(arguments(place, *more)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("sae-steered score reason: error: ")
    assert message in line


def test_a_text_without_the_words_says_so(place, tmp_path, capsys):
    words = tmp_path / "none.yaml"
    words.write_text('nothing: ["zebra"]\n')
    assert cli.main([*arguments(place), "--words", str(words)]) == 2
    assert "no token is near a word of nothing" in capsys.readouterr().err
