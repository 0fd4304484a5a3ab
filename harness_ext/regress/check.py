"""The verdict: is the run worse than its baseline by more than the margins?"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from statsmodels.stats.multitest import multipletests

from harness_ext.errors import MetricError
from harness_ext.leaderboard.counting import (
    Side,
    check_ratio,
    keys_of,
    shared_questions,
    top_and_bottom,
)
from harness_ext.leaderboard.names import is_share
from harness_ext.leaderboard.resample import Pairs
from harness_ext.metric_table import Metric, get_metric
from harness_ext.regress.baseline import Baseline, TaskBaseline, side_of
from harness_ext.regress.comparable import Difference, differences, extra_questions
from harness_ext.regress.losses import Loss, measure_loss, visible_loss

DEFAULT_MARGINS: Mapping[str, float] = {
    "acc_none": 0.02,
    "silent_use_lexicon": 0.02,
    "truncation": 0.02,
    "no_answer": 0.02,
}
"""Accepted losses, in the metric's own unit (.02 of an accuracy is 2 points)."""

Rule = Literal["regression", "noninferiority"]
Outcome = Literal["passed", "regressed", "not comparable"]
Direction = Literal["lower", "higher", "either"]
EXIT: Mapping[Outcome, int] = {"passed": 0, "regressed": 1, "not comparable": 2}


class Settings(BaseModel):
    """How a run is checked.

    Attributes:
        margins: accepted loss by metric; for a metric without a good direction (such as
            `mean_tokens`) the accepted change either way.
        level: chance of a false alarm in the whole check (`regression`), or of passing a run that
            is worse by the margin in a metric (`noninferiority`).
        rule: `regression` fails a run that is proven worse than the margins; `noninferiority`
            fails one that is not proven to be within them.
        changed: aspects that differ on purpose.
        draws: swaps of the permutation test.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    margins: dict[str, float] = Field(default_factory=lambda: dict(DEFAULT_MARGINS))
    level: float = Field(default=0.05, gt=0, lt=0.5)
    rule: Rule = "regression"
    changed: tuple[str, ...] = ()
    draws: int = Field(default=4000, ge=200)


class Check(BaseModel):
    """One metric of one run on one task.

    Attributes:
        run, task, metric: which.
        margin: accepted loss; `direction` says whether `lower` or `higher` values are a loss, or
            `either`.
        n: questions on both sides.
        before, after: the metric on them; None where undefined.
        loss: how much worse; below 0 it is better.
        p: of the rule, before the correction; None where nothing can be tested.
        p_corrected: Holm's over all checks (`regression`); `p` itself (`noninferiority`).
        fixed, broken: discordant questions of an accuracy.
        visible: smallest loss that this check sees with 80 % power.
        test: how p was made.
        failed: whether this check fails the run.
        note: what a reader must know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    task: str
    metric: str
    margin: float
    direction: Direction
    n: int = 0
    before: float | None = None
    after: float | None = None
    loss: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    fixed: int | None = None
    broken: int | None = None
    visible: float | None = None
    test: str | None = None
    failed: bool = False
    note: str = ""


class Verdict(BaseModel):
    """What a check says.

    Attributes:
        outcome: `passed`, `regressed` or `not comparable`.
        checks: all that were made.
        differences: `(run, aspect, text)` of what keeps the two from being compared.
        left_out: what was not checked.
        noted: what differs and does not matter to the outcome: versions, backend.
        settings: how it was checked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcome: Outcome
    checks: tuple[Check, ...] = ()
    differences: tuple[tuple[str, str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    noted: tuple[str, ...] = ()
    settings: Settings

    @property
    def exit_code(self) -> int:
        """Return 0 for passed, 1 for regressed, 2 for not comparable."""
        return EXIT[self.outcome]


def check(baseline: Baseline, current: Baseline, settings: Settings | None = None) -> Verdict:
    """Return whether a run regressed against a baseline.

    Args:
        baseline: what was committed.
        current: the run, by `make_baseline` with the same metrics.
        settings: margins and rule.

    Raises:
        MetricError: a margin is of no use here; see `check_metrics`.
    """
    settings = settings or Settings()
    metrics = check_metrics(baseline, settings)
    found = differences(baseline, current, settings.changed)
    noted = tuple(_noted(baseline, current))
    left_out = tuple(extra_questions(baseline, current))
    if found:
        return Verdict(
            outcome="not comparable",
            differences=tuple((d.run, d.aspect, d.text) for d in found),
            left_out=left_out,
            noted=noted,
            settings=settings,
        )
    checks = []
    for name, before in baseline.runs.items():
        for task, old in before.tasks.items():
            new = current.runs[name].tasks.get(task)
            for metric in metrics.values():
                made = None if new is None else _check(name, task, metric, old, new, settings)
                if made is not None:
                    checks.append(made)
    checks = _decide(checks, settings)
    if not any(c.p is not None for c in checks):
        nothing = Difference(
            "all", "questions", f"none of {', '.join(metrics)} can be tested on these questions"
        )
        return Verdict(
            outcome="not comparable",
            checks=tuple(checks),
            differences=((nothing.run, nothing.aspect, nothing.text),),
            left_out=left_out,
            noted=noted,
            settings=settings,
        )
    return Verdict(
        outcome="regressed" if any(c.failed for c in checks) else "passed",
        checks=tuple(checks),
        left_out=left_out,
        noted=noted,
        settings=settings,
    )


def check_metrics(baseline: Baseline, settings: Settings) -> dict[str, Metric]:
    """Return the metrics of a check by name, once it is known that the baseline can be checked.

    Raises:
        MetricError: a margin names an unknown metric, or one that the baseline was not counted
            for, or is more than a share can lose.
    """
    metrics = {name: check_ratio(get_metric(name)) for name in settings.margins}
    for name, margin in settings.margins.items():
        if name not in baseline.metrics:
            raise MetricError(
                f"the baseline was not counted for '{name}', only for"
                f" {', '.join(baseline.metrics)}; make it again with `update --metric {name}`"
            )
        if is_share(name) and margin >= 1:
            raise MetricError(
                f"margin {margin:g} of {name} would pass any run: it is a share, and .02 stands"
                f" for 2 points"
            )
    return metrics


def _check(
    run: str, task: str, metric: Metric, old: TaskBaseline, new: TaskBaseline, settings: Settings
) -> Check | None:
    """Return one check, None for a metric that neither side has."""
    keys = keys_of([metric])
    before, after = side_of(old, keys), side_of(new, keys)
    shared = shared_questions(before, after)
    before, after = before.of(shared), after.of(shared)
    values = [metric.value(side.sums()) if shared else None for side in (before, after)]
    if values == [None, None]:
        return None
    margin = settings.margins[metric.name]
    better = metric.higher_is_better
    direction: Direction = "either" if better is None else "lower" if better else "higher"
    made = Check(
        run=run, task=task, metric=metric.name, margin=margin, direction=direction,
        n=len(shared), before=values[0], after=values[1],
    )  # fmt: skip
    pairs = _pairs(metric, before, after)
    both = [
        measure_loss(pairs, margin, higher_is_better=up, draws=settings.draws)
        for up in ((True, False) if better is None else (better,))
    ]
    losses = [loss for loss in both if loss is not None]
    if not losses:
        side = "baseline" if values[0] is None else "run"
        return made.model_copy(update={"note": f"undefined in the {side}: nothing to compare"})
    worst = max(losses, key=lambda loss: loss.loss)
    if settings.rule == "regression":
        p = min(1.0, len(losses) * min(loss.p_worse for loss in losses))
    else:
        p = max(loss.p_safe for loss in losses)
    return made.model_copy(
        update={
            "loss": worst.loss,
            "p": p,
            "fixed": worst.fixed,
            "broken": worst.broken,
            "test": worst.test,
            "visible": _spread(worst, metric, before, after),
        }
    )


def _pairs(metric: Metric, before: Side, after: Side) -> Pairs:
    top0, bottom0 = top_and_bottom(metric, before)
    top1, bottom1 = top_and_bottom(metric, after)
    return Pairs(top0, bottom0, top1[:, None], bottom1[:, None])


def _spread(loss: Loss, metric: Metric, before: Side, after: Side) -> float:
    """Return the standard deviation by question that the gate's sight is computed from.

    Where too little changed to tell it, as in a run that repeats its baseline, it is that of two
    runs whose outcomes have half of their variance in common.
    """
    top, bottom = top_and_bottom(metric, before)
    share = float(bottom.sum()) / max(loss.n, 1)
    if not share:
        return loss.sd
    rest = (top - top.sum() / bottom.sum() * bottom) / share
    return max(float(np.sqrt(np.mean(rest**2))), 0.0 if math.isnan(loss.sd) else loss.sd)


def _decide(checks: Sequence[Check], settings: Settings) -> list[Check]:
    """Return the checks with corrected p-values, what they see, and whether they fail."""
    tested = [c for c in checks if c.p is not None]
    regression = settings.rule == "regression"
    corrected = np.array([c.p for c in tested], dtype=float)
    if regression and tested:
        corrected = np.asarray(multipletests(corrected, method="holm")[1])
    known = {id(c): p for c, p in zip(tested, corrected.tolist(), strict=True)}
    level = settings.level / max(len(tested), 1)
    out = []
    for c in checks:
        p = known.get(id(c))
        if p is None:
            out.append(c)
            continue
        sides = 2 if c.direction == "either" else 1
        visible = visible_loss(c.visible or 0.0, c.n, c.margin, level / sides)
        failed = p <= settings.level if regression else p > settings.level
        out.append(
            c.model_copy(
                update={
                    "p_corrected": p,
                    "visible": visible if regression else None,
                    "failed": failed,
                }
            )
        )
    return out


def _noted(baseline: Baseline, current: Baseline) -> list[str]:
    out: dict[str, None] = {}
    for name, before in baseline.runs.items():
        after = current.runs.get(name)
        if after is None:
            continue
        for key, old, new in _flat(before.noted, after.noted):
            out[f"{key}: {old} in the baseline, {new} in the run"] = None
    return list(out)


def _flat(old: Mapping, new: Mapping, path: str = "") -> list[tuple[str, object, object]]:
    out: list[tuple[str, object, object]] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += _flat(a, b, f"{key}.")
        elif a != b:
            out.append((f"{path}{key}", a, b))
    return out


def parse_margins(texts: Collection[str]) -> dict[str, float]:
    """Return margins by metric from `METRIC=MARGIN` texts.

    Raises:
        MetricError: a text has another form, or a margin is negative or no number.
    """
    margins = {}
    for text in texts:
        name, found, number = text.partition("=")
        try:
            margins[name] = float(number)
        except ValueError:
            found = ""
        if not found or not 0 <= margins[name] < math.inf:
            raise MetricError(f"margin '{text}' is not METRIC=NUMBER with a number of at least 0")
    return margins
