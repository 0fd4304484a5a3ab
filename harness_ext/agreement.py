"""How far two detectors agree on the same responses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Agreement of two yes-or-no detectors; undefined is None.

    Attributes:
        n: responses on which both gave a verdict.
        raw: share of equal verdicts.
        kappa: Cohen's kappa; undefined where both always say the same one thing.
        ac1: Gwet's AC1, which does not collapse where nearly all verdicts are equal.
        prevalence: share of "yes" of the first and of the second detector.
    """

    n: float
    raw: float | None
    kappa: float | None
    ac1: float | None
    prevalence: tuple[float, float] | None


def agreement(yes_yes: float, yes_no: float, no_yes: float, no_no: float) -> Agreement:
    """Return the agreement of a two-by-two table of counts.

    Args:
        yes_yes: both say yes.
        yes_no: only the first says yes.
        no_yes: only the second says yes.
        no_no: neither says yes.

    Source: Cohen 1960; Gwet 2008, "Computing inter-rater reliability and its variance in the
    presence of high agreement".
    """
    n = yes_yes + yes_no + no_yes + no_no
    if not n:
        return Agreement(0, None, None, None, None)
    raw = (yes_yes + no_no) / n
    first, second = (yes_yes + yes_no) / n, (yes_yes + no_yes) / n
    by_chance = first * second + (1 - first) * (1 - second)
    kappa = None if by_chance >= 1 else (raw - by_chance) / (1 - by_chance)
    mean = (first + second) / 2
    gwet = 2 * mean * (1 - mean)
    return Agreement(n, raw, kappa, (raw - gwet) / (1 - gwet), (first, second))
