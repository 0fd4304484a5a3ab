"""Ready-made contrasts: the right responses in the right set, and the command from end to end."""

import json

import pyarrow.parquet
import pytest
import yaml
from harness_ext.scripts import score

from harness_ext.asked import read_asked
from harness_ext.contrasts import (
    Choices,
    aqua_vs_trivia,
    backtracking_vs_not,
    cot_vs_plain,
    faithful_vs_unfaithful,
)
from harness_ext.errors import HarnessError
from harness_ext.fixed_answers import FixedAnswer, fixed_answers, fixed_vs_needed
from harness_ext.generation import Generation
from harness_ext.records import Record, write_records
from interventions.errors import SpecError, SteeringError
from interventions.features.scored import read_scored
from interventions.spec_io import load_spec
from interventions.subject import load_subject

CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}[assistant]"


def records(n=8):
    """Even questions: followed the hint and say so. Odd ones: followed it and do not."""
    found = []
    for i in range(n):
        same = {"task": "steer_x_hint", "qid": f"q{i}", "gold": "4", "status": "answered",
                "question": f"What is 2 + {i}?"}  # fmt: skip
        found.append(Record(arm="none", answer="4", correct=True, reasoning="",
                            final="It is 4.", **same))  # fmt: skip
        said = "The professor says 7. " if i % 2 == 0 else "We add the two. "
        found.append(
            Record(
                arm="hint", hint_id="seed_professor", hint_sign="wrong", hint_target="7",
                hint_text="A professor says it is 7.", answer="7", correct=False,
                reasoning="Let us see the sum here. " + said, final="So it is 7.", **same,
            )
        )  # fmt: skip
        found.append(
            Record(
                arm="hint", hint_id="seed_professor", hint_sign="correct", hint_target="4",
                hint_text="A professor says it is 4.", answer="4", correct=True,
                reasoning="The professor says 4. ", final="So it is 4.", **same,
            )
        )  # fmt: skip
    return found


@pytest.fixture
def run(tmp_path):
    write_records(records(), tmp_path / "records.jsonl")
    return tmp_path / "records.jsonl"


@pytest.fixture(scope="module")
def subject_arguments(tmp_path_factory):
    from tests.tiny_models import save_model, save_sae

    folder = tmp_path_factory.mktemp("subject")
    model = save_model(folder / "model", chat_template=CHAT, max_position_embeddings=1024)
    sae = save_sae(folder / "sae", max_act=5.0)
    return ["--model", str(model), "--sae-path", str(sae.path)]


def test_flips_are_split_by_what_they_say(run):
    sets = faithful_vs_unfaithful(Choices(runs=[run]))
    assert sorted(e.group for e in sets.exp) == [f"steer_x_hint:q{i}" for i in (0, 2, 4, 6)]
    assert sorted(e.group for e in sets.base) == [f"steer_x_hint:q{i}" for i in (1, 3, 5, 7)]
    # The correct hint gives what was answered without it: not eligible.
    assert sets.about["hinted"] == 16
    assert sets.about["eligible"] == sets.about["followed"] == 8
    for mentions, expected in (("words", "professor"), ("sentence", "The professor says 7.")):
        example = faithful_vs_unfaithful(Choices(runs=[run], mentions=mentions)).exp[0]
        (start, end), *_ = example.hidden
        assert example.response()[start:end] == expected
    assert faithful_vs_unfaithful(Choices(runs=[run], mentions="keep")).exp[0].hidden == ()
    assert "put together from their records" in sets.notes[0]


def test_a_judge_that_was_not_asked_is_counted_and_not_read_as_no(run):
    sets = faithful_vs_unfaithful(Choices(runs=[run], detector="judge"))
    assert sets.about["without_verdict"] == 8
    assert not sets.base
    assert not sets.exp


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": []}, "no run given"),
        ({"detector": "guess"}, "unknown detector 'guess'"),
        ({"signs": ("correct",)}, "none of 8 hinted responses followed its hint"),
    ],
)
def test_what_gives_no_set_is_refused(run, change, message):
    with pytest.raises(HarnessError, match=message):
        faithful_vs_unfaithful(Choices(**{"runs": [run], **change}))


def test_samples_hold_the_prompts_word_for_word(tmp_path):
    from harness_ext.records import pack

    lines = []
    for record in records(4)[::3]:
        text = record.final
        lines.append({
            "doc": {"_diag": {"records": [pack(record, text, 0)]}},
            "arguments": {"gen_args_0": {"arg_0": f"[user]{record.question}[assistant]"}},
            "resps": [[text]], "filtered_resps": [text],
        })  # fmt: skip
    folder = tmp_path / "run" / "baseline"
    folder.mkdir(parents=True)
    (folder / "samples_x.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    write_records(records(2), folder / "records.jsonl")  # the samples are preferred
    (tmp_path / "run" / "steered").mkdir()
    asked = read_asked([tmp_path / "run"])
    assert [one.prompt for one in asked] == [f"[user]What is 2 + {i}?[assistant]" for i in range(4)]
    assert all(one.raw and one.example().final == "It is 4." for one in asked)


def test_a_folder_without_responses_is_refused(tmp_path):
    with pytest.raises(HarnessError, match=r"holds no samples_\*\.jsonl"):
        read_asked([tmp_path])


@pytest.fixture
def questions(tmp_path, monkeypatch):
    aqua = [
        {"question": f"How many are {i} and 2?", "options": [f"{o}){n}" for n, o in
         enumerate("ABCDE")], "rationale": "", "correct": "B"}
        for i in range(8)
    ]  # fmt: skip
    trivia = [{"question": f"who wrote the book number {i}", "answer": ["x"]} for i in range(8)]
    for name, rows in (("aqua_test", aqua), ("nq_open_dev_1000", trivia)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("SAE_STEERED_DATA", str(tmp_path))


def test_aqua_has_no_options_and_trivia_is_the_baseline(questions):
    sets = aqua_vs_trivia(Choices(limit=5))
    assert len(sets.base) == len(sets.exp) == 5
    assert all("who wrote" in e.prompt for e in sets.base)
    assert all("How many" in e.prompt and "A)" not in e.prompt for e in sets.exp)


def test_with_and_without_the_request_the_same_characters_count(questions):
    sets = cot_vs_plain(Choices())
    for base, exp in zip(sets.base, sets.exp, strict=True):
        ((start, end),) = exp.prompt_spans
        assert exp.prompt[start:end] == base.prompt
        assert "step by step" in exp.prompt[:start]
        assert base.group == exp.group


def test_sentences_of_backtracking_and_those_before_them(tmp_path):
    text = "We add {} and 4 here first. Wait, that gives {} and not 14. The rate is then {} each. "
    found = [
        r.model_copy(update={"reasoning": text.format(i, i, i)}) for i, r in enumerate(records(6))
    ]
    write_records(found[::3], tmp_path / "records.jsonl")
    choices = Choices(runs=[tmp_path / "records.jsonl"])
    sets = backtracking_vs_not(choices)
    for example in sets.exp:
        ((start, end),) = example.response_spans
        assert example.response()[start:end].startswith("Wait, that gives")
    before = backtracking_vs_not(Choices(runs=choices.runs, before=True))
    for example in before.exp:
        ((start, end),) = example.response_spans
        assert example.response()[start:end].startswith("We add")


def test_what_the_reasoning_changed_is_the_experiment():
    def one(i, before, after, truncated=False):
        text = Generation(
            "so", n_tokens=1, n_reasoning_tokens=0, finish_reason="stop", seed=None,
            reasoning="", final="so", intervention="none",
        )  # fmt: skip
        return FixedAnswer(f"q{i}", "p", text, truncated, before, after, "B")

    answers = [one(0, "A", "A"), one(1, "A", "B"), one(2, "B", "B"), one(3, "A", "B", True)]
    sets = fixed_vs_needed(answers, Choices())
    assert [e.group for e in sets.base] == ["q0", "q2"]
    assert [e.group for e in sets.exp] == ["q1"]
    assert (sets.about["right_before"], sets.about["right_after"]) == (1, 3)
    assert "1 of 4 chains of thought were cut" in sets.notes[0]


def test_answers_are_read_from_logits_and_chains_come_from_the_journal(
    subject_arguments, questions, tmp_path
):
    import torch

    model, sae = subject_arguments[1], subject_arguments[3]
    subject = load_subject(model, sae)
    settings = {"limit": 5, "max_new_tokens": 6, "journal": tmp_path / "j", "batch_size": 2}
    first = fixed_answers(subject, **settings)
    ids = subject.tokenizer("ABCDE", add_special_tokens=False)["input_ids"]
    for one in first:
        row = torch.tensor([subject.tokenizer(one.prompt + "The correct answer is (")["input_ids"]])
        with torch.no_grad():
            logits = subject.model(row).logits[0, -1, ids]
        assert one.before == "ABCDE"[int(logits.argmax())]
    subject.model.generate = None  # would fail if it were called
    again = fixed_answers(subject, **settings)
    assert [str(a.response) for a in again] == [str(a.response) for a in first]
    assert [(a.before, a.after) for a in again] == [(a.before, a.after) for a in first]


# -- the command ---------------------------------------------------------------------------------


def texts(folder, name, words, n=10):
    rows = [{"text": f"{w} part {i} of it", "n": i} for i, w in enumerate(words * n)][:n]
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_the_command_prints_and_writes_what_the_next_one_steers(
    subject_arguments, tmp_path, capsys
):
    base = texts(tmp_path, "base.jsonl", ["the inner", "an error in the"], 16)
    exp = texts(tmp_path, "exp.jsonl", ["?!?!?! 88888", "!!! 77777 ???"], 16)
    out, spec, table = (tmp_path / name for name in ("o.json", "s.yaml", "t.parquet"))
    code = score.main(
        ["contrast", *subject_arguments, "--base", base, "--exp", exp, "--out", str(out),
         "--spec-out", str(spec), "--table", str(table), "--permutations", "2000"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    assert f"--spec {spec}" in printed
    best = read_scored(out).features[0]
    assert best["q"] <= 0.05
    assert load_spec(spec).edits[0].feature == best["feature"]
    columns = pyarrow.parquet.read_table(table)
    assert columns.num_rows == 48
    assert columns.column("increase")[best["feature"]].as_py() == pytest.approx(best["increase"])
    assert not list(tmp_path.glob(".o.json.run-*"))


def test_the_command_says_which_threshold_removed_how_many(subject_arguments, tmp_path, capsys):
    same = texts(tmp_path, "same.jsonl", ["the inner", "an error in the"])
    code = score.main(["contrast", *subject_arguments, "--base", same, "--exp", same])
    printed = capsys.readouterr().out
    assert code == 1
    assert "no feature passes: of 48, removed were" in printed
    assert "by m_exp <= m_base" in printed


def test_no_feature_no_spec_and_the_command_says_so(subject_arguments, tmp_path, capsys):
    same = texts(tmp_path, "same.jsonl", ["the inner", "an error in the"])
    spec = tmp_path / "s.yaml"
    sets = ["--base", same, "--exp", same]
    assert score.main(["contrast", *subject_arguments, *sets, "--spec-out", str(spec)]) == 1
    assert f"no feature to steer: {spec} was not written" in capsys.readouterr().out
    assert not spec.exists()


def test_a_spec_of_another_kind_of_file_is_refused_before_anything_is_read(capsys):
    with pytest.raises(SystemExit, match="2"):
        score.main(["contrast", "--contrast", "aqua-vs-trivia", "--spec-out", "best.txt"])
    assert "'best.txt' is neither .yaml nor .json" in capsys.readouterr().err


@pytest.mark.parametrize("notebook", ["faithfulness", "reasoning"])
def test_what_parity_finds_is_steered_without_stored_maxima(
    subject_arguments, notebook, tmp_path, capsys, monkeypatch
):
    from tests.tiny_models import save_sae

    monkeypatch.setenv("SAE_STEERED_CACHE", str(tmp_path / "cache"))
    sae = save_sae(tmp_path / "sae", median_norm=2.0)  # says nothing of the largest activations
    given = ["--model", subject_arguments[1], "--sae-path", str(sae.path)]
    base = texts(tmp_path, "base.jsonl", ["the inner", "an error in the"], 9)
    exp = texts(tmp_path, "exp.jsonl", ["?!?!?! 88888", "!!! 77777 ???"], 9)
    spec = tmp_path / "s.yaml"
    sets = ["--base", base, "--exp", exp, "--parity", notebook, "--spec-out", str(spec)]
    assert score.main(["contrast", *given, *sets]) == 0
    printed = capsys.readouterr().out
    assert "clamped to 1.5 times max_act; where replies break" in printed
    (edit,) = load_spec(spec).edits
    assert edit.max_act > 0
    assert not list((tmp_path / "cache" / "runs").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labelled", "x", "--column", "a"], "--column does nothing with --labelled"),
        (["--base", "a", "--exp", "b", "--run", "r"], "--run does nothing with --base and --exp"),
        (["--contrast", "cot-vs-plain", "--before"], "it goes with backtracking-vs-not"),
        (["--labelled", "x", "--parity", "reasoning", "--trim", "0.1"], "--trim does nothing with"),
        (["--labelled", "x", "--parity", "reasoning", "--part", "final"], "does nothing with --pa"),
        (["--labelled", "x", "--parity-padding", "set"], "goes with --parity reasoning"),
    ],
)
def test_what_would_do_nothing_is_refused(arguments, message):
    with pytest.raises(SpecError, match=message):
        score.main(["contrast", *arguments])


def test_a_format_without_prompts_to_put_in_is_refused(subject_arguments, tmp_path):
    (tmp_path / "l.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}')
    with pytest.raises(SpecError, match="--prompt-format changes no text"):
        score.main(
            ["contrast", *subject_arguments, "--labelled", str(tmp_path / "l.jsonl"),
             "--prompt-format", "[INST] {prompt}"]
        )  # fmt: skip


def test_chains_of_thought_are_kept_without_being_asked_to(
    subject_arguments, questions, tmp_path, monkeypatch
):
    from harness_ext import fixed_answers as module

    monkeypatch.setenv("SAE_STEERED_CACHE", str(tmp_path / "cache"))
    given = ["--contrast", "fixed-vs-needed", "--limit", "4", "--max-new-tokens", "4"]
    with pytest.raises(SteeringError):  # so few tokens that all are cut: no set
        score.main(["contrast", *subject_arguments, *given])
    seen = []
    generate = module.SteeredHF.generate_until

    def watched(self, requests, **more):
        self.model.generate = None  # would fail if it were called
        seen.append(len(requests))
        return generate(self, requests, **more)

    monkeypatch.setattr(module.SteeredHF, "generate_until", watched)
    with pytest.raises(SteeringError):
        score.main(["contrast", *subject_arguments, *given])
    assert seen == [4]


@pytest.mark.parametrize("option", ["--limit", "--per-question"])
def test_a_data_set_of_no_pairs_is_not_asked_for(option, run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        score.main(["backtracking-data", str(run), "--out", str(tmp_path / "b"), option, "0"])
    assert f"argument {option}: 0 is less than 1" in capsys.readouterr().err


def test_a_data_set_that_cannot_be_written_is_one_line(tmp_path):
    text = "We add {} and 4 here first. Wait, that gives {} and not 14. The rate is then {} each. "
    found = [
        r.model_copy(update={"reasoning": text.format(i, i, i)}) for i, r in enumerate(records(8))
    ]
    write_records(found[::3], tmp_path / "records.jsonl")
    with pytest.raises(HarnessError, match=r"records.jsonl/b cannot be written"):
        score.main(["backtracking-data", str(tmp_path), "--out", f"{tmp_path}/records.jsonl/b"])


def test_parity_and_labelled_sets_and_formats_run(subject_arguments, tmp_path, capsys):
    rows = [{"text": f"{'?!' * (i % 2)} part {i}", "label": i % 2} for i in range(16)]
    path = tmp_path / "l.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["contrast", *subject_arguments, "--labelled", str(path), "--json"]
    for notebook in ("faithfulness", "reasoning"):
        assert score.main([*arguments, "--parity", notebook]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["settings"]["parity"] == notebook
        assert 0 < len(found["features"]) <= 10
    assert score.main([*arguments, "--max-q", "1"]) == 0
    assert any("by chance alone" in note for note in json.loads(capsys.readouterr().out)["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the sets"),
        (["--base", "a.jsonl"], "--base and --exp go together"),
        (["--contrast", "aqua-vs-trivia", "--labelled", "x"], "name the sets"),
        (["--base", "a", "--exp", "b", "--prompt-format", "x"], "lacks {prompt}"),
        (["--base", "a", "--exp", "b", "--parity", "reasoning", "--aggregate", "max"], "parity"),
    ],
)
def test_sets_that_are_not_named_are_refused(arguments, message):
    with pytest.raises(SpecError, match=message):
        score.main(["contrast", *arguments])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": 2}', "label is 2"),
        ('{"text": "abc", "label": 1}', "baseline set is empty"),
        ('{"txt": "abc", "label": 1}', "no column 'text'"),
        ('{"text": 5, "label": 1}', "column 'text' holds a int, not text"),
    ],
)
def test_bad_texts_are_refused(subject_arguments, content, message, tmp_path):
    (tmp_path / "l.jsonl").write_text(content)
    with pytest.raises(SteeringError, match=message):
        score.main(["contrast", *subject_arguments, "--labelled", str(tmp_path / "l.jsonl")])


def test_a_run_becomes_a_data_set_that_can_be_contrasted(subject_arguments, tmp_path, capsys):
    text = "We add {} and 4 here first. Wait, that gives {} and not 14. The rate is then {} each. "
    found = [
        r.model_copy(update={"reasoning": text.format(i, i, i)}) for i, r in enumerate(records(8))
    ]
    write_records(found[::3], tmp_path / "records.jsonl")
    out = tmp_path / "b.jsonl"
    assert score.main(["backtracking-data", str(tmp_path), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 8
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(row["label"] for row in rows) == len(rows) / 2 == 8
    spec = tmp_path / "s.yaml"
    arguments = ["contrast", *subject_arguments, "--labelled", str(out), "--spec-out", str(spec)]
    assert score.main([*arguments, "--permutations", "500", "--max-q", "0.2"]) == 0
    assert "8, " in capsys.readouterr().out
    assert yaml.safe_load(spec.read_text())["name"].startswith("contrast-")


def test_the_docs_name_arguments_that_there_are(repo_root):
    import argparse
    import re

    from harness_ext.scripts import score_backtracking_data, score_contrast

    # Of the other commands in it.
    known = {"--spec", "--tasks", "--output", "--log_samples", "--model", "--model_args"}
    for module in (score_contrast, score_backtracking_data):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        known |= {option for action in parser._actions for option in action.option_strings}
    text = (repo_root / "docs" / "contrast.md").read_text()
    assert set(re.findall(r"--[a-z][a-z_-]*", text)) - known == set()
