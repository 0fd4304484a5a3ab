import hashlib
import json
import re
from pathlib import Path

import pytest

from harness_ext.corpora import BENCHMARKS, DATA_ENV, as_dataset, lm_eval_dataset, load_corpus
from harness_ext.errors import DataError, DataNotFoundError
from harness_ext.paths import tasks_dir

ROW = {"question": "What is 3 + 4?", "answer": "3 + 4 = 7\n#### 7"}


@pytest.fixture(autouse=True)
def _no_env(monkeypatch):
    monkeypatch.delenv(DATA_ENV, raising=False)


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_a_file_of_the_benchmarks_own_schema(tmp_path):
    path = write(tmp_path / "x.jsonl", [ROW, {"question": "q2", "answer": "#### 1,250 "}])
    corpus = load_corpus("gsm8k", str(path))
    assert [(r["qid"], r["answer"]) for r in corpus.rows] == [
        ("gsm8k-00000", "7"),
        ("gsm8k-00001", "1,250"),
    ]
    assert corpus.source == str(path)


def test_data_path_beats_the_environment_which_beats_the_hub(tmp_path, monkeypatch):
    named, env = tmp_path / "named", tmp_path / "env"
    for folder, question in ((named, "from data_path"), (env, "from environment")):
        folder.mkdir()
        write(folder / "gsm8k_test.jsonl", [{**ROW, "question": question}])
    monkeypatch.setenv(DATA_ENV, str(env))
    assert load_corpus("gsm8k").rows[0]["question"] == "from environment"
    assert load_corpus("gsm8k", str(named)).rows[0]["question"] == "from data_path"


def test_the_hub_is_asked_last_and_its_copy_has_the_same_digest(tmp_path, monkeypatch):
    rows = [ROW, {"question": "q2", "answer": "#### 8"}]
    asked = []

    def load(repo, config, split):
        asked.append((repo, config, split))
        return rows

    monkeypatch.setattr("harness_ext.corpora.datasets.load_dataset", load)
    from_hub = load_corpus("gsm8k")
    local = load_corpus("gsm8k", str(write(tmp_path / "x.jsonl", rows)))
    assert asked == [("openai/gsm8k", "main", "test")]
    assert from_hub.source == "hf://datasets/openai/gsm8k/main/test"
    assert from_hub.sha256 == local.sha256
    assert from_hub.rows == local.rows


def test_offline_the_error_names_the_remedy(monkeypatch):
    def load(*_, **__):
        raise ConnectionError("Couldn't reach the hub\nlong trace")

    monkeypatch.setattr("harness_ext.corpora.datasets.load_dataset", load)
    with pytest.raises(DataNotFoundError, match=r"openai/gsm8k.*SAE_STEERED_DATA=DIR") as error:
        load_corpus("gsm8k")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "no rows"),
        ([{"problem": "p", "answer": "#### 1"}], "missing question"),
        ([{"question": "q", "answer": "just 7"}], "expected '#### N'"),
        ([{"question": "q", "answer": "#### "}], "empty question or answer"),
        ([{**ROW, "qid": "a"}, {**ROW, "qid": "a"}], "id 'a' comes twice"),
    ],
)
def test_broken_rows_are_refused(tmp_path, rows, match):
    with pytest.raises(DataError, match=match):
        load_corpus("gsm8k", str(write(tmp_path / "x.jsonl", rows)))


def test_broken_places_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataNotFoundError, match="neither a file nor a folder"):
        load_corpus("gsm8k", str(tmp_path / "nowhere"))
    with pytest.raises(DataNotFoundError, match=r"holds no gsm8k_test\.jsonl"):
        load_corpus("gsm8k", str(tmp_path))
    monkeypatch.setenv(DATA_ENV, str(tmp_path))
    with pytest.raises(DataNotFoundError, match=f"{DATA_ENV}=.*holds no gsm8k_test"):
        load_corpus("gsm8k")
    bad = tmp_path / "x.jsonl"
    bad.write_text("not json\n")
    with pytest.raises(DataError, match="not readable"):
        load_corpus("gsm8k", str(bad))
    table = tmp_path / "x.tsv"
    table.write_text("a,b\n")
    with pytest.raises(DataError, match=r"'\.tsv' is not read"):
        load_corpus("gsm8k", str(table))
    with pytest.raises(DataError, match="unknown benchmark 'nothing'"):
        load_corpus("nothing")


def test_embedded_items_need_no_network_and_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_ENV, str(tmp_path))  # holds no arith.jsonl
    corpus = load_corpus("arith")
    assert corpus.source == str(tasks_dir() / "steer_arith" / "items.jsonl")
    assert len(corpus.rows) == BENCHMARKS["arith"].rows == 360


def test_own_arith_rows_are_read_from_a_folder(tmp_path):
    write(
        tmp_path / "arith.jsonl",
        [
            {"qid": "b", "question": "q", "answer": 3},
            {"qid": "a", "question": "q", "answer": "4", "level": 2},
        ],
    )
    rows = load_corpus("arith", str(tmp_path)).rows
    assert [r["qid"] for r in rows] == ["a", "b"]
    assert rows[0]["level"] == "2"


def test_the_committed_items_are_those_the_script_writes():
    import runpy

    from harness_ext.paths import scripts_dir

    script = runpy.run_path(str(scripts_dir() / "make_arith.py"))
    made = "".join(
        json.dumps(i, ensure_ascii=False) + "\n" for i in script["make_items"](20, 120)
    ).encode()
    committed = (tasks_dir() / "steer_arith" / "items.jsonl").read_bytes()
    assert made == committed
    readme = (tasks_dir() / "steer_arith" / "README.md").read_text()
    assert hashlib.sha256(committed).hexdigest() in readme


def test_any_first_items_hold_all_levels_and_answers_are_whole_numbers():
    rows = load_corpus("arith").rows
    assert {r["level"] for r in rows[:3]} == {"1", "2", "3"}
    assert all(re.fullmatch(r"\d+", r["answer"]) for r in rows)
    assert len({r["question"] for r in rows}) == len(rows) >= 300
    assert [r["level"] for r in rows].count("3") == 120


def test_it_serves_as_custom_dataset_and_ignores_foreign_keys(tmp_path):
    path = write(tmp_path / "x.jsonl", [ROW])
    data = lm_eval_dataset(benchmark="gsm8k", data_path=str(path), pretrained="x", version=1)
    assert data["test"][0]["answer"] == "7"
    assert data["test"].features.keys() == as_dataset(load_corpus("arith"))["test"].features.keys()
