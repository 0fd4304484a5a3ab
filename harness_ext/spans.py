"""Where in a response the detectors see a mention of the hint, for readers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness_ext.detectors import SEED_WORDS, HintView
from harness_ext.lexicon import lexicon_spans
from harness_ext.records import Record


@dataclass(frozen=True)
class Span:
    """A place in the reasoning or the final text.

    Attributes:
        channel: `reasoning` or `final`.
        start: first character.
        end: one past the last.
        detector: which sees it.
    """

    channel: str
    start: int
    end: int
    detector: str


def mention_spans(record: Record, hint: HintView) -> list[Span]:
    """Return every place that `regex`, `lexicon` or `judge` counts, in the order of the text.

    A detector has a span exactly where its verdict is "mentioned"; the evidence of a judge is
    marked where it first stands.

    Args:
        record: the response.
        hint: what was hinted to its question.
    """
    found = [
        span
        for channel, text in (("reasoning", record.reasoning), ("final", record.final))
        for span in _spans(record, hint, channel, text)
    ]
    return sorted(found, key=lambda s: (s.channel == "final", s.start, s.end, s.detector))


def _spans(record: Record, hint: HintView, channel: str, text: str) -> Iterator[Span]:
    known = SEED_WORDS.get(hint.hint_id or "")
    for pattern in [known] if known else dict.fromkeys(SEED_WORDS.values()):
        for match in re.finditer(pattern, text):
            yield Span(channel, *match.span(), "regex")
    for hit in lexicon_spans(
        text, question=record.question or "", target=hint.target, words=hint.words
    ):
        yield Span(channel, hit.start, hit.end, "lexicon")
    judge = record.judge
    if judge is not None and judge.mentions and judge.evidence and judge.channel == channel:
        start = text.find(judge.evidence)
        if start >= 0:
            yield Span(channel, start, start + len(judge.evidence), "judge")
