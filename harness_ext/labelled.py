"""Responses labelled by hand, and how well each detector finds the labels.

The set is one record a line with a `label`, by the rule in docs/detectors.md. A trace belongs to
the split `dev` or `test` by the hash of its id. The lexicon was tuned on `dev` alone; what is
reported is `test`.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from harness_ext.agreement import Agreement, agreement
from harness_ext.detectors import REGISTRY, Detector, HintView
from harness_ext.errors import RecordError
from harness_ext.paths import data_dir
from harness_ext.records import Label, Record, read_records
from harness_ext.stats import wilson

Split = Literal["dev", "test", "all"]
SPLITS: tuple[Split, ...] = ("dev", "test", "all")
DRAWS = 4000


@dataclass(frozen=True)
class Rate:
    """A share of counts with its interval; None where it is undefined."""

    value: float | None
    lo: float | None
    hi: float | None
    n: int


@dataclass(frozen=True)
class Quality:
    """How a detector does against the labels of a split.

    Attributes:
        detector: its name.
        split: `dev`, `test` or `all`.
        counts: of true and false, positive and negative verdicts.
        no_verdict: traces on which it was not asked or gave no usable verdict; they are in no
            other number.
        precision: with the Wilson interval.
        recall: with the Wilson interval.
        f1: with the percentile interval of a bootstrap over traces.
        false_positive_rate: on the arms without an answer, with the Wilson interval.
        agreement: with the labels.
        wrong: `(trace id, case)` of every wrong verdict.
    """

    detector: str
    split: Split
    counts: dict[str, int]
    no_verdict: int
    precision: Rate
    recall: Rate
    f1: Rate
    false_positive_rate: Rate
    agreement: Agreement
    wrong: tuple[tuple[str, str], ...]


def split_of(trace_id: str) -> Split:
    """Return the split of a trace: `dev` or `test`, half each by the hash of its id."""
    return "dev" if hashlib.sha256(trace_id.encode()).digest()[0] % 2 else "test"


def load_labelled(path: Path | None = None) -> list[Record]:
    """Return the labelled records of a file, by default the package's own set.

    Raises:
        RecordError: The file is missing or broken, a record has no label, or an id comes twice.
    """
    path = path or data_dir() / "labelled_traces.jsonl"
    records = read_records(path)
    seen: set[str] = set()
    for record in records:
        if record.label is None:
            raise RecordError(f"{path}: {record.qid} has no label; docs/detectors.md has the rule")
        if record.qid in seen:
            raise RecordError(f"{path}: id {record.qid!r} comes twice; ids must be unique")
        seen.add(record.qid)
    return records


def label_of(record: Record) -> Label:
    """Return the label of a record.

    Raises:
        RecordError: It has none.
    """
    if record.label is None:
        raise RecordError(f"{record.qid} has no label")
    return record.label


def verdicts(records: Iterable[Record], detector: Detector) -> dict[str, bool | None]:
    """Return whether a detector fires, by trace id; None where it gave no usable verdict."""
    out: dict[str, bool | None] = {}
    for record in records:
        view = HintView.of(record)
        if record.arm != "hint":
            view = HintView(record.hint_id, label_of(record).target, None, record.hint_words)
        mention = detector(record, view)
        out[record.qid] = None if mention is None or mention.excluded else mention.found
    return out


def quality(
    records: Sequence[Record],
    name: str,
    *,
    split: Split = "test",
    detectors: Mapping[str, Detector] = REGISTRY,
    draws: int = DRAWS,
    seed: int = 0,
) -> Quality:
    """Return how well a detector finds the label `mentions`.

    Args:
        records: labelled, with unique ids.
        name: key of `detectors`.
        split: which of them.
        detectors: by name.
        draws: bootstrap resamples of the traces, for the interval of F1.
        seed: of the resampling.

    Raises:
        RecordError: A record has no label.
    """
    chosen = [r for r in records if split in ("all", split_of(r.qid))]
    said = verdicts(chosen, detectors[name])
    known = [r for r in chosen if said[r.qid] is not None]
    truth = np.array([label_of(r).mentions for r in known], dtype=bool)
    found = np.array([bool(said[r.qid]) for r in known], dtype=bool)
    tp, fp = int((found & truth).sum()), int((found & ~truth).sum())
    fn, tn = int((~found & truth).sum()), int((~found & ~truth).sum())
    unhinted = [r for r in known if r.arm != "hint"]
    return Quality(
        detector=name,
        split=split,
        counts={"tp": tp, "fp": fp, "fn": fn, "tn": tn},
        no_verdict=len(chosen) - len(known),
        precision=_rate(tp, tp + fp),
        recall=_rate(tp, tp + fn),
        f1=_f1(found, truth, draws, seed),
        false_positive_rate=_rate(sum(bool(said[r.qid]) for r in unhinted), len(unhinted)),
        agreement=agreement(tp, fp, fn, tn),
        wrong=tuple(
            (r.qid, label_of(r).case) for r in known if bool(said[r.qid]) != label_of(r).mentions
        ),
    )


def _rate(successes: int, n: int) -> Rate:
    interval = wilson(successes, n)
    if interval is None:
        return Rate(None, None, None, 0)
    return Rate(successes / n, *interval, n)


def _f1(found: np.ndarray, truth: np.ndarray, draws: int, seed: int) -> Rate:
    n = len(found)
    cells = np.stack([found & truth, found & ~truth, ~found & truth], axis=1).astype(float)
    value = _f1_of(cells.sum(axis=0)[None])[0] if n else np.nan
    if np.isnan(value):
        return Rate(None, None, None, n)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    drawn = _f1_of(weights @ cells)
    lo, hi = np.nanquantile(drawn, [0.025, 0.975])
    return Rate(float(value), float(lo), float(hi), n)


def _f1_of(sums: np.ndarray) -> np.ndarray:
    below = 2 * sums[:, 0] + sums[:, 1] + sums[:, 2]
    return np.where(below > 0, 2 * sums[:, 0] / np.where(below > 0, below, 1), np.nan)


@dataclass(frozen=True)
class Reliance:
    """How the judge's `relies` (decisive or partial, against the rest) does against the labels."""

    split: Split
    n: int
    accuracy: Rate
    exact: Rate


def reliance(records: Sequence[Record], *, split: Split = "test") -> Reliance:
    """Return how often the judge agrees on reliance: as yes or no, and on all five values.

    Raises:
        RecordError: A record has no label.
    """
    pairs = [
        (label_of(r), r.judge)
        for r in records
        if split in ("all", split_of(r.qid)) and r.judge is not None and r.judge.relies is not None
    ]
    same = sum(label.dependent == judge.dependent for label, judge in pairs)
    exact = sum(label.relies == judge.relies for label, judge in pairs)
    return Reliance(split, len(pairs), _rate(same, len(pairs)), _rate(exact, len(pairs)))


def by_case(records: Sequence[Record], said: Mapping[str, bool | None]) -> dict[str, list[int]]:
    """Return `[right, total]` of a detector's verdicts for each kind of trace, sorted by name."""
    out: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for record in records:
        if said[record.qid] is not None:
            label = label_of(record)
            out[label.case][0] += said[record.qid] == label.mentions
            out[label.case][1] += 1
    return dict(sorted(out.items()))
