"""What several samples of a question say together: votes, and which k are reported."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness_ext.records import Record
from harness_ext.stats import Estimate, pass_at_k, ratio
from harness_ext.verifier import same_answer


@dataclass(frozen=True)
class Repeated:
    """pass@k and maj@k over questions, by k, with standard errors over questions."""

    pass_at: dict[int, Estimate]
    maj_at: dict[int, Estimate]


def default_ks(n: int) -> tuple[int, ...]:
    """Return the k that are reported for n samples: 2, 4, 8, ... and n; none for one sample."""
    if n < 2:
        return ()
    powers = [2**i for i in range(1, n.bit_length()) if 2**i < n]
    return (*powers, n)


def over_questions(
    questions: Iterable[Sequence[Record]], ks: Sequence[int] | None = None
) -> Repeated | None:
    """Return what several samples a question say, None where some question has only one.

    Args:
        questions: the samples of each question, of one arm.
        ks: by default 1, 2, 4, 8, ... and the smallest number of samples of a question; one that
            is larger than that is undefined.
    """
    groups = list(questions)
    n = min(map(len, groups), default=0)
    if n < 2:
        return None
    ks = (1, *default_ks(n)) if ks is None else ks
    majorities = [maj_at_ks(records, ks) for records in groups]
    right = [sum(record.correct for record in records) for records in groups]
    passed = {k: [pass_at_k(len(g), c, k) for g, c in zip(groups, right, strict=True)] for k in ks}
    return Repeated(
        {k: _mean(values) for k, values in passed.items()},
        {k: _mean([values[k] for values in majorities]) for k in ks},
    )


def _mean(values: Sequence[float | None]) -> Estimate:
    known = [(value, 1.0) for value in values if value is not None]
    return ratio(known) if len(known) == len(values) else Estimate(None, None)


def maj_at_ks(records: Sequence[Record], ks: Sequence[int]) -> dict[int, float | None]:
    """Return maj@k of one question for each k; see `maj_at_k`.

    Args:
        records: its samples.
        ks: numbers of voters.
    """
    n = len(records)
    if not any(record.correct for record in records):
        # Comparing wrong answers with each other can take seconds, and cannot change a 0.
        return {k: 0.0 if 1 <= k <= n else None for k in ks}
    right, others = vote_counts(records)
    return {k: maj_at_k(n, right, others, k) for k in ks}


def vote_counts(records: Sequence[Record]) -> tuple[int, tuple[int, ...]]:
    """Return the votes for the right answer, and those for each other answer, largest first.

    Right samples are one answer. The others are put together by `same_answer`, in the order of
    their text, so that the order of the samples does not matter. A sample without an answer
    (none found, or cut) does not vote.

    Args:
        records: the samples of one question.
    """
    right = sum(record.correct for record in records)
    wrong: dict[str, int] = {}
    for record in records:
        if not record.correct and record.answer is not None:
            wrong[record.answer] = wrong.get(record.answer, 0) + 1
    classes: dict[str, int] = {}
    for answer in sorted(wrong):
        first = next((known for known in classes if same_answer(known, answer)), answer)
        classes[first] = classes.get(first, 0) + wrong[answer]
    return right, tuple(sorted(classes.values(), reverse=True))


def maj_at_k(n: int, right: int, others: Sequence[int], k: int) -> float | None:
    """Return the chance that the majority of k of n samples is right; None where n < k.

    The mean over all C(n, k) choices of k samples, ties counted as their expected value (one of
    t tied answers wins with 1/t), so it depends neither on the order of the samples nor on dice.

    Args:
        n: samples, those without an answer included (they do not vote).
        right: samples with the right answer.
        others: samples with each other answer.
        k: number of voters.
    """
    if k < 1 or n < k:
        return None
    silent = n - right - sum(others)
    total = 0.0
    for votes in range(1, min(right, k) + 1):
        # ways[s][t]: choices of s other samples in which t other answers have `votes` votes too.
        ways = {(0, 0): 1}
        for count in others:
            step: dict[tuple[int, int], int] = {}
            for (s, t), w in ways.items():
                for x in range(min(count, votes, k - votes - s) + 1):
                    key = (s + x, t + (x == votes))
                    step[key] = step.get(key, 0) + w * math.comb(count, x)
            ways = step
        for (s, t), w in ways.items():
            rest = k - votes - s
            if rest <= silent:
                total += math.comb(right, votes) * w * math.comb(silent, rest) / (t + 1)
    return total / math.comb(n, k)
