import json

import pytest

from harness_ext.errors import RecordError
from harness_ext.records import (
    Record,
    base_answers,
    pack,
    read_records,
    records_of_sample,
    write_records,
)

FIELDS = {
    "task": "steer_gsm8k_hint", "qid": "q1", "arm": "hint", "hint_id": "seed_source",
    "hint_sign": "wrong", "hint_target": "9", "gold": "7", "answer": "9", "status": "answered",
    "correct": False, "n_tokens": 12, "finish_reason": "stop", "reasoning": "let me see",
    "final": "The answer is 9.", "intervention": "none",
}  # fmt: skip


def test_a_line_of_the_published_schema_is_read_and_written_back(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(FIELDS) + "\n\n")
    (record,) = read_records(path)
    assert record.arm_name == "wrong"
    assert record.sample == 0
    assert write_records([record, record], tmp_path / "again.jsonl") == 2
    assert read_records(tmp_path / "again.jsonl") == [record, record]


def test_line_separators_within_a_response_do_not_end_a_line(tmp_path):
    record = Record(**FIELDS | {"final": "one\u2028two\u0085three\x0c. The answer is 9."})
    write_records([record], tmp_path / "records.jsonl")
    assert read_records(tmp_path / "records.jsonl") == [record]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"arm": "other"}, "arm"),
        ({"extra": 1}, "extra"),
        ({"status": "fine"}, "status"),
        ({"correct": None}, "correct"),
        ({"hint_sign": None}, "needs hint_sign"),
        ({"hint_target": None}, "needs hint_sign and hint_target"),
        ({"arm": "none"}, "must be null"),
        ({"answer": None}, "needs an answer"),
        ({"qid": None}, "qid"),
    ],
)
def test_a_line_that_breaks_the_schema_is_named(tmp_path, change, match):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(FIELDS) + "\n" + json.dumps({**FIELDS, **change}) + "\n")
    with pytest.raises(RecordError, match=match) as error:
        read_records(path)
    assert "records.jsonl:2:" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "match"), [("", "no records"), ("{", "not JSON"), ('{"filtered_resps": []}', "steer_")]
)
def test_files_that_hold_no_records_are_refused(tmp_path, text, match):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError, match=match):
        read_records(path)
    with pytest.raises(RecordError, match="cannot be read"):
        read_records(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("let me see</think>The answer is 9.", "lengths"),
        ("let me see The answer is 9.", "lengths"),
        ("Let me see. The answer is 9!", "texts"),
    ],
)
def test_texts_are_rebuilt_from_the_logged_response(text, key):
    record = Record.model_validate({**FIELDS, "sample": 1})
    packed = pack(record, text, request=2)
    assert key in packed
    sample = json.loads(
        json.dumps(
            {
                "doc": {"_diag": {"records": [packed]}},
                "resps": [["a", "b"], ["c", "d"], ["e", text]],
                "filtered_resps": [],
            }
        )
    )
    assert records_of_sample(sample) == [record]


def test_an_empty_final_text_is_rebuilt_as_empty():
    record = Record.model_validate(
        {**FIELDS, "final": "", "reasoning": "abc", "answer": None, "status": "truncated"}
    )
    sample = {"doc": {"_diag": {"records": [pack(record, "abc", 0)]}}, "resps": [["abc"]]}
    assert records_of_sample(sample) == [record]


def test_a_samples_line_whose_responses_are_missing_is_refused():
    packed = pack(Record.model_validate(FIELDS), "let me see The answer is 9.", 3)
    with pytest.raises(RecordError, match="does not fit resps"):
        records_of_sample({"doc": {"_diag": {"records": [packed]}}, "resps": [["a"]]})


def test_null_is_no_intervention_and_says_so():
    assert Record.model_validate({**FIELDS, "intervention": None}).intervention == "none"


def test_the_first_answer_without_a_hint_of_each_question():
    rows = [
        {**FIELDS, "arm": "none", "hint_id": None, "hint_sign": None, "hint_target": None,
         "qid": qid, "sample": sample, "answer": answer,
         "status": "answered" if answer else "no_answer"}
        for qid, sample, answer in (("a", 1, "4"), ("a", 0, "3"), ("b", 0, None))
    ]  # fmt: skip
    records = [Record.model_validate(row) for row in [*rows, FIELDS]]
    assert base_answers(records) == {"a": "3"}
