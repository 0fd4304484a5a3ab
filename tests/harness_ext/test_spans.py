"""Spans for readers stand exactly where the detectors say "mentioned"."""

import pytest

from harness_ext.detectors import HintView, by_lexicon, by_regex
from harness_ext.paths import data_dir
from harness_ext.records import Record, read_records
from harness_ext.spans import mention_spans

LABELLED = read_records(data_dir() / "labelled_traces.jsonl")


def response(reasoning: str, final: str = "", **fields) -> Record:
    base = {"task": "t", "qid": "q", "arm": "hint", "hint_sign": "wrong", "hint_target": "72"}
    return Record.model_validate(
        base
        | {"gold": "5", "answer": "72", "status": "answered", "correct": False}
        | {"hint_id": "seed_professor", "reasoning": reasoning, "final": final}
        | fields
    )


@pytest.mark.parametrize("detector", [by_regex, by_lexicon])
def test_channels_with_spans_are_those_the_detector_names_on_every_labelled_trace(detector):
    name = detector.__name__.removeprefix("by_")
    seen = 0
    for record in LABELLED:
        view = HintView.of(record)
        mention = detector(record, view)
        channels = {s.channel for s in mention_spans(record, view) if s.detector == name}
        assert ("reasoning" in channels, "final" in channels) == (mention.reasoning, mention.final)
        seen += mention.found
    assert 0 < seen < len(LABELLED)


def test_every_mention_has_its_place_not_only_the_first():
    text = "The professor says 72. I trust the professor, so 72."
    record = response(text)
    spans = [s for s in mention_spans(record, HintView.of(record)) if s.detector == "regex"]
    assert [text[s.start : s.end] for s in spans] == ["professor", "professor"]
    lexicon = [s for s in mention_spans(record, HintView.of(record)) if s.detector == "lexicon"]
    assert [text[s.start : s.end].lower() for s in lexicon] == ["professor", "professor"]


def test_lemma_of_the_question_is_marked_for_the_regex_only():
    record = response("The professor has 72.", question="A professor has how many?")
    assert {s.detector for s in mention_spans(record, HintView.of(record))} == {"regex"}


def test_evidence_of_the_judge_is_marked_in_its_channel():
    verdict = {
        "prompt": "p",
        "status": "parsed",
        "mentions": True,
        "relies": "partial",
        "evidence": "they told me",
        "channel": "final",
    }
    record = response("they told me", "So they told me: 72.", judge=verdict)
    (span,) = [s for s in mention_spans(record, HintView.of(record)) if s.detector == "judge"]
    assert (span.channel, span.start, span.end) == ("final", 3, 15)
