"""Ready-made pairs of text sets to contrast features over."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness_ext.asked import Asked, read_asked
from harness_ext.backtracking import balance, find_sentences, load_phrases, sentence_spans
from harness_ext.corpora import DATA_ENV, load_corpus
from harness_ext.counts import exclusion
from harness_ext.detectors import REGISTRY, HintView
from harness_ext.errors import DataError, RecordError
from harness_ext.prompts import instruction, with_options
from harness_ext.spans import mention_spans
from harness_ext.verifier import same_answer
from interventions.features.aggregate import Aggregate
from interventions.features.passages import THINK_END, Example, Part, Span
from interventions.text.config import TextSource
from interventions.text.records import records

NQ_FILE = "nq_open_dev_1000.jsonl"
NQ_HUB = "google-research-datasets/nq_open"


@dataclass(frozen=True)
class Sets:
    """Two sets of examples.

    Attributes:
        base, exp: the sets.
        about: plain data on where they came from, and counts.
        part: which part of the examples is meant to count.
        aggregate: over its tokens.
        notes: what a reader must know.
    """

    base: Sequence[Example]
    exp: Sequence[Example]
    about: Mapping[str, Any]
    part: Part
    aggregate: Aggregate = "mean"
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Choices:
    """What a ready-made contrast may be told.

    Attributes:
        limit: texts of a set at most; None for all there are.
        runs: files or folders of a run, for contrasts of responses.
        benchmark: whose questions are asked.
        detector: that says which responses own up to the hint.
        signs: of the hints.
        mentions: what does not count where a response names the hint: the `words` that name it, the
            `sentence` they stand in, or nothing (`keep`).
        before: look at the sentence before, not at that of the phrase.
        phrases: file of phrases, the package's own by default.
        style: prompt style of the run, for files that hold no prompts.
        seed: of what is drawn.
    """

    limit: int | None = None
    runs: Sequence[Path] = ()
    benchmark: str = "aqua"
    detector: str = "lexicon"
    signs: Sequence[str] = ("correct", "wrong")
    mentions: Literal["words", "sentence", "keep"] = "words"
    before: bool = False
    phrases: Path | None = None
    style: str = "boxed"
    seed: int = 0


def aqua_vs_trivia(choices: Choices) -> Sets:
    """Return AQuA's questions, without options, against plain questions of NQ-open.

    Raises:
        DataNotFoundError: the questions are neither in the data folder nor on the hub.
        TextError: NQ-open cannot be read.
    """
    corpus = load_corpus("aqua")
    limit = choices.limit or len(corpus.rows)
    folder = os.environ.get(DATA_ENV)
    local = Path(folder).expanduser() / NQ_FILE if folder else None
    where: dict[str, Any] = {"dataset": NQ_HUB, "split": "validation"}
    if local is not None and local.is_file():
        where = {"path": str(local)}
    found = records(TextSource(text="question", limit=limit, **where))
    base = [Example(group=f"nq-{i}", prompt=str(row["question"])) for i, row in enumerate(found)]
    exp = [Example(group=row["qid"], prompt=row["question"]) for row in corpus.rows[:limit]]
    about = {"exp": corpus.source, "base": where.get("path", NQ_HUB)}
    return Sets(base, exp, about, part="prompt")


def cot_vs_plain(choices: Choices) -> Sets:
    """Return questions after the request to reason step by step, against the same without it.

    The request stands before the question and only the question's own tokens count, so that the
    same tokens are compared: the features are what the request changes, not its words.

    Raises:
        DataNotFoundError: the questions are neither in the data folder nor on the hub.
    """
    corpus = load_corpus(choices.benchmark)
    base, exp = [], []
    for row in corpus.rows[: choices.limit]:
        question = with_options(row["question"], row["choices"])
        request = instruction("boxed", options=row["choices"])
        start = len(request) + 2
        base.append(Example(group=row["qid"], prompt=question))
        asked = f"{request}\n\n{question}"
        exp.append(Example(group=row["qid"], prompt=asked, prompt_spans=((start, len(asked)),)))
    return Sets(base, exp, {"questions": corpus.source}, part="prompt")


def faithful_vs_unfaithful(choices: Choices) -> Sets:
    """Return responses that followed the hint and say so, against those that do not say so.

    A response counts whose question is eligible (see docs/rescore.md) and whose answer is the
    hinted one. The words by which it names the hint do not count: otherwise the features found
    would be those of the word "professor". `mentions="sentence"` leaves out more, where responses
    are long.

    Raises:
        RecordError: a file of the run cannot be read, or no response followed a hint.
        DataError: there is no such detector.
    """
    if choices.detector not in REGISTRY:
        raise DataError(f"unknown detector '{choices.detector}'; use {', '.join(REGISTRY)}")
    detect = REGISTRY[choices.detector]
    asked = read_asked(_runs(choices), style=choices.style)
    none = {_arm_key(a): a.record for a in asked if a.record.arm == "none"}
    sets: dict[bool, list[Example]] = {True: [], False: []}
    counts = dict.fromkeys(("hinted", "eligible", "followed", "without_verdict"), 0)
    for one in asked:
        record = one.record
        if record.arm != "hint" or record.hint_sign not in choices.signs:
            continue
        counts["hinted"] += 1
        if exclusion(none.get(_arm_key(one)), record) is not None:
            continue
        counts["eligible"] += 1
        if not same_answer(record.hint_target, record.answer):
            continue
        counts["followed"] += 1
        mention = detect(record, HintView.of(record))
        if mention is None or mention.excluded:
            counts["without_verdict"] += 1
            continue
        hidden = _mentions(one, choices.mentions)
        sets[mention.found].append(one.example(hidden=hidden))
    if not counts["followed"]:
        raise RecordError(
            f"none of {counts['hinted']} hinted responses followed its hint ({counts['eligible']}"
            f" eligible); give a run of a _hint task with more questions"
        )
    about = {
        "runs": [str(path) for path in choices.runs],
        "detector": choices.detector,
        "signs": list(choices.signs),
        "mentions": choices.mentions,
        **counts,
        "said_so": len(sets[True]),
        "did_not": len(sets[False]),
    }
    return _limited(Sets(sets[False], sets[True], about, "response", notes=_notes(asked)), choices)


def backtracking_vs_not(choices: Choices) -> Sets:
    """Return sentences in which the model backtracks, against like sentences of the same questions.

    The whole response is read and the tokens of the sentence count; with `before` those of the
    sentence in front of it, where features stand that lead to backtracking.

    Raises:
        RecordError: a file of the run cannot be read.
        DataError: no response holds a phrase of backtracking.
    """
    asked = read_asked(_runs(choices), style=choices.style)
    at = {id(one.record): one for one in asked}
    phrases = load_phrases(choices.phrases)
    sentences = find_sentences([one.record for one in asked], phrases)
    found = balance(sentences, seed=choices.seed, limit=choices.limit)
    base, exp = [], []
    for positive, negative in found.pairs:
        spans = []
        for sentence in (positive, negative):
            text = getattr(sentence.record, sentence.channel)
            span: Span | None = (sentence.start, sentence.end)
            if choices.before:
                earlier = [s for s in sentence_spans(text) if s[1] <= sentence.start]
                span = earlier[-1] if earlier else None
            shift = 0
            if sentence.channel == "final" and sentence.record.reasoning:
                shift = len(sentence.record.reasoning) + len(THINK_END)
            spans.append(None if span is None else (span[0] + shift, span[1] + shift))
        if spans[0] is None or spans[1] is None:
            continue  # a first sentence has none before it
        exp.append(at[id(positive.record)].example(response_spans=(spans[0],)))
        base.append(at[id(negative.record)].example(response_spans=(spans[1],)))
    about = {
        "runs": [str(path) for path in choices.runs],
        "phrases": found.phrases,
        "unmatched": found.unmatched,
        "before": choices.before,
    }
    return Sets(base, exp, about, part="response", notes=_notes(asked))


CONTRASTS: dict[str, Callable[[Choices], Sets]] = {
    "aqua-vs-trivia": aqua_vs_trivia,
    "cot-vs-plain": cot_vs_plain,
    "faithful-vs-unfaithful": faithful_vs_unfaithful,
    "backtracking-vs-not": backtracking_vs_not,
}
"""By name. `fixed-vs-needed` needs the model and is made in `fixed_answers`."""


def _runs(choices: Choices) -> Sequence[Path]:
    if not choices.runs:
        raise RecordError("no run given; name a samples file, a records file or a folder")
    return choices.runs


def _arm_key(one: Asked) -> tuple[str, int, str]:
    return one.group, one.record.sample, one.record.intervention


def _mentions(one: Asked, what: str) -> tuple[Span, ...]:
    """Return where the response names the hint, by any detector: the words or their sentences."""
    if what == "keep":
        return ()
    record, hidden = one.record, []
    for span in mention_spans(record, HintView.of(record)):
        text = getattr(record, span.channel)
        shift = 0
        if span.channel == "final" and record.reasoning:
            shift = len(record.reasoning) + len(THINK_END)
        if what == "words":
            hidden.append((span.start + shift, span.end + shift))
            continue
        for start, end in sentence_spans(text):
            if start < span.end and span.start < end:
                hidden.append((start + shift, end + shift))
    return tuple(dict.fromkeys(hidden))


def _limited(sets: Sets, choices: Choices) -> Sets:
    n = choices.limit
    return Sets(
        sets.base[:n], sets.exp[:n], sets.about, sets.part, sets.aggregate, tuple(sets.notes)
    )


def _notes(asked: Sequence[Asked]) -> list[str]:
    rebuilt = sum(not one.raw for one in asked)
    if not rebuilt:
        return []
    return [
        f"the prompts of {rebuilt} responses were put together from their records; samples files"
        f" (lm_eval --log_samples) hold them word for word"
    ]
