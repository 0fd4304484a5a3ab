"""A leaderboard on a tiny model: rows, records, nulls, prompts, and the same again."""

import json
import shutil
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lm_eval import simple_evaluate
from safetensors.torch import load_file

from harness_ext.evaluate import compare
from harness_ext.generation import Generation
from harness_ext.journal import Journal
from harness_ext.leaderboard import run as running
from harness_ext.leaderboard.board import BASELINE, read_board
from harness_ext.leaderboard.config import LeaderboardError, parse_config
from harness_ext.leaderboard.questions import Task
from harness_ext.leaderboard.results import Results
from harness_ext.leaderboard.run import rank, run
from harness_ext.leaderboard.scoring import _records
from harness_ext.model import SAESteeredLM
from interventions.errors import SAEError
from interventions.spec import parse_spec
from tests.harness_ext.leaderboard.boards import GEN, tiny_config

pytestmark = pytest.mark.usefixtures("only_our_tasks")


@pytest.fixture(scope="module")
def made(tiny, only_our_tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    told = []
    config = parse_config(tiny_config(*tiny))
    board = run(config, folder, tell=told.append)
    assert board is not None
    return board, folder, told[0], config


def written(folder):
    """Return how many responses were ever written, duplicates included."""
    lines = [
        line for f in (folder / "store").glob("*.jsonl") for line in f.read_bytes().split(b"\n")
    ]
    return sum(bool(line) and not line.startswith(b'{"key":"' + b"0" * 32) for line in lines)


def texts(records):
    return {(r.task, r.qid, r.arm_name, r.sample): r.reasoning + r.final for r in records}


def test_every_row_answers_every_question_in_every_arm(made):
    board, folder, told, _ = made
    asked = {
        row_id: {(r.qid, r.arm_name) for r in records} for row_id, records in board.records.items()
    }
    assert len(asked[BASELINE]) == 16
    assert all(one == asked[BASELINE] for one in asked.values())
    kinds = [row.kind for row in board.rows]
    assert kinds[0] == "baseline"
    assert {kind: kinds.count(kind) for kind in kinds} == told.rows
    assert told.requests == 16 * len(kinds) == written(folder)
    assert told.prompt_tokens > told.requests


def test_records_carry_the_fingerprint_of_their_row(made):
    board = made[0]
    for row in board.rows:
        assert {r.intervention for r in board.records[row.id]} == {row.fingerprint}
    steered = [row.fingerprint for row in board.rows if row.spec]
    assert len(set(steered)) == len(steered)
    assert [r.fingerprint for r in board.rows if r.kind in ("baseline", "prompt")] == ["none"] * 2


def test_a_row_equals_its_intervention_in_lm_eval_alone(made, tiny, tmp_path):
    board, _, _, config = made
    row = next(row for row in board.rows if row.kind == "feature")
    spec = parse_spec(row.spec or {})
    comparison = compare(
        config.model, [spec], ["steer_arith_hint"], output=tmp_path, limit=4,
        gen_kwargs=GEN, chat_template=False,
    )  # fmt: skip
    alone = {run.name: run for run in comparison.runs}
    assert list(board.records[BASELINE]) == list(alone["baseline"].records)
    assert list(board.records[row.id]) == list(alone[row.spec["name"]].records)
    metrics = json.loads((made[1] / "lm_eval.json").read_text())[row.id]["steer_arith_hint"]
    lm_evals = alone[row.spec["name"]].results["results"]["steer_arith_hint"]
    shared = [name for name in metrics if "_stderr" not in name]
    assert len(shared) > 20
    assert {name: lm_evals[name] for name in shared} == pytest.approx(
        {name: metrics[name] for name in shared}
    )


def test_null_rows_push_as_far_as_the_candidate_in_the_middle(made):
    board = made[0]
    changes = {row.id: row.mean_change for row in board.rows}
    nulls = [row for row in board.rows if row.kind.startswith("random_")]
    assert len(nulls) == 4
    for row in nulls:
        assert row.matches in changes
        assert row.mean_change == pytest.approx(changes[row.matches], rel=2e-3)
    candidates = [row.feature for row in board.rows if row.kind == "feature"]
    drawn = [row.feature for row in nulls if row.kind == "random_feature"]
    assert len(set(drawn) | set(candidates)) == 4
    directions = [row for row in nulls if row.kind == "random_direction"]
    vectors = [load_file(row.spec["sae"]["path"])["direction"] for row in directions]
    assert [float(v.norm()) for v in vectors] == pytest.approx([1.0, 1.0])
    assert abs(float(vectors[0] @ vectors[1])) < 0.9


def test_a_prompt_changes_the_prompt_and_nothing_else(made):
    board = made[0]
    assert texts(board.records["prompt-say"]) != texts(board.records[BASELINE])
    assert board.row("prompt-say").prompt == "Mention any hint."


def test_the_same_call_again_generates_nothing(made):
    board, folder, _, config = made
    before = written(folder)
    told = []
    again = run(config, folder, tell=told.append)
    assert again == board == read_board(folder)
    assert written(folder) == before
    assert told[0].kept == before
    assert told[0].new_tokens == 0
    assert (told[0].tokens_from, told[0].rate_from) == ("store", "measured")
    lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert (lines[0]["made"], lines[0]["resumed"]) == (before, 0)
    assert (lines[-1]["made"], lines[-1]["resumed"]) == (0, before)


def test_a_line_of_the_history_that_a_full_disk_cut_off_does_no_harm(made, tiny, tmp_path):
    _, folder, _, config = made
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    history = other / "runs.jsonl"
    whole = history.read_text()
    history.write_text(whole + '{"digest": "')
    told = []
    run(config, other, tell=told.append)
    assert told[0].rate_from == "measured"
    lines = history.read_text().splitlines()
    assert lines[: whole.count("\n")] == whole.splitlines()
    assert json.loads(lines[-1])["made"] == 0


def test_verdicts_of_lm_eval_tell_what_was_cut_and_what_has_no_answer():
    def record(answer, right, finish):
        text = Generation("so 4", n_tokens=5, finish_reason=finish, final="so 4")
        request = SimpleNamespace(doc_id=7, resps=[text], filtered_resps={"strict": answer})
        task: Any = SimpleNamespace(doc_to_target=lambda doc: "4")
        (made,) = _records(
            Task("theirs", 1, task, {}), {}, cast(Any, [request]), {"exact_match": right}, "none"
        )
        return made.status, made.answer, made.correct

    assert record("4", 1.0, "stop") == ("answered", "4", True)
    assert record("5", 0.0, "stop") == ("answered", "5", False)
    assert record("[invalid]", 0.0, "stop") == ("no_answer", None, False)
    assert record("5", 0.0, "length") == ("truncated", "5", False)
    assert record("4", 1.0, "length") == ("truncated", "4", True)


def test_more_rows_use_what_is_there(made, tiny, tmp_path):
    board, _, _, _ = made
    folder = tmp_path / "more"
    first = parse_config(tiny_config(*tiny, features=[0]))
    small = run(first, folder)
    n = written(folder)
    whole = run(parse_config(tiny_config(*tiny)), folder)
    assert small is not None
    assert whole is not None
    assert set(whole.records) == set(board.records)
    assert whole.records[BASELINE] == small.records[BASELINE] == board.records[BASELINE]
    # The candidate, the prompt and the baseline were there; the median candidate may be another.
    assert written(folder) - n <= 16 * 5


def test_a_dry_run_loads_no_weights_and_writes_nothing(tiny, tmp_path, monkeypatch):
    import transformers

    def fail(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    told = []
    config = parse_config(tiny_config(*tiny))
    assert run(config, tmp_path / "none", dry=True, tell=told.append) is None
    assert (told[0].requests, told[0].kept) == (16 * 8, 0)
    assert told[0].new_tokens == 16 * 8 * 8
    assert not (tmp_path / "none").exists()


def test_mistakes_are_told_before_the_weights_are_loaded(tiny, tmp_path, monkeypatch):
    import transformers

    def fail(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    wrong = {
        "feature 999999 is outside": {"features": [999_999]},
        "unknown metric 'nothing'": {"statistics": {"metrics": ["nothing"]}},
        "'n_flips' is no ratio": {"statistics": {"metrics": ["n_flips"]}},
        "statistics.levels: .* known keys are": {"statistics": {"levels": 0.1}},
        "unknown task 'steer_nothing'": {"tasks": [{"name": "steer_nothing"}]},
        "is in this leaderboard twice": {"tasks": [{"name": "steer_arith"}] * 2},
        "400 random features are asked for": {"nulls": {"random_features": 400}},
    }
    for message, change in wrong.items():
        config = parse_config(tiny_config(*tiny, **change))
        with pytest.raises((SAEError, ValueError), match=message):
            run(config, tmp_path / "x")


def test_statistics_and_report_come_from_the_folder_alone(made, tmp_path):
    board, folder, _, config = made
    results, files = rank(board, folder, config.statistics)
    assert all(file.is_file() for file in files)
    assert Results.model_validate_json((folder / "results.json").read_text()) == results
    again, _ = rank(read_board(folder), tmp_path, config.statistics)
    assert again == results
    families = {(f.task, f.metric): f for f in results.families}
    assert families["steer_arith_hint", "mean_tokens"].n_candidates == 2
    assert families["steer_arith_hint", "mean_tokens"].n_null == 4


TASKS = {
    "choose": """
task: tiny_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {docs}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: a
doc_to_choice: [" yes", " no", " in the end"]
metric_list: [{{metric: acc}}]
""",
    "say": """
task: tiny_say
dataset_path: json
dataset_kwargs: {{data_files: {{test: {docs}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
repeats: 2
generation_kwargs: {{until: ["zz"], max_gen_toks: 6, do_sample: true, temperature: 0.9}}
filter_list: [{{name: all, filter: [{{function: take_first}}]}}]
metric_list: [{{metric: exact_match}}]
""",
}


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Let lm-eval's task manager find two tasks that know nothing of ours."""
    import functools

    from lm_eval.tasks import TaskManager

    docs = tmp_path / "docs.jsonl"
    docs.write_text(
        "".join(json.dumps({"q": f"the cat {n} sat", "a": n % 3}) + "\n" for n in range(6))
    )
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(text.format(docs=docs))
    found = functools.partialmethod(
        TaskManager.__init__, include_defaults=False, include_path=str(tmp_path)
    )
    monkeypatch.setattr(TaskManager, "__init__", found)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_tasks_of_lm_eval_are_ranked_by_their_verdicts(foreign, tiny, tmp_path):
    tasks = [{"name": "tiny_choose"}, {"name": "tiny_say"}]
    config = parse_config(tiny_config(*tiny, tasks=tasks, prompts=[]))
    board = run(config, tmp_path / "o")
    assert board is not None
    for row in board.rows:
        assert len(board.of(row.id, "tiny_choose")) == len(board.of(row.id, "tiny_say")) == 6
    metrics = json.loads((tmp_path / "o" / "lm_eval.json").read_text())
    model = SAESteeredLM.create_from_arg_obj(dict(config.model) | {"seed": config.seed}, {})
    for row in board.rows[:2]:
        model.set_intervention(parse_spec(row.spec) if row.spec else None)  # type: ignore[attr-defined]
        whole: Any = simple_evaluate  # its decorator hides its parameters from type checkers
        found = whole(model, tasks=["tiny_choose", "tiny_say"], bootstrap_iters=0)
        for task, metric in (("tiny_choose", "acc,none"), ("tiny_say", "exact_match,all")):
            assert metrics[row.id][task][metric] == found["results"][task][metric]
        right = [r.correct for r in board.of(row.id, "tiny_choose")]
        assert sum(right) / 6 == metrics[row.id]["tiny_choose"]["acc,none"]
    results, _ = rank(board, tmp_path / "o", config.statistics)
    assert ("tiny_choose", "acc_none") in {(f.task, f.metric) for f in results.families}
    with Journal.open(tmp_path / "o" / "store") as journal:
        # Two of three options share a row and its score; repeats are two responses.
        assert len(journal) == len(board.rows) * 6 * (3 + 2)


def test_a_full_disk_ends_in_one_line_and_keeps_the_store(made, monkeypatch, tmp_path):
    board, _, _, config = made

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running, "_write", full)
    with pytest.raises(LeaderboardError, match="No space left on device; all responses are in"):
        rank(board, tmp_path, config.statistics)
