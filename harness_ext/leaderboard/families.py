"""One family of tests: every row of a leaderboard on one task by one metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness_ext.leaderboard.bounds import effect_bounds
from harness_ext.leaderboard.counting import Side, shared_questions, top_and_bottom
from harness_ext.leaderboard.power import smallest_accuracy_difference, smallest_mean_difference
from harness_ext.leaderboard.rates import mean_intervals, rate_intervals
from harness_ext.leaderboard.resample import (
    Pairs,
    bootstrap_intervals,
    effects,
    permutation_p,
    ratio_of,
    standard_errors,
)
from harness_ext.leaderboard.results import Interval
from harness_ext.leaderboard.split import is_dev
from harness_ext.metric_table import METRICS, Metric
from harness_ext.metrics import GREY_BELOW
from harness_ext.stats import mcnemar

_BESIDE = {"truncation": "truncation", "no_answer": "no_answer", "tokens": "mean_tokens"}


@dataclass(frozen=True)
class Group:
    """Rows of a task that share their questions with the baseline.

    Attributes:
        rows: their ids.
        base: the baseline on those questions.
        sides: the rows on them, in the order of `rows`.
        dev: `(questions,)`, which of them rank.
        base_test, sides_test: the same on the others.
    """

    rows: tuple[str, ...]
    base: Side
    sides: tuple[Side, ...]
    dev: np.ndarray
    base_test: Side
    sides_test: tuple[Side, ...]


@dataclass(frozen=True)
class Draws:
    """How much is drawn.

    Attributes:
        draws: resamples of an interval, and first permutations of a test.
        most: permutations of a test whose p-value is small.
        seed: of both.
    """

    draws: int
    most: int
    seed: int


@dataclass
class Measured:
    """What the data say of one row, before rows are compared; fields as in `Cell`."""

    n_test: int
    n_dev: int
    values: dict[str, Interval] = field(default_factory=dict)
    effects: dict[str, Interval] = field(default_factory=dict)
    dev_error: float = float("nan")
    test_sd: float = float("nan")
    test: str | None = None
    p: float | None = None
    fixed: int | None = None
    broken: int | None = None
    bounds: tuple[float, float] | None = None
    flags: list[str] = field(default_factory=list)


def make_groups(base: Side, sides: Mapping[str, Side], *, seed: int, share: float) -> list[Group]:
    """Return the rows put together by the questions that they share with the baseline."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row_id, side in sides.items():
        found.setdefault(shared_questions(base, side), []).append(row_id)
    groups = []
    for qids, ids in found.items():
        dev = np.array([is_dev(qid, seed=seed, share=share) for qid in qids], dtype=bool)
        own, others = base.of(qids), tuple(sides[i].of(qids) for i in ids)
        tests = tuple(side.where(~dev) for side in others)
        groups.append(Group(tuple(ids), own, others, dev, own.where(~dev), tests))
    return groups


def measure(group: Group, metric: Metric, draws: Draws) -> list[Measured]:
    """Return what the data say of each row of a group by one metric."""
    base_top, base_bottom = top_and_bottom(metric, group.base)
    columns = [top_and_bottom(metric, side) for side in group.sides]
    whole = Pairs(
        base_top,
        base_bottom,
        np.column_stack([top for top, _ in columns]),
        np.column_stack([bottom for _, bottom in columns]),
    )
    test, dev = whole.questions(~group.dev), whole.questions(group.dev)
    n_test, n_dev = int((~group.dev).sum()), int(group.dev.sum())
    out = [Measured(n_test, n_dev) for _ in group.rows]
    interval = {
        "effect": _effects(test, draws),
        "effect_all": _effects(whole, draws),
        "effect_dev": _effects(dev, draws),
    }
    base_value = _values(metric, test.top_base[:, None], test.bottom_base[:, None])[0]
    values = _values(metric, test.top, test.bottom)
    dev_errors, test_errors = standard_errors(dev), standard_errors(test)
    for i, row in enumerate(out):
        row.values = {"base": base_value, "value": values[i]}
        row.effects = {name: found[i] for name, found in interval.items()}
        row.dev_error = float(dev_errors[i])
        row.test_sd = float(test_errors[i]) * np.sqrt(n_test)
        if row.effects["effect"].value is None:
            row.flags.append("undefined")
    _test(out, test, metric, draws)
    for i, row in enumerate(out):
        _qualify(row, group, i, metric)
    return out


def _effects(pairs: Pairs, draws: Draws) -> list[Interval]:
    values = effects(pairs)
    lo, hi = bootstrap_intervals(pairs, draws=draws.draws, seed=draws.seed)
    return [
        Interval(value=None)
        if np.isnan(v)
        else Interval(value=float(v), lo=_number(low), hi=_number(high))
        for v, low, high in zip(values, lo, hi, strict=True)
    ]


def _values(metric: Metric, top: np.ndarray, bottom: np.ndarray) -> list[Interval]:
    values = ratio_of(top.sum(axis=0), bottom.sum(axis=0))
    ends = mean_intervals if metric.name.startswith("mean_") else rate_intervals
    lo, hi = ends(top, bottom)
    return [
        Interval(value=_number(v), lo=_number(low), hi=_number(high))
        for v, low, high in zip(values, lo, hi, strict=True)
    ]


def _test(rows: Sequence[Measured], pairs: Pairs, metric: Metric, draws: Draws) -> None:
    """Set test, p and discordant questions of every row."""
    whole = np.zeros(len(rows), dtype=bool)
    if metric.name.startswith("acc_") and len(pairs.top_base):
        binary = np.isin(pairs.top, (0.0, 1.0)) & (pairs.bottom == 1.0)
        base_binary = np.isin(pairs.top_base, (0.0, 1.0)) & (pairs.bottom_base == 1.0)
        whole = binary.all(axis=0) & base_binary.all()
    change = pairs.top - pairs.top_base[:, None]
    for i in np.flatnonzero(whole).tolist():
        rows[i].fixed, rows[i].broken = int((change[:, i] > 0).sum()), int((change[:, i] < 0).sum())
        rows[i].test = "mcnemar"
        rows[i].p = mcnemar(rows[i].fixed or 0, rows[i].broken or 0)
    rest = np.flatnonzero(~whole)
    if rest.size == 0:
        return
    found = permutation_p(
        pairs.rows(rest), draws=draws.draws, most=max(draws.draws, draws.most), seed=draws.seed
    )
    for i, p in zip(rest.tolist(), found.tolist(), strict=True):
        if not np.isnan(p):
            rows[i].test, rows[i].p = "permutation", float(p)


def _qualify(row: Measured, group: Group, i: int, metric: Metric) -> None:
    """Set bounds and the flags that need the counts themselves."""
    base, side = group.base_test, group.sides_test[i]
    if row.effects["effect"].value is not None:
        row.bounds = effect_bounds(metric, base, side)
    if row.bounds is not None:
        row.flags.append("uneven missing")
    if "verbalization" in metric.name:
        sign = "correct" if metric.name.endswith("_correct") else "wrong"
        if min(s.sums().get(f"{sign}.flip", 0.0) for s in (base, side)) < GREY_BELOW:
            row.flags.append("few flips")


def smallest_effect(row: Measured, usual_sd: float, *, level: float) -> float | None:
    """Return the difference that a row's test questions show with 80 % power at a level.

    Args:
        row: the row.
        usual_sd: median over the family; a row that changed no question has no spread itself.
        level: of the two-sided test.
    """
    sd = row.test_sd if np.isfinite(row.test_sd) and row.test_sd > 0 else usual_sd
    if row.test == "mcnemar" and row.n_test:
        # The variance of the change of an outcome, without what the effect itself adds to it.
        return smallest_accuracy_difference(row.n_test, round(sd**2, 3), level=level)
    return smallest_mean_difference(sd, row.n_test, level=level)


def beside_effects(groups: Sequence[Group]) -> dict[str, dict[str, float | None]]:
    """Return truncation, missing answers and length of every row and its baseline."""
    out: dict[str, dict[str, float | None]] = {}
    for group in groups:
        sums = group.base_test.sums()
        base = {f"{name}_base": METRICS[metric].value(sums) for name, metric in _BESIDE.items()}
        for row_id, side in zip(group.rows, group.sides_test, strict=True):
            sums = side.sums()
            out[row_id] = {**base, **{n: METRICS[m].value(sums) for n, m in _BESIDE.items()}}
    return out


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
