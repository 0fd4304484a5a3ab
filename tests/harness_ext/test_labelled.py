import json
import re
from collections import Counter
from pathlib import Path

import pytest
from harness_ext.scripts.detectors import main

from harness_ext.detectors import DETECTORS, REGISTRY, Mention
from harness_ext.errors import RecordError
from harness_ext.labelled import (
    by_case,
    label_of,
    load_labelled,
    quality,
    reliance,
    split_of,
    verdicts,
)
from harness_ext.llm.verdicts import JudgeVerdict
from harness_ext.records import Label, Record, write_records

OWN = load_labelled()


def trace(i, mentions, says, *, arm="hint", relies="none", **kw):
    hint = {"hint_sign": "wrong", "hint_target": "9"} if arm == "hint" else {}
    return Record(
        task="labelled", qid=f"t{i}", arm=arm, hint_id="seed_source", **hint, gold="7",
        answer="9", status="answered", correct=False, reasoning="", question="How many?",
        final="The source says the answer is 9." if says else "9",
        label=Label(mentions=mentions, relies=relies, case="yes" if mentions else "no", target="9"),
        **kw,
    )  # fmt: skip


def test_precision_recall_and_f1_of_a_known_table():
    # 6 true and 2 false positives, 3 misses, 9 true negatives.
    table = [(1, 1)] * 6 + [(0, 1)] * 2 + [(1, 0)] * 3 + [(0, 0)] * 9
    records = [trace(i, bool(m), s) for i, (m, s) in enumerate(table)]
    found = quality(records, "lexicon", split="all", draws=500)
    assert found.counts == {"tp": 6, "fp": 2, "fn": 3, "tn": 9}
    assert found.precision.value == pytest.approx(6 / 8)
    assert found.recall.value == pytest.approx(6 / 9)
    assert found.f1.value == pytest.approx(12 / 17)
    assert found.f1.lo < 12 / 17 < found.f1.hi
    assert (found.precision.lo, found.precision.hi) == pytest.approx((0.4093, 0.9285), abs=1e-4)
    assert found.agreement.raw == pytest.approx(15 / 20)
    assert sorted(found.wrong) == sorted(
        [(f"t{i}", "no") for i in (6, 7)] + [(f"t{i}", "yes") for i in (8, 9, 10)]
    )
    assert by_case(records, verdicts(records, REGISTRY["lexicon"])) == {
        "no": [9, 11], "yes": [6, 9]
    }  # fmt: skip
    assert found == quality(records, "lexicon", split="all", draws=500)


def test_arms_without_an_answer_give_the_false_positive_rate():
    records = [trace(i, False, i < 1, arm="none" if i % 2 else "placebo") for i in range(4)]
    found = quality([*records, trace(9, True, True)], "regex", split="all")
    assert (found.false_positive_rate.value, found.false_positive_rate.n) == (0.25, 4)


def test_undefined_is_none():
    found = quality([trace(0, False, False)], "regex", split="all")
    assert (found.precision.value, found.recall.value, found.f1.value) == (None, None, None)
    assert quality([], "regex", split="all").f1.n == 0


def test_traces_without_a_verdict_are_in_no_rate():
    yes = JudgeVerdict(prompt="p", status="parsed", mentions=True, relies="partial", evidence="9",
                       channel="final")  # fmt: skip
    no = JudgeVerdict(prompt="p", status="parsed", mentions=False, relies="none")
    broken = JudgeVerdict(prompt="p", status="unparsed", reason="r")
    records = [
        trace(0, True, True, relies="decisive", judge=yes),
        trace(1, True, True, relies="decisive", judge=no),
        trace(2, True, True, relies="decisive", judge=broken),
        trace(3, True, True, relies="decisive"),
    ]
    found = quality(records, "judge", split="all")
    assert (found.counts["tp"], found.counts["fn"], found.no_verdict) == (1, 1, 2)
    relies = reliance(records, split="all")
    assert (relies.n, relies.accuracy.value, relies.exact.value) == (2, 0.5, 0)


def test_a_detector_of_ones_own_is_measured_too():
    def always(record, hint):
        return Mention(True, True)

    records = [trace(i, i < 3, False) for i in range(10)]
    found = quality(records, "always", split="all", detectors={"always": always})
    assert (found.precision.value, found.recall.value) == (0.3, 1)


# The package's own set.


def test_the_own_set_is_large_and_diverse():
    assert len(OWN) >= 240
    labels = [label_of(r) for r in OWN]
    assert 80 <= sum(label.mentions for label in labels) <= len(OWN) - 80
    assert set(Counter(label.relies for label in labels)) == {
        "decisive", "partial", "rejected", "check_only", "none"
    }  # fmt: skip
    families = {r.hint_id.split("_")[0] for r in OWN}
    assert families >= {"seed", "authority", "opinion", "consistency", "visual", "metadata",
                        "grader", "illicit", "leaked", "argument"}  # fmt: skip
    assert sum(r.n_choices is not None for r in OWN) >= 40
    assert sum(label.case.startswith("trap_") for label in labels) >= 40
    assert sum(r.arm != "hint" for r in OWN) >= 30
    assert sum("model" in label.case for label in labels) >= 60
    assert {r.hint_sign for r in OWN} == {"wrong", "correct", None}
    texts = [(r.question, r.hint_id, r.reasoning, r.final) for r in OWN if r.arm == "hint"]
    assert len(set(texts)) >= 0.97 * len(texts)


def test_the_own_set_keeps_to_the_rule():
    for record in OWN:
        label = label_of(record)
        # Nothing was given in the other arms, so nothing can be mentioned or relied on.
        if record.arm != "hint":
            assert (label.mentions, label.relies) == (False, "none"), record.qid
            assert label.target, record.qid
        if not label.mentions:
            assert label.relies == "none", record.qid
        if label.relies in ("decisive", "partial"):
            assert record.answer == record.hint_target, record.qid


def test_half_of_the_own_set_is_for_tuning_and_half_for_the_report():
    splits = Counter(split_of(r.qid) for r in OWN)
    assert set(splits) == {"dev", "test"}
    assert min(splits.values()) > 0.4 * len(OWN)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_lexicon_does_far_better_than_the_seeds_words(split):
    lexicon, regex = (quality(OWN, n, split=split) for n in ("lexicon", "regex"))
    assert lexicon.f1.lo > regex.f1.hi
    assert lexicon.precision.value > 0.8
    assert lexicon.recall.value > 0.6


# The command.


def test_the_command_prints_a_row_a_detector(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["--split", "all", "--errors", "--cases"]) == 0
    out = capsys.readouterr().out
    assert f"split all: {len(OWN)} traces" in out
    assert "│ regex " in out
    assert "│ lexicon " in out
    assert "trap_question_word" in out
    wrong = quality(OWN, "lexicon", split="all").wrong
    assert out.count("\nlexicon: ") == len(wrong)


def test_json_holds_what_the_table_shows(capsys):
    assert main(["--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    found = quality(OWN, "lexicon")
    assert out["split"] == "test"
    assert out["detectors"]["lexicon"]["precision"]["value"] == found.precision.value
    assert set(out["detectors"]) == {"regex", "lexicon"}
    assert out["reliance"]["n"] == 0


def test_one_family_alone(capsys):
    assert main(["--json", "--split", "all", "--family", "seed"]) == 0
    n = json.loads(capsys.readouterr().out)["traces"]
    assert n == sum(r.hint_id.startswith("seed_") for r in OWN)
    with pytest.raises(RecordError, match="no trace of hint family 'wizard'"):
        main(["--family", "wizard"])


def test_a_file_without_labels_or_with_an_id_twice_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records([trace(0, True, True).model_copy(update={"label": None})], path)
    with pytest.raises(RecordError, match="t0 has no label"):
        main([str(path)])
    write_records([trace(0, True, True)] * 2, path)
    with pytest.raises(RecordError, match="'t0' comes twice"):
        main([str(path)])


# The page.

PAGE = (Path(__file__).parents[2] / "docs" / "detectors.md").read_text()


@pytest.mark.parametrize(
    ("split", "family", "name"),
    [(s, f, n) for s, f in (("test", ""), ("test", "seed_"), ("dev", "")) for n in DETECTORS],
)
def test_the_page_shows_what_the_command_prints(split, family, name):
    chosen = [r for r in OWN if r.hint_id.startswith(family)]
    found = quality(chosen, name, split=split)

    def cell(rate):
        return f"{rate.value:.2f} [{rate.lo:.2f}, {rate.hi:.2f}]".replace("0.", ".")

    rates = (found.precision, found.recall, found.f1, found.false_positive_rate)
    row = " | ".join(map(cell, rates)) + f" | {found.agreement.kappa:.2f}".replace("0.", ".")
    assert f"| `{name}` | {row} |" in PAGE


def test_the_pages_own_detector_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    (tmp_path / "my_detectors.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["--json", "--detector", "quotes=my_detectors:quotes_value"]) == 0
    found = json.loads(capsys.readouterr().out)["detectors"]["quotes"]
    assert found["counts"]["tp"] + found["counts"]["fn"] == 67


def test_the_page_counts_the_traces():
    own = sum(r.qid.startswith("own-") for r in OWN)
    traps = sum(label_of(r).case.startswith("trap_") for r in OWN)
    unhinted = sum(r.arm != "hint" for r in OWN)
    text = " ".join(PAGE.split())
    assert f"{len(OWN)} traces labelled by hand" in text
    assert f"{own} written for the purpose and {len(OWN) - own} of SmolLM2" in text
    assert f"{unhinted} in arms without an answer, {traps} traps" in text
