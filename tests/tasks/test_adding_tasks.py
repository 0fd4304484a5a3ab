"""docs/adding_tasks.md, followed to the letter."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness_ext.benchmarks import OwnBenchmark
from harness_ext.corpora import load_corpus
from harness_ext.errors import DataError
from tests.tasks.reasoning import ROOT, Scripted, boxed

DOC = (ROOT / "docs" / "adding_tasks.md").read_text()
FILES = dict(re.findall(r"in `(my_tasks/[^`]+)`:\n\n```\w+\n(.*?)```", DOC, re.DOTALL))


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_doc_gives_three_files():
    assert set(FILES) == {
        "my_tasks/capitals.jsonl",
        "my_tasks/capitals.yaml",
        "my_tasks/capitals_hint.yaml",
    }


@pytest.mark.slow
def test_its_command_prints_its_table(folder):
    (line,) = re.findall(r"^\$ (lm_eval .*)$", DOC, re.MULTILINE)
    program, *args = shlex.split(line)
    run = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    (shown,) = re.findall(r"```text\n(.*?)```", DOC, re.DOTALL)
    for row in shown.splitlines():
        assert row in run.stdout, run.stdout
    assert "capitals: 3 questions" not in run.stderr  # the full set: nothing to warn about


def test_its_options_are_shuffled_and_the_key_follows(folder):
    import lm_eval
    from lm_eval.tasks import TaskManager

    model = Scripted(lambda prompt, doc, i: boxed(doc["answer"]))
    data_path = str(folder / "my_tasks")
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=["capitals", "capitals_hint"],
        task_manager=TaskManager(
            include_path=data_path, include_defaults=False, metadata={"data_path": data_path}
        ),
        log_samples=True,
    )
    assert results["results"]["capitals"]["exact_match,none"] == 1
    docs = [s["doc"] for s in results["samples"]["capitals"]]
    rows = [json.loads(line) for line in FILES["my_tasks/capitals.jsonl"].splitlines()]
    for doc, row in zip(docs, rows, strict=True):
        assert doc["qid"] == f"capitals-{row['nr']}"
        assert sorted(doc["choices"]) == sorted(row["opts"])
        gold = row["opts"]["ABC".index(row["key"])]
        assert doc["choices"]["ABC".index(doc["answer"])] == gold
    for sample in results["samples"]["capitals_hint"]:
        wrong = sample["doc"]["_diag"]["records"][2]
        assert wrong["hint_target"] in set("ABC") - {sample["target"]}


def test_its_table_of_keys_is_complete():
    table = DOC.split("### What `benchmark` may hold")[1].split("\n- ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(OwnBenchmark.model_fields)


def test_its_error_messages_are_those_that_come(folder):
    with pytest.raises(DataError) as caught:
        load_corpus({"name": "capitals", "kind": "poem"})
    quoted = [" ".join(q.split()) for q in re.findall(r"`([^`]+)`", DOC.split("Mistakes end")[1])]
    assert str(caught.value).startswith(quoted[0])
    described = {"name": "capitals", "kind": "choice"}
    described["columns"] = {"qid": "nr", "answer": "key", "choices": "opts"}
    with pytest.raises(DataError) as caught:
        load_corpus(described, str(folder / "my_tasks"))
    assert str(caught.value).endswith(quoted[1])
