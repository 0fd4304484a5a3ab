import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from harness_ext.benchmarks import BENCHMARKS, benchmark, option_order
from harness_ext.corpora import DATA_ENV, as_dataset, load_corpus
from harness_ext.errors import DataError, DataNotFoundError

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get(DATA_ENV) or ROOT.parent / "shared" / "data")


def shared(name: str):
    file = BENCHMARKS[name].file
    return pytest.mark.skipif(
        not (SHARED / file).is_file(), reason=f"no {file} in {DATA_ENV} or ../shared/data"
    )


def gpqa_row(i: int, **changes) -> dict:
    """A question of our own in GPQA's schema; the benchmark's own are not to be spread."""
    return {
        "Record ID": f"rec{i:02d}",
        "Question": f"Which number is {i} more than {i}?\n",
        "Correct Answer": f" {2 * i}\n",
        "Incorrect Answer 1": f"{2 * i + 1}",
        "Incorrect Answer 2": f"{2 * i + 2}",
        "Incorrect Answer 3": f"[{2 * i + 3}]",
        "Subdomain": "Counting",
        "High-level domain": "Mathematics",
        **changes,
    }


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def gpqa(tmp_path) -> Path:
    return write(tmp_path / "gpqa.jsonl", [gpqa_row(i) for i in range(1, 41)])


# Schemas.


@pytest.mark.parametrize(
    ("name", "first", "answer", "n_choices"),
    [
        pytest.param("aime24", "aime24-60", "204", 0, marks=shared("aime24")),
        pytest.param("aime25", "aime25-00", "70", 0, marks=shared("aime25")),
        pytest.param(
            "math500",
            "math500-precalculus-807",
            r"\left( 3, \frac{\pi}{2} \right)",
            0,
            marks=shared("math500"),
        ),
        pytest.param("aqua", "aqua-df109a8209", "A", 5, marks=shared("aqua")),
    ],
)
def test_the_whole_set_is_read(name, first, answer, n_choices):
    corpus = load_corpus(name, str(SHARED))
    bench = BENCHMARKS[name]
    assert len(corpus.rows) == bench.rows
    row = corpus.rows[0]
    assert (row["qid"], row["answer"], len(row["choices"])) == (first, answer, n_choices)
    assert len({r["question"] + str(r["choices"]) for r in corpus.rows}) == bench.rows
    if bench.number_range:
        low, high = bench.number_range
        assert all(low <= int(r["answer"]) <= high for r in corpus.rows)
    assert as_dataset(corpus)["test"][0]["choices"] == row["choices"]


@shared("aqua")
def test_aqua_options_lose_their_label_and_nothing_else():
    raw = [json.loads(line) for line in (SHARED / "aqua_test.jsonl").read_text().splitlines()]
    for row, source in zip(load_corpus("aqua", str(SHARED)).rows, raw, strict=True):
        labelled = [f"{x})" for x in "ABCDE"]
        for option, label, given in zip(row["choices"], labelled, source["options"], strict=True):
            assert given.startswith(label)
            assert given[2:].strip() == option
        assert row["answer"] == source["correct"]


@shared("math500")
def test_the_first_questions_of_math500_are_of_many_subjects():
    rows = load_corpus("math500", str(SHARED)).rows[:20]
    assert len({json.loads(r["meta"])["subject"] for r in rows}) >= 5
    assert {r["level"] for r in rows} >= {"2", "3", "4", "5"}


@shared("aqua")
def test_the_id_of_an_aqua_question_does_not_depend_on_its_place(tmp_path):
    lines = (SHARED / "aqua_test.jsonl").read_text().splitlines()
    path = tmp_path / "aqua_test.jsonl"
    path.write_text("\n".join(reversed(lines[:9])))
    whole = {r["qid"]: r for r in load_corpus("aqua", str(SHARED)).rows}
    part = load_corpus("aqua", str(tmp_path)).rows
    assert [whole[r["qid"]] for r in part] == list(part)


@pytest.mark.parametrize(
    ("name", "row", "match"),
    [
        ("aime24", {"id": 1, "problem": "p", "answer": "1000"}, "0 to 999"),
        ("aime25", {"id": 1, "problem": "p", "answer": "x+1"}, "0 to 999"),
        ("aime25", {"id": 1, "question": "p", "answer": "1"}, "missing problem"),
        ("math500", {"problem": "p", "answer": "1"}, "missing unique_id"),
        ("aqua", {"question": "q", "options": ["A)1", "C)2"], "correct": "A"}, r"'C\)2'.*'B\)'"),
        ("aqua", {"question": "q", "options": ["A)1", "B)2"], "correct": "C"}, "none of its opt"),
        ("aqua", {"question": "q", "options": ["A)1", "B)"], "correct": "A"}, "not empty"),
        ("aqua", {"question": "q", "options": [], "correct": "A"}, r"options \[\]"),
        ("gpqa_diamond", gpqa_row(1, **{"Incorrect Answer 1": "2"}), "two options are equal"),
        ("gpqa_diamond", gpqa_row(1, **{"Incorrect Answer 1": None}), "not empty"),
    ],
)
def test_rows_that_break_the_schema_are_refused(tmp_path, name, row, match):
    with pytest.raises(DataError, match=match) as caught:
        load_corpus(name, str(write(tmp_path / "x.jsonl", [row])))
    assert "\n" not in str(caught.value)


def test_column_names_of_other_copies_differ_in_case_only(tmp_path):
    rows = [{"ID": "2024-I-4", "Problem": "p", "Answer": 116}]  # schema of Maxwell-Jia/AIME_2024
    (row,) = load_corpus("aime24", str(write(tmp_path / "x.jsonl", rows))).rows
    assert (row["qid"], row["question"], row["answer"]) == ("aime24-2024-I-4", "p", "116")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_the_other_file_types_hold_the_same(tmp_path, gpqa, suffix):
    rows = [json.loads(line) for line in gpqa.read_text().splitlines()]
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / f"gpqa_diamond.{suffix}"
    if suffix == "csv":  # what GPQA's own archive holds
        with path.open("w", newline="") as out:
            table = csv.DictWriter(out, fieldnames=list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows))
    other, first = load_corpus("gpqa_diamond", str(folder)), load_corpus("gpqa_diamond", str(gpqa))
    assert other.rows == first.rows
    assert other.sha256 == first.sha256


def test_a_line_separator_in_a_cell_of_a_csv_file_is_text(tmp_path, gpqa):
    rows = [json.loads(line) for line in gpqa.read_text().splitlines()]
    rows[0]["Question"] = "one\u2028two\u0085three"
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        table = csv.DictWriter(out, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    found = load_corpus("gpqa_diamond", str(path)).rows
    assert len(found) == len(rows)
    assert found[0]["question"] == rows[0]["Question"]


def test_a_broken_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"not readable as \.parquet"):
        load_corpus("gpqa_diamond", str(path))


def test_gpqa_without_access_says_where_to_get_it(tmp_path, monkeypatch):
    def load(*_, **__):
        raise ConnectionError("is a gated dataset on the Hub. You must be authenticated")

    monkeypatch.delenv(DATA_ENV, raising=False)
    monkeypatch.setattr("harness_ext.corpora.datasets.load_dataset", load)
    with pytest.raises(
        DataNotFoundError, match=r"gated: accept its terms at https://.*Idavidrein/gpqa.*data_path"
    ):
        load_corpus("gpqa_diamond")
    monkeypatch.setenv(DATA_ENV, str(tmp_path))
    with pytest.raises(DataNotFoundError, match=r"holds no gpqa_diamond\.jsonl.*gated"):
        load_corpus("gpqa_diamond")


# The order of GPQA's options.


def test_options_keep_their_text_and_the_gold_letter_follows(gpqa):
    corpus = load_corpus("gpqa_diamond", str(gpqa))
    letters = []
    for i, row in enumerate(corpus.rows, start=1):
        assert sorted(row["choices"]) == sorted(
            [str(2 * i), str(2 * i + 1), str(2 * i + 2), f"[{2 * i + 3}]"]
        )
        assert row["choices"]["ABCD".index(row["answer"])] == str(2 * i)
        letters.append(row["answer"])
    assert {letter: letters.count(letter) > 3 for letter in "ABCD"} == dict.fromkeys("ABCD", True)


def test_another_seed_gives_another_order_and_the_same_digest(gpqa):
    first, second = (load_corpus("gpqa_diamond", str(gpqa), choice_seed=s) for s in (0, 1))
    assert first.sha256 == second.sha256
    assert [r["qid"] for r in first.rows] == [r["qid"] for r in second.rows]
    moved = sum(a["choices"] != b["choices"] for a, b in zip(first.rows, second.rows, strict=True))
    assert moved > 30


def test_the_order_is_that_of_id_seed_and_texts_alone(tmp_path, gpqa):
    rows = [json.loads(line) for line in gpqa.read_text().splitlines()]
    for row in rows:  # the source's columns change places
        row["Incorrect Answer 1"], row["Incorrect Answer 3"] = (
            row["Incorrect Answer 3"],
            row["Incorrect Answer 1"],
        )
    shuffled = load_corpus("gpqa_diamond", str(write(tmp_path / "x.jsonl", rows[::-1][:7])))
    whole = {r["qid"]: r for r in load_corpus("gpqa_diamond", str(gpqa)).rows}
    assert [whole[r["qid"]] for r in shuffled.rows] == list(shuffled.rows)


def test_every_process_puts_options_in_the_same_order():
    code = (
        "from harness_ext.benchmarks import option_order;"
        "print([option_order(f'q{i}', ['a', 'b', 'c', 'd'], 3) for i in range(50)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "4711")
    }
    assert outputs == {str([option_order(f"q{i}", ["a", "b", "c", "d"], 3) for i in range(50)])}


# Benchmarks that a user describes.


def test_a_described_benchmark_maps_its_columns(tmp_path):
    described = {
        "name": "capitals",
        "kind": "choice",
        "columns": {
            "qid": "Nr", "question": "Q", "answer": "Letter", "choices": "Options", "level": "Level"
        },
    }  # fmt: skip
    row = {"Nr": 7, "Q": "Capital of Peru?", "Options": ["Lima", "Quito"], "Letter": "A"}
    write(tmp_path / "capitals.jsonl", [{**row, "Level": 3}])
    (row,) = load_corpus(described, str(tmp_path)).rows
    assert row["qid"] == "capitals-7"
    assert row["choices"] == ["Lima", "Quito"]
    assert row["level"] == "3"
    assert benchmark(described).number_range is None


@pytest.mark.parametrize(
    ("described", "match"),
    [
        ({"name": "x"}, "'kind'"),
        ({"name": "x y", "kind": "math"}, "'name' is 'x y'"),
        ({"name": "x", "kind": "poem"}, "'kind' is 'poem'"),
        ({"name": "x", "kind": "math", "colums": {}}, "'colums'"),
    ],
)
def test_a_wrong_description_is_refused(described, match):
    with pytest.raises(DataError, match=match):
        load_corpus(described)


def test_a_described_row_without_an_id_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"qid": None, "question": "q", "answer": "1"}])
    with pytest.raises(DataError, match="needs an id that stays"):
        load_corpus({"name": "x", "kind": "math"}, str(path))
