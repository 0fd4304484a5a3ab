"""The task with hints on models that follow them by a rule."""

import json
import math
import re

import pytest
from lm_eval.utils import handle_non_serializable, make_table

from harness_ext.metrics import METRICS, summarise
from harness_ext.records import read_records
from tests.tasks.reasoning import Scripted, evaluate, follow, generation, hinted_value


@pytest.fixture(scope="module")
def followed():
    model = Scripted(follow)
    return model, evaluate(model, ["steer_arith_hint"], limit=30)


def test_four_prompts_a_question_that_differ_in_the_hint_only(followed):
    model, results = followed
    assert len(model.prompts) == 120
    samples = results["samples"]["steer_arith_hint"]
    for i, sample in enumerate(samples):
        none, correct, wrong, placebo = model.prompts[4 * i : 4 * i + 4]
        gold = sample["target"]
        assert all(p.startswith(none) for p in (correct, wrong, placebo))
        assert hinted_value(correct) == gold
        assert hinted_value(wrong) not in (None, gold)
        assert hinted_value(placebo) is None
        hint = correct[len(none) :]
        assert hint.replace(f" {gold}.", "") == wrong[len(none) :].replace(
            f" {hinted_value(wrong)}.", ""
        )
        speaker = hint.split(" indicates")[0]
        assert placebo[len(none) :].startswith(speaker)


def test_each_arm_is_scored_against_its_own_prompt(followed):
    _, results = followed
    for sample in results["samples"]["steer_arith_hint"]:
        records = sample["doc"]["_diag"]["records"]
        arms = [(r["arm"], r.get("hint_sign")) for r in records]
        assert arms == [("none", None), ("hint", "correct"), ("hint", "wrong"), ("placebo", None)]
        prompts = [args[0] for args in sample["arguments"]]
        for record, prompt in zip(records, prompts, strict=True):
            assert record["answer"] == (hinted_value(prompt) or "0")
            assert record.get("hint_target") == hinted_value(prompt)


def test_the_aggregated_metrics_of_a_model_that_always_follows(followed):
    _, results = followed
    values = results["results"]["steer_arith_hint"]
    wrong = [s["doc"]["_diag"]["records"][2] for s in results["samples"]["steer_arith_hint"]]
    eligible = [r for r in wrong if r["hint_target"] != "0"]
    said = sum(r["hint_id"] in ("seed_professor", "seed_stanford", "seed_source") for r in eligible)
    assert 0 < said < len(eligible)
    assert values["acc_none,none"] == 0
    assert values["acc_correct,none"] == 1
    assert values["acc_wrong,none"] == 0
    assert values["influence,none"] == 1
    assert values["influence_correct,none"] == 1
    assert values["n_flips,none"] == values["n_eligible,none"] == len(eligible)
    v = said / len(eligible)
    assert values["verbalization_regex,none"] == pytest.approx(v)
    assert values["silent_use_regex,none"] == pytest.approx(1 - v)
    assert values["mean_tokens,none"] == pytest.approx(15)
    assert values["truncation,none"] == 0
    # One sample a question: the error of a mean over the questions that take part.
    n = len(eligible)
    se = math.sqrt(v * (1 - v) / (n - 1))
    assert values["verbalization_regex_stderr,none"] == pytest.approx(se)
    assert values["silent_use_regex_stderr,none"] == pytest.approx(se)


def test_plain_lm_eval_prints_every_value_with_its_error(followed):
    table = make_table(followed[1])
    for name in ("acc_none", "influence", "verbalization_lexicon", "silent_use_regex"):
        row = next(line for line in table.splitlines() if f"|{name} " in line)
        assert re.search(r"\|±\s*\|\s*(?:\d|0\.\d+)", row), row
    assert "_stderr" not in table


def test_undefined_metrics_are_null_and_print(tmp_path):
    results = evaluate(Scripted(lambda p, doc, i: "no idea"), ["steer_arith_hint"], limit=3)
    values = results["results"]["steer_arith_hint"]
    assert values["influence,none"] is None
    assert values["influence_stderr,none"] == "N/A"
    assert values["mean_tokens,none"] is None
    assert values["no_answer,none"] == 1
    json.dumps(values, allow_nan=False)
    assert "steer_arith_hint" in make_table(results)


def test_records_come_back_from_the_samples_file_and_give_the_same_numbers(followed, tmp_path):
    _, results = followed
    path = tmp_path / "samples_steer_arith_hint.jsonl"
    with path.open("w") as out:
        for sample in results["samples"]["steer_arith_hint"]:
            out.write(json.dumps(sample, default=handle_non_serializable) + "\n")
    records = read_records(path)
    assert len(records) == 120
    texts = [r for s in results["samples"]["steer_arith_hint"] for r in s["resps"]]
    assert [[r.final] for r in records] == texts
    summary = summarise(records)["steer_arith_hint"]["none"]
    values = results["results"]["steer_arith_hint"]
    assert summary["influence"] == values["influence,none"]
    assert summary["verbalization"]["regex"] == values["verbalization_regex,none"]
    assert summary["silent_use"]["lexicon"] == values["silent_use_lexicon,none"]
    assert summary["acc"]["correct"] == values["acc_correct,none"]
    assert summary["stderr"]["verbalization_regex"] == values["verbalization_regex_stderr,none"]
    for name in METRICS:
        if f"{name},none" in values and values[f"{name},none"] is not None:
            se = summary["stderr"][name]
            assert values[f"{name}_stderr,none"] == ("N/A" if se is None else se)


def test_hints_do_not_depend_on_the_limit(followed):
    model, _ = followed
    again = Scripted(follow)
    evaluate(again, ["steer_arith_hint"], limit=5)
    assert again.prompts == model.prompts[:20]


def test_another_hint_seed_or_family_asks_something_else(followed):
    model, _ = followed
    for metadata in ({"hint_seed": 1}, {"hint_family": "opinion"}):
        other = Scripted(follow)
        evaluate(other, ["steer_arith_hint"], limit=5, metadata=metadata)
        assert other.prompts[0::4] == model.prompts[0:20:4]
        assert other.prompts[1:4] != model.prompts[1:4]


def test_sample_i_of_an_arm_is_paired_with_sample_i(tmp_path):
    # Odd samples give the hinted value without a hint as well: those are not eligible.
    def reply(prompt, doc, i):
        return generation(f"The answer is {hinted_value(prompt) or i % 2}.")

    results = evaluate(
        Scripted(reply),
        ["steer_arith_hint"],
        limit=6,
        metadata={"repeats": 2},
        gen_kwargs={"do_sample": True, "temperature": 1.0},
    )
    for sample in results["samples"]["steer_arith_hint"]:
        records = sample["doc"]["_diag"]["records"]
        assert [r["sample"] for r in records] == [0, 1] * 4
        assert [len(r) for r in sample["resps"]] == [2, 2, 2, 2]
