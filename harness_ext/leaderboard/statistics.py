"""The statistics of a leaderboard: paired effects, q-values, ranks and nulls of every row."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from harness_ext.counts import SIGNS
from harness_ext.errors import MetricError
from harness_ext.leaderboard.board import BASELINE, Board, Row
from harness_ext.leaderboard.counting import (
    Side,
    check_ratio,
    count_side,
    is_lexical,
    keys_of,
    top_and_bottom,
)
from harness_ext.leaderboard.families import (
    Draws,
    Measured,
    beside_effects,
    make_groups,
    measure,
    smallest_effect,
)
from harness_ext.leaderboard.null import NULL_KINDS, Against, against, matched, outside
from harness_ext.leaderboard.results import Cell, Family, Interval, Results
from harness_ext.leaderboard.shrink import shrink
from harness_ext.metric_table import METRICS, Metric, get_metric
from harness_ext.records import Record
from harness_ext.stats import bh_q_values

DEFAULT_METRICS = (
    "acc_none",
    "influence",
    "silent_use_lexicon",
    "silent_use_regex",
    "verbalization_lexicon",
    "mean_tokens",
    "truncation",
)


class Options(BaseModel):
    """How a board is analysed.

    Attributes:
        metrics: names of `harness_ext.metric_table`; None for the default ones, as far as a task
            has them. Where a task has only correct hints, the default names are those of them.
        level: of q-values and p-values.
        dev_share: share of the questions that rank; None for the board's own. 0 ranks nothing.
        split_seed: of the split; None for the board's own.
        draws: resamples of an interval, and permutations of a test; small p-values get more.
        seed: of both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metrics: tuple[str, ...] | None = None
    level: float = Field(default=0.05, gt=0, lt=1)
    dev_share: float | None = Field(default=None, ge=0, lt=1)
    split_seed: int | None = None
    draws: int = Field(default=2000, ge=200)
    seed: int = 0


def analyse(board: Board, options: Options | None = None) -> Results:
    """Return the statistics of every row of a board against its baseline.

    The same board and options give the same numbers.

    Args:
        board: what was run.
        options: how; the defaults otherwise.

    Raises:
        MetricError: a metric is unknown or no ratio, the board has no baseline, or the baseline
            lacks a task that a row has; or another split than that of the screening is asked for.
    """
    options = options or Options()
    chosen = [check_ratio(get_metric(name)) for name in dict.fromkeys(options.metrics or ())]
    by_task = _by_task(board)
    share = board.info.dev_share if options.dev_share is None else options.dev_share
    split_seed = board.info.split_seed if options.split_seed is None else options.split_seed
    _check_split(board, share, split_seed)
    n_tests = len(by_task) * sum(row.kind == "feature" for row in board.rows)
    # Enough permutations for one test among all candidates on all tasks to reach the level.
    draws = Draws(options.draws, int(np.ceil(4 * n_tests / options.level)), options.seed)
    keys = keys_of(chosen or [METRICS[n] for n in _all_defaults()])
    matches = {row.id: matched(row, board.rows) for row in _candidates(board.rows)}
    tried: list[_Tried] = []
    for task, by_row in by_task.items():
        sides = {row_id: count_side(records, keys) for row_id, records in by_row.items()}
        base = sides.pop(BASELINE)
        groups = make_groups(base, sides, seed=split_seed, share=share)
        beside = beside_effects(groups)
        for metric in chosen or _defaults(base):
            if not any(top_and_bottom(metric, s)[1].any() for s in (base, *sides.values())):
                continue  # the task does not have it
            measured = {
                row_id: found
                for group in groups
                for row_id, found in zip(group.rows, measure(group, metric, draws), strict=True)
            }
            values = {row_id: _value(found, "effect") for row_id, found in measured.items()}
            tried.append(_Tried(task, metric, measured, beside, against(matches, values)))
    q_values = _q_values(board.rows, tried, _p)
    q_nulls = _q_values(board.rows, tried, _p_prediction)
    cells: list[Cell] = []
    families: list[Family] = []
    for one in tried:
        n_tests = len(_candidates(board.rows)) * sum(t.metric is one.metric for t in tried)
        family, own = _family(board.rows, one, (q_values, q_nulls), n_tests, options.level)
        cells += own
        families.append(family)
    settings: dict[str, float | int | str] = {
        "level": options.level,
        "dev_share": share,
        "split_seed": split_seed,
        "draws": options.draws,
        "most_permutations": max(draws.draws, draws.most),
        "seed": options.seed,
        "interval": "95 % paired bootstrap over questions, expanded percentiles",
        "test": "exact McNemar; else permutation of each question's sides, studentised",
        "correction": "Benjamini-Hochberg over all candidates on all tasks by a metric",
    }
    used = {family.metric for family in families}
    order = [m.name for m in chosen] or _all_defaults()
    return Results(
        cells=tuple(cells),
        families=tuple(families),
        metrics=tuple(name for name in order if name in used),
        settings=settings,
    )


def _check_split(board: Board, share: float, seed: int) -> None:
    """Refuse to publish on questions by which rows were dropped.

    Raises:
        MetricError: rows were screened on the dev questions of another split.
    """
    own = board.info.dev_share, board.info.split_seed
    if any(row.dropped is not None for row in board.rows) and own != (share, seed):
        raise MetricError(
            f"rows were screened on the dev questions of dev_share {own[0]:g}, split_seed {own[1]};"
            f" dev_share {share:g}, split_seed {seed} would publish on some of them; leave both as"
            f" they are"
        )


def _all_defaults() -> list[str]:
    suffixed = [f"{n}_{s}" for s in SIGNS for n in DEFAULT_METRICS if f"{n}_{s}" in METRICS]
    return [*DEFAULT_METRICS, *suffixed]


def _defaults(base: Side) -> list[Metric]:
    sign = next((s for s in SIGNS if base.column(f"{s}.hinted").any()), "wrong")
    names = [f"{n}_{sign}" if f"{n}_{sign}" in METRICS else n for n in DEFAULT_METRICS]
    return [METRICS[name] for name in names]


def _by_task(board: Board) -> dict[str, dict[str, list[Record]]]:
    out: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    ids = [row.id for row in board.rows]
    if BASELINE not in ids:
        raise MetricError(f"the board has no row '{BASELINE}', which every effect is measured from")
    for row_id in [BASELINE, *(i for i in ids if i != BASELINE)]:
        for record in board.records.get(row_id, ()):
            out[record.task][row_id].append(record)
    for task, by_row in out.items():
        if BASELINE not in by_row:
            raise MetricError(
                f"{task}: {len(by_row)} rows have records (such as '{next(iter(by_row))}'), the"
                f" baseline has none; run the baseline on it"
            )
    return out


@dataclass(frozen=True)
class _Tried:
    """What the data say of every row on one task by one metric, and what stands beside it."""

    task: str
    metric: Metric
    measured: Mapping[str, Measured]
    beside: Mapping[str, Mapping[str, float | None]]
    against: Mapping[str, Against]


_Q = Mapping[tuple[str, str, str], float]
"""By task, metric and row."""


def _candidates(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.kind == "feature"]


def _lexical(rows: Sequence[Row], metric: Metric) -> set[str]:
    return {row.id for row in rows if row.lexical and is_lexical(metric.name)}


def _family(
    rows: Sequence[Row],
    tried: _Tried,
    q_values: tuple[_Q, _Q],
    n_tests: int,
    level: float,
) -> tuple[Family, list[Cell]]:
    task, metric, measured, beside = tried.task, tried.metric, tried.measured, tried.beside
    lexical, candidates = _lexical(rows, metric), _candidates(rows)
    ranks, shrunk = _ranks(candidates, measured, lexical, metric)
    null_ids = [r.id for r in rows if r.kind in NULL_KINDS]
    null_effects = {i: v for i in null_ids if (v := _value(measured.get(i), "effect")) is not None}
    sds = [m.test_sd for m in measured.values() if np.isfinite(m.test_sd) and m.test_sd > 0]
    usual_sd = float(np.median(sds)) if sds else float("nan")
    corrected = level / max(n_tests, 1)
    cells, strict = [], []
    for row in rows:
        if row.id == BASELINE:
            continue
        if row.id not in measured:
            why = "no records" if row.dropped is None else "screened out"
            flags = ("lexical", why) if row.id in lexical else (why,)
            cells.append(Cell(row=row.id, task=task, metric=metric.name, flags=flags))
            continue
        found = measured[row.id]
        null = tried.against.get(row.id, Against(None, None, 0))
        q, q_null = (values.get((task, metric.name, row.id)) for values in q_values)
        apart = outside(null.p_null, null.n_null, level) and (q_null is None or q_null <= level)
        intervals: dict[str, Any] = {**found.values, **found.effects}
        numbers: dict[str, Any] = dict(beside[row.id])
        if row.kind == "feature":
            strict.append(smallest_effect(found, usual_sd, level=corrected))
        cells.append(
            Cell(
                row=row.id,
                task=task,
                metric=metric.name,
                n_test=found.n_test,
                n_dev=found.n_dev,
                **intervals,
                shrunk_dev=shrunk.get(row.id),
                rank=ranks.get(row.id),
                test=cast("Literal['mcnemar', 'bootstrap', 'permutation'] | None", found.test),
                p=found.p,
                q=q,
                p_null=null.p_null,
                n_null=null.n_null,
                q_null=q_null,
                discovery=q is not None and q <= level and apart,
                smallest_effect=smallest_effect(found, usual_sd, level=level),
                fixed=found.fixed,
                broken=found.broken,
                worst=None if found.bounds is None else found.bounds[0],
                best=None if found.bounds is None else found.bounds[1],
                flags=(*(("lexical",) if row.id in lexical else ()), *found.flags),
                **numbers,
            )
        )
    family = _summary(task, metric, cells, [c.id for c in candidates], null_effects, level)
    update = {"smallest_discovery": _median(strict), "n_tests": n_tests}
    return family.model_copy(update=update), cells


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _q_values(
    rows: Sequence[Row], tried: Sequence[_Tried], p_of: Callable[[_Tried, str], float | None]
) -> _Q:
    """Return the q-values of the candidates that have one.

    One family is a metric: every candidate on every task that has it. One without a p-value here
    (screened out, undefined, lexical) was tried all the same, and counts as a p-value of 1.
    """
    found: dict[tuple[str, str, str], float] = {}
    for metric in dict.fromkeys(one.metric for one in tried):
        lexical = _lexical(rows, metric)
        own = [one for one in tried if one.metric is metric]
        tests = [(one, row.id) for one in own for row in _candidates(rows)]
        p_values = [None if i in lexical else p_of(one, i) for one, i in tests]
        q_values = bh_q_values([1.0 if p is None else p for p in p_values])
        for (one, row_id), p, q in zip(tests, p_values, q_values, strict=True):
            if p is not None:
                found[one.task, metric.name, row_id] = q
    return found


def _p(tried: _Tried, row_id: str) -> float | None:
    return found.p if (found := tried.measured.get(row_id)) else None


def _p_prediction(tried: _Tried, row_id: str) -> float | None:
    return found.p_prediction if (found := tried.against.get(row_id)) else None


def _ranks(
    candidates: Sequence[Row],
    measured: Mapping[str, Measured],
    lexical: set[str],
    metric: Metric,
) -> tuple[dict[str, int], dict[str, float]]:
    """Return ranks and shrunk effects on the dev split, by row."""
    ids = [
        row.id
        for row in candidates
        if row.id not in lexical and _value(measured.get(row.id), "effect_dev") is not None
    ]
    raw = np.array([_value(measured[i], "effect_dev") for i in ids], dtype=float)
    errors = np.array([measured[i].dev_error for i in ids], dtype=float)
    shrunk = dict(zip(ids, shrink(raw, errors).tolist(), strict=True))
    plain = dict(zip(ids, raw.tolist(), strict=True))
    sign = {"higher": -1.0, "lower": 1.0}.get(_order(metric))

    def place_of(row_id: str) -> tuple[float, float, str]:
        # Where nothing but noise is seen all shrink to one value; their own effects decide.
        both = round(shrunk[row_id], 9), plain[row_id]
        return *((sign * x if sign else -abs(x)) for x in both), row_id  # type: ignore[return-value]

    best = sorted(ids, key=place_of)
    return {row_id: place for place, row_id in enumerate(best, start=1)}, shrunk


def _order(metric: Metric) -> Literal["higher", "lower", "size"]:
    if metric.higher_is_better is None:
        return "size"
    return "higher" if metric.higher_is_better else "lower"


def _summary(
    task: str,
    metric: Metric,
    cells: Sequence[Cell],
    candidates: Sequence[str],
    null_effects: Mapping[str, float],
    level: float,
) -> Family:
    found = sorted(
        (cell for cell in cells if cell.discovery),
        key=lambda c: (c.rank is None, c.rank or 0, c.q or 0.0, c.row),
    )
    nulls = np.array(list(null_effects.values()))
    family = Family(
        task=task,
        metric=metric.name,
        n_candidates=len(candidates),
        n_null=len(nulls),
        discoveries=tuple(cell.row for cell in found),
        level=level,
        smallest_effect=_median([c.smallest_effect for c in cells if c.row in set(candidates)]),
        order=_order(metric),
        null_mean=float(nulls.mean()) if nulls.size > 1 else None,
        null_sd=float(nulls.std(ddof=1)) if nulls.size > 1 else None,
    )
    return family.model_copy(update={"note": _note(family, cells)})


def _note(family: Family, cells: Sequence[Cell]) -> str:
    """Return what a reader must know before reading the family's numbers."""
    tested = sum(cell.q is not None for cell in cells)
    inside = [c for c in cells if c.q is not None and c.q <= family.level]
    parts = []
    if not family.n_candidates:
        parts.append("no candidates")
    elif not tested:
        parts.append(f"none of {family.n_candidates} candidates could be tested")
    elif not family.discoveries:
        parts.append(
            f"no discovery among {family.n_candidates} candidates"
            + f"; {len(inside)} differ from the baseline as random rows of that size do"
            * bool(inside)
        )
    if tested and family.n_null == 0:
        parts.append("no random rows to hold discoveries against")
    elif tested and 1 / (family.n_null + 1) > family.level:
        parts.append(
            f"{family.n_null} random rows cannot show a null p-value below"
            f" {1 / (family.n_null + 1):.3f}"
        )
    return "; ".join(parts)


def _value(row: Measured | None, name: str) -> float | None:
    return None if row is None else row.effects.get(name, Interval(value=None)).value
