import json
import math
import os
import subprocess
import sys
from statistics import mean, stdev

import pytest

from harness_ext.corpora import DATA_ENV, load_corpus
from harness_ext.errors import HarnessError, TaskConfigError
from harness_ext.stats import pass_at_k
from harness_ext.verifier import same_answer
from tests.tasks.reasoning import (
    REASONING,
    ROOT,
    SHARED,
    Scripted,
    boxed,
    evaluate,
    generation,
    make_data,
    manager,
)

pytestmark = pytest.mark.skipif(
    not (SHARED / "math500_test.jsonl").is_file(),
    reason=f"no math500_test.jsonl in {DATA_ENV} or ../shared/data",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(make_data(tmp_path_factory.mktemp("data")))


def right(prompt, doc, i):
    return boxed(doc["answer"])


# Every task, answered rightly and wrongly.


@pytest.mark.parametrize("name", REASONING)
def test_a_right_answer_counts_and_another_does_not(name, data):
    task = f"steer_{name}"
    good = evaluate(Scripted(right), [task], limit=24, metadata={"data_path": data})
    assert good["results"][task]["exact_match,none"] == 1
    assert good["results"][task]["exact_match_lenient,none"] == 1
    corpus = load_corpus(name, data)

    def other(prompt, doc, i):
        if corpus.benchmark.kind == "choice":
            return boxed("ABCDE"["ABCDE".index(doc["answer"]) - 1] if doc["answer"] != "A" else "B")
        return boxed("123456789")

    bad = evaluate(Scripted(other), [task], limit=24, metadata={"data_path": data})
    assert bad["results"][task]["exact_match,none"] == 0
    assert bad["results"][task]["no_answer,none"] == 0
    silent = evaluate(
        Scripted(lambda *_: "I give up"), [task], limit=24, metadata={"data_path": data}
    )
    assert silent["results"][task]["no_answer,none"] == 1


@pytest.mark.parametrize("name", ["aqua", "gpqa_diamond"])
@pytest.mark.parametrize(
    "form", ["Answer: {}", "The answer is ({}).", r"\boxed{{\text{{{}}}}}", "**Answer:** {}"]
)
def test_a_letter_is_read_in_the_usual_forms(name, form, data):
    model = Scripted(lambda prompt, doc, i: f"A man thinks.\n{form.format(doc['answer'])}")
    results = evaluate(model, [f"steer_{name}"], limit=10, metadata={"data_path": data})
    assert results["results"][f"steer_{name}"]["exact_match,none"] == 1


def test_the_text_of_an_option_counts_for_its_letter(data):
    def text(prompt, doc, i):
        return boxed(doc["choices"]["ABCD".index(doc["answer"])])

    name = "steer_gpqa_diamond"
    results = evaluate(Scripted(text), [name], limit=10, metadata={"data_path": data})
    assert results["results"][name]["exact_match,none"] == 1


@pytest.mark.parametrize("name", REASONING)
def test_the_protocol_is_that_of_r1(name, data):
    results = evaluate(Scripted(right), [f"steer_{name}"], limit=1, metadata={"data_path": data})
    assert results["configs"][f"steer_{name}"]["generation_kwargs"] == {
        "until": [],
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "max_gen_toks": 32768,
    }


def test_styles_reach_the_prompt(data):
    for style, start in (("airi", "Please reason"), ("lighteval", "Solve the following")):
        model = Scripted(right)
        evaluate(
            model,
            ["steer_aime24"],
            limit=1,
            metadata={"data_path": data, "prompt_style": style},
        )
        assert model.prompts[0].startswith(start)


def test_a_leading_zero_is_the_same_number(data):
    model = Scripted(lambda prompt, doc, i: boxed(doc["answer"].lstrip("0").zfill(i % 4)))
    values = evaluate(model, ["steer_aime24"], metadata={"data_path": data})["results"]
    assert values["steer_aime24"]["exact_match,none"] == 1


# Several samples of a question.


def sampled(prompt, doc, i):
    """Six samples a question: the first q % 4 are right, the last is right and cut."""
    q, sample = divmod(i, 6)
    if sample < q % 4:
        return generation(boxed(doc["answer"]), n=100 + i)
    wrong = [boxed("1001"), "no idea", boxed("1001.0"), boxed("1002")]
    if sample == 5:
        return generation(boxed(doc["answer"]), n=999, finish="length")
    return generation(wrong[sample % 4], n=100 + i)


@pytest.fixture(scope="module")
def repeated(data):
    return evaluate(
        Scripted(sampled), ["steer_aime24"], limit=8, metadata={"data_path": data, "repeats": 6}
    )


def test_each_metric_and_its_error_over_questions(repeated):
    values = repeated["results"]["steer_aime24"]
    right_of = [q % 4 for q in range(8)]
    expected = {"mean@6": [c / 6 for c in right_of], "exact_match": [c / 6 for c in right_of]}
    for k in (2, 4, 6):
        expected[f"pass@{k}"] = [pass_at_k(6, c, k) for c in right_of]
    expected["maj@6"] = [maj_of(c) for c in right_of]
    for name, column in expected.items():
        assert values[f"{name},none"] == pytest.approx(mean(column)), name
        se = stdev(column) / math.sqrt(8)
        assert values[f"{name}_stderr,none"] == pytest.approx(se), name
    assert values["exact_match_lenient,none"] == pytest.approx(
        mean(c / 6 + 1 / 6 for c in right_of)
    )
    assert values["truncation,none"] == pytest.approx(1 / 6)
    assert values["n_reasoning_tokens,none"] == 2
    assert values["n_answer_tokens,none"] == pytest.approx(values["n_tokens,none"] - 2)


def maj_of(c):
    """The vote of six samples of which the first c are right, counted by hand."""
    said = ["1001", None, "1001", "1002", "1001"][c:]
    votes = {"right": c, **{a: said.count(a) for a in said if a}}
    best = [a for a, v in votes.items() if v == max(votes.values())]
    return ("right" in best) / len(best)


def test_the_vote_counted_by_hand_is_not_trivial():
    assert [maj_of(c) for c in range(4)] == [0, 0, 0.5, 1]


def test_the_samples_file_holds_every_sample(repeated):
    for sample in repeated["samples"]["steer_aime24"]:
        records = sample["doc"]["_diag"]["records"]
        assert [r["sample"] for r in records] == list(range(6))
        assert records[5]["status"] == "truncated"
        assert "pass@4" in sample
        assert "maj@6" in sample


def test_chosen_k(data):
    values = evaluate(
        Scripted(sampled),
        ["steer_aime24"],
        limit=2,
        metadata={"data_path": data, "repeats": 6, "at_k": [3]},
    )["results"]["steer_aime24"]
    assert {n.split(",")[0] for n in values if "@" in n and "stderr" not in n} == {
        "mean@6",
        "pass@3",
        "maj@3",
    }


@pytest.mark.parametrize(("repeats", "at_k"), [(4, [5]), (4, 0), (1, [2])])
def test_a_k_that_cannot_be_is_refused(repeats, at_k, data):
    with pytest.raises(TaskConfigError, match=r"'at_k' holds .*1 <= k <= repeats"):
        manager(data_path=data, repeats=repeats, at_k=at_k).load(["steer_aime24"])


def test_one_sample_has_no_pass_at_k(data):
    values = evaluate(Scripted(right), ["steer_aime25"], limit=2, metadata={"data_path": data})
    assert not [n for n in values["results"]["steer_aime25"] if "@" in n]


# The hint tasks.


@pytest.mark.parametrize("name", REASONING)
def test_every_question_has_four_arms_and_a_wrong_target_of_its_kind(name, data):
    task_name = f"steer_{name}_hint"
    task = manager(data_path=data).load([task_name])["tasks"][task_name]
    bench = task.corpus.benchmark
    for doc in list(task.test_docs())[:60]:
        hint = task.hint(doc)
        none, correct, wrong, placebo = task.fewshot_context(doc, 0)
        assert hint.text("correct") in correct
        assert hint.text("wrong") in wrong
        assert hint.text("placebo") in placebo
        assert none == correct.replace(f" {hint.text('correct')}", "")
        assert hint.correct == doc["answer"]
        if bench.kind == "choice":
            assert hint.wrong in "ABCDE"[: len(doc["choices"])]
            assert hint.wrong != doc["answer"]
        else:
            assert not same_answer(doc["answer"], hint.wrong)
        if bench.number_range:
            assert 0 <= int(hint.wrong) <= 999
            assert len(hint.wrong) == len(doc["answer"])


def test_a_model_that_follows_hints_on_options(data):
    """Says A without a hint, and what the hint says with one."""

    def follow(prompt, doc, i):
        hinted = [x for x in "ABCDE" if f"the answer is {x}." in prompt]
        said = "The professor says so. " if "rofessor" in prompt else ""
        return generation(said + boxed(hinted[0] if hinted else "A"))

    name = "steer_aqua_hint"
    results = evaluate(Scripted(follow), [name], limit=40, metadata={"data_path": data})
    values, samples = results["results"][name], results["samples"][name]
    golds = [s["target"] for s in samples]
    assert values["acc_none,none"] == golds.count("A") / 40
    assert values["acc_correct,none"] == 1
    assert values["acc_wrong,none"] == 0
    targets = [s["doc"]["_diag"]["records"][2]["hint_target"] for s in samples]
    assert values["n_eligible,none"] == sum(t != "A" for t in targets)
    assert values["influence,none"] == 1
    # Nobody changed to a third option, so nothing is corrected for: alpha is 1.
    assert values["normalised_verbalization_regex,none"] == values["verbalization_regex,none"]
    assert 0 < values["verbalization_regex,none"] < 1
    assert {r["n_choices"] for s in samples for r in s["doc"]["_diag"]["records"]} == {5}


# The same prompts in any process, with any limit, in any order.

CODE = """
import hashlib, json, sys
from harness_ext.paths import tasks_dir
from lm_eval.tasks import TaskManager
from tests.tasks.reasoning import Scripted
import lm_eval
args = json.loads(sys.argv[1])
tm = TaskManager(include_path=str(tasks_dir()), include_defaults=False,
                 metadata={"data_path": args["data"], **args["metadata"]})
model = Scripted(lambda prompt, doc, i: "?")
results = lm_eval.simple_evaluate(model=model, tasks=args["tasks"], task_manager=tm,
                                  log_samples=True, **args["kwargs"])
out = {}
for task, samples in results["samples"].items():
    for s in samples:
        prompts = [a[0] for a in s["arguments"]]
        key = hashlib.sha256(json.dumps([prompts, s["target"]]).encode()).hexdigest()
        targets = [r.get("hint_target") for r in s["doc"]["_diag"]["records"]]
        out[f"{task}/{s['doc']['qid']}"] = [key, s["target"], targets]
print("RESULT" + json.dumps(out))
"""
HINTED = [f"steer_{name}_hint" for name in ("gpqa_diamond", "aqua", "aime24", "math500")]


def asked(data, hash_seed, metadata=None, **kwargs):
    args = {"data": data, "metadata": metadata or {}, "tasks": HINTED, "kwargs": kwargs}
    run = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(args)],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.split("RESULT")[1])


@pytest.mark.slow
def test_options_and_hints_are_the_same_in_any_process_limit_and_order(data):
    first = asked(data, 0, limit=16)
    assert len(first) == 64
    assert asked(data, 1, limit=16) == first
    fewer = asked(data, 2, limit=3)
    assert fewer == {k: first[k] for k in fewer}
    assert len(fewer) == 12
    # lm-eval runs --samples in the order of the data, and files them under the given numbers.
    some = asked(data, 3, samples={task: [11, 2, 7] for task in HINTED})
    assert some == {k: first[k] for k in some}
    assert len(some) == 12
    other = asked(data, 0, limit=16, metadata={"hint_seed": 5, "choice_seed": 5})
    assert other.keys() == first.keys()
    moved = [k for k in first if other[k] != first[k]]
    assert len(moved) > 56
    golds = [k for k in first if other[k][1] != first[k][1]]
    assert golds
    assert all(k.startswith("steer_gpqa_diamond_hint") for k in golds)


# Departures from the protocol are said, and what would ask something else is refused.


def test_missing_template_and_system_prompt_are_named(data, caplog):
    evaluate(
        Scripted(right),
        ["steer_aime24"],
        limit=1,
        metadata={"data_path": data},
        system_instruction="You are helpful.",
    )
    said = " ".join(r.message for r in caplog.records)
    assert "no chat template" in said
    assert "system prompt" in said


def test_cached_requests_are_refused(data):
    with pytest.raises(TaskConfigError, match="--cache_requests would return the prompts"):
        evaluate(
            Scripted(right),
            ["steer_aime24"],
            limit=1,
            metadata={"data_path": data},
            cache_requests=True,
        )


def test_gpqa_without_data_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_ENV, str(tmp_path))
    with pytest.raises(HarnessError, match=r"gpqa_diamond\.jsonl.*Idavidrein/gpqa") as caught:
        manager().load(["steer_gpqa_diamond"])
    assert "\n" not in str(caught.value)
