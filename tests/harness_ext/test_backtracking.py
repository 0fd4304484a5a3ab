"""Which sentences backtrack, and what their negatives are."""

import json

import pytest

from harness_ext.backtracking import balance, find_sentences, load_phrases, sentence_spans
from harness_ext.errors import DataError
from harness_ext.records import Record

BACK = [
    "Wait, that gives 12 and not 14.",
    "Hmm, wait. The sum was 9 all along.",
    "But hold on, the train left at noon.",
    "Actually, the rate is 5 per hour.",
    "I made a mistake in the second step.",
    "That's not right, since 4 is even.",
    "That can't be right for a prime.",
    "Let me re-check the second line.",
    "So let me double-check the product.",
    "On second thought, x is negative.",
    "I misread the question at first.",
    "No, the answer must be smaller.",
]
NOT = [
    "We wait for 5 minutes in total.",
    "They hold on to the rope for long.",
    "The waiting time is 3 hours each.",
    "This was actually sold for 9 dollars.",
    "No two of these numbers are equal.",
    "The mistake rate of the machine is 2.",
    "The check is for 40 dollars in all.",
    "He was right about the second one.",
]


def record(qid, reasoning="", final="", **more):
    return Record(
        task="t", qid=qid, arm="none", gold="1", status="no_answer", correct=False,
        reasoning=reasoning, final=final, **more,
    )  # fmt: skip


@pytest.mark.parametrize("sentence", BACK)
def test_backtracking_is_seen(sentence):
    assert load_phrases().find(sentence)


@pytest.mark.parametrize("sentence", NOT)
def test_other_uses_of_the_words_are_not(sentence):
    assert load_phrases().find(sentence) is None


def test_sentences_are_cut_at_ends_and_lines_and_not_in_numbers():
    text = "The rate is 2.5 per hour. Wait, no!  Then (it is 3).\n\n- A line\nThe end"
    assert [text[a:b] for a, b in sentence_spans(text)] == [
        "The rate is 2.5 per hour.", "Wait, no!", "Then (it is 3).", "- A line", "The end",
    ]  # fmt: skip
    assert sentence_spans("  ") == []


def responses():
    return [
        record(
            f"q{i}",
            reasoning=f"We add {i} and 4 to get a sum. Wait, that gives {i} and not 14 at all. "
            f"The rate is then {i} per hour. Actually, the rate is {i + 1} per hour.",
            final="So it is 7 in the end, as it was said before that. Yes.",
        )
        for i in range(5)
    ]


def test_each_positive_has_a_negative_of_its_question_and_of_like_length():
    found = balance(find_sentences(responses(), load_phrases()))
    assert len(found.pairs) == 10
    for positive, negative in found.pairs:
        assert positive.group == negative.group
        assert 1 / 1.6 <= len(negative.text) / len(positive.text) <= 1.6
        assert load_phrases().find(negative.text) is None
    texts = [negative.text + negative.group for _, negative in found.pairs]
    assert len(set(texts)) == len(texts)
    assert found.phrases == {"wait": 5, "actually": 5}


def test_rows_are_balanced_and_say_where_they_came_from():
    rows = balance(find_sentences(responses(), load_phrases()), per_question=1, limit=3).rows()
    assert [row["label"] for row in rows] == [1, 0] * 3
    whole = {r.qid: r for r in responses()}
    for row in rows:
        json.dumps(row)
        text = getattr(whole[row["qid"]], row["channel"])
        assert text[row["start"] : row["end"]] == row["text"]


def test_the_seed_alone_decides():
    sentences = find_sentences(responses(), load_phrases())
    assert balance(sentences, seed=3).rows() == balance(sentences, seed=3).rows()
    assert balance(sentences, seed=3).rows() != balance(sentences, seed=4).rows()
    assert balance(sentences, per_question=1).over == 5


def test_positives_without_a_mate_are_counted_or_refused():
    lonely = [record("a", final="Wait, this is all there is to say here."), *responses()]
    assert balance(find_sentences(lonely, load_phrases())).unmatched == 1
    with pytest.raises(DataError, match="none of 1 sentences with a phrase has one without"):
        balance(find_sentences(lonely[:1], load_phrases()))
    with pytest.raises(DataError, match="none of 1 sentences holds a phrase"):
        balance(find_sentences([record("a", final="There is nothing here.")], load_phrases()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read as YAML"),
        ("{version: 1, phrases: []}", "no phrases"),
        ("{version: 1, phrases: [{name: a, pattern: '('}]}", "no regular expression"),
        ("{version: 1, phrases: [{name: a, pattern: b, color: c}]}", "color"),
        # Right alone, and wrong in the middle of a pattern.
        ("{version: 1, phrases: [{name: a, pattern: '(?i)wait'}]}", "no regular expression"),
        ("{version: 1, phrases: [{name: a, pattern: '(?P<phrase>no)'}]}", "no regular expression"),
        ("{version: 1, phrases: [{name: a, pattern: '(no) \\1'}]}", "no regular expression"),
    ],
)
def test_a_broken_phrase_file_is_refused(content, message, tmp_path):
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        load_phrases(tmp_path / "p.yaml")
