import json
from xml.etree import ElementTree as ET

import pytest

from harness_ext.cli import main
from harness_ext.errors import MetricError, RecordError, TaskConfigError
from harness_ext.leaderboard.board import Board, write_board
from harness_ext.leaderboard.simulate import Simulation, simulate_board
from harness_ext.records import write_records
from harness_ext.regress.baseline import make_baseline, read_baseline, write_baseline
from harness_ext.regress.check import Settings, check, parse_margins
from harness_ext.regress.comparable import differences
from harness_ext.regress.config import load_config, load_specs
from harness_ext.regress.runs import BASELINE, Run, load_runs, runs_of_board

IDENTITY = {
    "model": "m1",
    "dtype": "bf16",
    "sae": ["s1"],
    "intervention": {"edits": [{"feature": 1, "value": 2.0}]},
    "prompts": {"chat_template_sha": "c"},
    "decoding": {"simulated": {"generation_kwargs": {"max_gen_toks": 128}, "seed": 1}},
    "data": {"simulated": "d1"},
    "task": {"simulated": {"version": 1.0}},
}


def run_of(records, name=BASELINE, **changes):
    identity = {**IDENTITY, **changes}
    return Run(name, {k: v for k, v in identity.items() if v is not None}, {}, tuple(records))


@pytest.fixture(scope="module")
def records():
    board = simulate_board(Simulation(features=1, nulls=0, questions=80, copied=0.7, seed=2))
    return {name: list(rows) for name, rows in board.records.items()}


@pytest.fixture(scope="module")
def baseline(records):
    return make_baseline({BASELINE: run_of(records["baseline"])})


def worsen(records, share=4):
    """Every fourth question answered wrongly without a hint."""
    return [
        r.model_copy(update={"answer": "E", "correct": False})
        if r.arm == "none" and int(r.qid.split("-")[1]) % share == 0
        else r
        for r in records
    ]


def current(records, **changes):
    return make_baseline({BASELINE: run_of(records, **changes)})


def test_the_same_run_passes_and_says_what_it_would_have_seen(records, baseline):
    verdict = check(baseline, current(records["baseline"]))
    assert (verdict.outcome, verdict.exit_code) == ("passed", 0)
    acc = next(c for c in verdict.checks if c.metric == "acc_none")
    assert (acc.loss, acc.fixed, acc.broken, acc.n) == (0, 0, 0, 80)
    assert 0.05 < acc.visible < 0.3


def test_noise_passes(records, baseline):
    # Another sampling of the same model: f0 has no effect.
    assert check(baseline, current(records["f0"])).outcome == "passed"


def test_a_worse_run_fails_in_what_got_worse(records, baseline):
    verdict = check(baseline, current(worsen(records["baseline"])))
    assert (verdict.outcome, verdict.exit_code) == ("regressed", 1)
    failed = {c.metric for c in verdict.checks if c.failed}
    assert "acc_none" in failed
    assert "truncation" not in failed


def test_a_wide_margin_accepts_the_same_loss(records, baseline):
    settings = Settings(margins={"acc_none": 0.3})
    assert check(baseline, current(worsen(records["baseline"])), settings).outcome == "passed"


def test_noninferiority_demands_proof(records, baseline):
    one = [r for r in records["baseline"] if int(r.qid.split("-")[1]) < 12]
    few = make_baseline({BASELINE: run_of(one)})
    settings = Settings(margins={"acc_none": 0.1}, rule="noninferiority")
    assert check(few, few, settings).outcome == "regressed"
    assert check(few, few, settings.model_copy(update={"rule": "regression"})).outcome == "passed"
    assert check(baseline, baseline, settings).outcome == "passed"


def test_a_metric_without_a_direction_may_not_change_either_way(records, baseline):
    settings = Settings(margins={"mean_tokens": 5})
    for factor in (0.5, 2):
        other = [r.model_copy(update={"n_tokens": int(r.n_tokens * factor)}) for r in
                 records["baseline"]]  # fmt: skip
        assert check(baseline, current(other), settings).outcome == "regressed"
    slightly = [r.model_copy(update={"n_tokens": r.n_tokens + 4}) for r in records["baseline"]]
    assert check(baseline, current(slightly), settings).outcome == "passed"


def test_p_values_are_corrected_for_the_number_of_checks(records, baseline):
    verdict = check(baseline, current(worsen(records["baseline"], 9)))
    tested = [c for c in verdict.checks if c.p is not None]
    smallest = min(tested, key=lambda c: c.p)
    assert smallest.p_corrected == pytest.approx(min(1, smallest.p * len(tested)))


@pytest.mark.parametrize(
    ("aspect", "change"),
    [
        ("model", "m2"),
        ("dtype", "float32"),
        ("sae", ["s2"]),
        ("intervention", {"edits": [{"feature": 1, "value": 3.0}]}),
        ("prompts", {"chat_template_sha": "x"}),
        ("decoding", {"simulated": {"generation_kwargs": {"max_gen_toks": 64}, "seed": 1}}),
        ("data", {"simulated": "d2"}),
        ("task", {"simulated": {"version": 2.0}}),
        ("model", None),
    ],
)
def test_what_differs_is_named_and_not_compared(records, baseline, aspect, change):
    other = current(records["baseline"], **{aspect: change})
    verdict = check(baseline, other)
    assert (verdict.outcome, verdict.exit_code) == ("not comparable", 2)
    assert [d[1] for d in verdict.differences] == [aspect]
    assert not verdict.checks
    allowed = check(baseline, other, Settings(changed=(aspect,)))
    assert allowed.outcome == "passed"


def test_both_values_are_told(records, baseline):
    other = current(records["baseline"], decoding={
        "simulated": {"generation_kwargs": {"max_gen_toks": 64}, "seed": 1}})  # fmt: skip
    assert differences(baseline, other)[0].text == (
        "simulated.generation_kwargs.max_gen_toks: 128 in the baseline, 64 in the run"
    )


def test_missing_questions_are_not_passed_over(records, baseline):
    half = [r for r in records["baseline"] if int(r.qid.split("-")[1]) < 40]
    verdict = check(baseline, current(half))
    assert verdict.outcome == "not comparable"
    assert "40 of the baseline's 80 questions are not in the run" in verdict.differences[0][2]
    verdict = check(baseline, current(half), Settings(changed=("questions",)))
    assert verdict.outcome == "passed"
    assert verdict.checks[0].n == 40


def test_further_questions_are_left_out_and_named(records, baseline):
    half = [r for r in records["baseline"] if int(r.qid.split("-")[1]) < 40]
    verdict = check(make_baseline({BASELINE: run_of(half)}), current(records["baseline"]))
    assert verdict.outcome == "passed"
    assert verdict.checks[0].n == 40
    assert "40 questions are not in the baseline" in verdict.left_out[0]


def test_changed_questions_of_the_same_id_are_seen(records, baseline):
    other = [r.model_copy(update={"question": "another"}) for r in records["baseline"]]
    verdict = check(baseline, current(other))
    assert [d[1] for d in verdict.differences] == ["data"]
    assert "80 of 80 questions" in verdict.differences[0][2]


def test_missing_arms_and_runs_are_seen(records, baseline):
    plain = [r for r in records["baseline"] if r.arm == "none"]
    verdict = check(baseline, current(plain))
    assert "arms none, wrong in the baseline, none in the run" in verdict.differences[0][2]
    other = make_baseline({"f0": run_of(records["f0"], "f0")})
    verdict = check(baseline, other)
    assert verdict.differences[0][1] == "run"
    assert "'f0'" in verdict.differences[0][2]
    assert "run 'f0' is not in the baseline" in verdict.left_out[0]


def test_a_baseline_survives_its_file(tmp_path, baseline):
    path = tmp_path / "b.json"
    write_baseline(baseline, path)
    assert read_baseline(path) == baseline
    lines = path.read_text().splitlines()
    assert sum('"digest"' in line for line in lines) == 80  # a line a question
    assert json.loads(path.read_text())["format"] == 1


def test_one_changed_answer_changes_few_lines(tmp_path, records, baseline):
    changed = [
        r.model_copy(update={"answer": "E", "correct": False})
        if (r.qid, r.arm) == ("simulated-3", "none")
        else r
        for r in records["baseline"]
    ]
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    write_baseline(baseline, a)
    write_baseline(current(changed), b)
    pairs = zip(a.read_text().splitlines(), b.read_text().splitlines(), strict=True)
    differ = [x for x, y in pairs if x != y]
    assert sum("simulated-3" in line for line in differ) == 1
    assert len(differ) < 8  # the question, and the values that it moves


def test_bad_files_are_explained_in_one_line(tmp_path):
    with pytest.raises(RecordError, match="regress update"):
        read_baseline(tmp_path / "no.json")
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(RecordError, match="not JSON"):
        read_baseline(bad)
    bad.write_text('{"format": 7}')
    with pytest.raises(RecordError, match="format 7"):
        read_baseline(bad)
    bad.write_text('{"format": 1, "runs": {"x": 3}}')
    with pytest.raises(RecordError, match=r"damaged at runs\.x"):
        read_baseline(bad)
    with pytest.raises(RecordError, match="no such file or folder"):
        load_runs([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="neither results"):
        load_runs([tmp_path / "empty"])


def test_metrics_that_were_not_counted_are_refused(baseline):
    with pytest.raises(MetricError, match="update --metric acc_placebo"):
        check(baseline, baseline, Settings(margins={"acc_placebo": 0.1}))
    with pytest.raises(MetricError, match="unknown metric"):
        check(baseline, baseline, Settings(margins={"nonsense": 0.1}))


@pytest.mark.parametrize(("metric", "margin"), [("acc_none", 2.0), ("truncation", 1.0)])
def test_a_margin_that_passes_any_run_is_refused(baseline, metric, margin):
    with pytest.raises(MetricError, match=r"would pass any run: it is a share, and \.02 stands"):
        check(baseline, baseline, Settings(margins={metric: margin}))


def test_a_check_of_nothing_is_not_passed(records):
    empty = make_baseline({BASELINE: run_of([r for r in records["baseline"] if r.arm == "hint"])})
    verdict = check(empty, empty, Settings(margins={"acc_none": 0.1}))
    assert verdict.outcome == "not comparable"
    assert "none of acc_none can be tested" in verdict.differences[0][2]


@pytest.mark.parametrize("text", ["acc_none", "acc_none=x", "acc_none=-1", "acc_none=inf"])
def test_malformed_margins_are_refused(text):
    with pytest.raises(MetricError, match="METRIC=NUMBER"):
        parse_margins([text])


def test_the_command_updates_checks_and_reports(tmp_path, records, capsys):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    write_records(records["baseline"], good)
    write_records(worsen(records["baseline"]), bad)
    file = str(tmp_path / "b.json")
    assert main(["regress", "update", str(good), "--baseline", file]) == 0
    assert "new baseline: baseline: simulated: 80 questions" in capsys.readouterr().out
    assert main(["regress", "check", str(good), "--baseline", file]) == 0
    assert "passed" in capsys.readouterr().out
    junit, summary = tmp_path / "r.xml", tmp_path / "s.md"
    outputs = ["--junit", str(junit), "--summary", str(summary)]
    assert main(["regress", "check", str(bad), "--baseline", file, *outputs]) == 1
    assert "REGRESSED" in capsys.readouterr().out
    assert summary.read_text().startswith("### REGRESSED")
    assert "| baseline | simulated | acc_none |" in summary.read_text()
    suite = ET.parse(junit).getroot().find("testsuite")
    assert suite.get("failures") == str(len(suite.findall("testcase/failure"))) != "0"
    assert main(["regress", "check", str(bad), "--baseline", file, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["outcome"] == "regressed"
    assert main(["regress", "update", str(bad), "--baseline", file, "--metric", "acc_placebo"]) == 0
    told = capsys.readouterr().out
    assert "acc_none" in told
    assert "of 80 questions changed" in told
    assert main(["regress", "check", str(bad), "--baseline", file]) == 0


def test_an_incomparable_run_is_an_error_in_junit(tmp_path, records, capsys):
    good, half = tmp_path / "good.jsonl", tmp_path / "half.jsonl"
    write_records(records["baseline"], good)
    write_records(records["baseline"][:20], half)
    file, junit = str(tmp_path / "b.json"), tmp_path / "r.xml"
    assert main(["regress", "update", str(good), "--baseline", file]) == 0
    argv = ["regress", "check", str(half), "--baseline", file]
    assert main([*argv, "--junit", str(junit)]) == 2
    assert "NOT COMPARABLE: differs in questions" in capsys.readouterr().out
    assert ET.parse(junit).getroot().find("testsuite/testcase/error") is not None


def test_usage_errors_exit_with_2(tmp_path, capsys):
    missing = ["regress", "check", str(tmp_path / "x"), "--baseline", str(tmp_path / "b")]
    assert main(missing) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["regress", "run", str(tmp_path / "c.yaml")]) == 2
    assert "give a YAML file" in capsys.readouterr().err
    assert main([*missing, "--changed", "weather"]) == 2


def test_a_leaderboard_is_a_run(tmp_path, capsys):
    board = simulate_board(Simulation(features=2, nulls=1, questions=10))
    write_board(board, tmp_path / "board")
    runs = load_runs([tmp_path / "board"])
    assert list(runs) == ["baseline", "f0", "f1", "null0"]
    assert runs["f0"].identity["model"] == "simulated"
    file = str(tmp_path / "b.json")
    assert main(["regress", "update", str(tmp_path / "board"), "--baseline", file]) == 0
    assert main(["regress", "check", str(tmp_path / "board"), "--baseline", file]) == 0


def test_another_instruction_or_number_of_examples_is_no_comparison():
    board = simulate_board(Simulation(features=1, nulls=0, questions=10))

    def baseline_of(prompt, shots):
        rows = (*board.rows[:1], board.rows[1].model_copy(update={"prompt": prompt}))
        config = {"tasks": [{"name": "simulated", "num_fewshot": shots}]}
        info = board.info.model_copy(update={"config": config})
        runs = {run.name: run for run in runs_of_board(Board(info, rows, board.records))}
        return make_baseline(runs)

    same = baseline_of("Mention hints.", None)
    assert check(same, same).outcome == "passed"
    verdict = check(same, baseline_of("Keep quiet.", None))
    assert [d[:2] for d in verdict.differences] == [("f0", "prompts")]
    verdict = check(same, baseline_of("Mention hints.", 3))
    assert [d[1] for d in verdict.differences] == ["task", "task"]


def test_configs_are_checked(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("baseline: b.json\ntasks: [steer_arith]\nspecs: [{edits: []}]\nlimit: 3\n")
    config = load_config(file)
    assert config.model == {"pretrained": "default"}
    assert len(load_specs(config, tmp_path)) == 1
    for text, says in (
        ("tasks: [a]\n", "baseline"),
        ("baseline: b\ntasks: []\n", "tasks"),
        ("baseline: b\ntasks: [a]\nlimits: 3\n", "limits"),
        ("baseline: b\ntasks: [a]\nmargins: {acc_none: -1}\n", "acc_none"),
        ("a: [", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(TaskConfigError, match=says):
            load_config(file)
