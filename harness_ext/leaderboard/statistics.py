"""The statistics of a leaderboard: paired effects, q-values, ranks and nulls of every row."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from harness_ext.counts import SIGNS
from harness_ext.errors import MetricError
from harness_ext.leaderboard.board import BASELINE, Board, Row
from harness_ext.leaderboard.counting import Side, check_ratio, count_side, keys_of, top_and_bottom
from harness_ext.leaderboard.families import (
    Draws,
    Group,
    Measured,
    make_groups,
    measure,
    smallest_effect,
)
from harness_ext.leaderboard.null import NULL_KINDS, empirical_p, matched, outside
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
_SEARCHING = {"regex", "lexicon", "seed"}
"""Parts of the names of metrics by detectors that look for words."""
_BESIDE = {"truncation": "truncation", "no_answer": "no_answer", "tokens": "mean_tokens"}


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
    chosen = [check_ratio(get_metric(name)) for name in options.metrics or ()]
    by_task = _by_task(board)
    share = board.info.dev_share if options.dev_share is None else options.dev_share
    split_seed = board.info.split_seed if options.split_seed is None else options.split_seed
    _check_split(board, share, split_seed)
    n_candidates = sum(row.kind == "feature" for row in board.rows)
    # Enough permutations for one row among all candidates to reach the level.
    draws = Draws(options.draws, int(np.ceil(4 * n_candidates / options.level)), options.seed)
    keys = keys_of(chosen or [METRICS[n] for n in _all_defaults()])
    cells: list[Cell] = []
    families: list[Family] = []
    for task, by_row in by_task.items():
        sides = {row_id: count_side(records, keys) for row_id, records in by_row.items()}
        base = sides.pop(BASELINE)
        groups = make_groups(base, sides, seed=split_seed, share=share)
        beside = _beside(groups)
        for metric in chosen or _defaults(base):
            if not any(top_and_bottom(metric, s)[1].any() for s in (base, *sides.values())):
                continue  # the task does not have it
            measured = {
                row_id: found
                for group in groups
                for row_id, found in zip(group.rows, measure(group, metric, draws), strict=True)
            }
            family, own = _family(board.rows, task, metric, measured, beside, options.level)
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
        "correction": "Benjamini-Hochberg over all candidates of a (model, task, metric) family",
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


def is_lexical(metric: str) -> bool:
    """Return whether a metric counts words, so that a row that promotes such words is unfair."""
    return bool(_SEARCHING & set(metric.split("_")))


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


def _family(
    rows: Sequence[Row],
    task: str,
    metric: Metric,
    measured: Mapping[str, Measured],
    beside: Mapping[str, Mapping[str, float | None]],
    level: float,
) -> tuple[Family, list[Cell]]:
    lexical = {row.id for row in rows if row.lexical and is_lexical(metric.name)}
    candidates = [row for row in rows if row.kind == "feature"]
    q_values = _q_values(candidates, measured, lexical)
    ranks, shrunk = _ranks(candidates, measured, lexical, metric)
    null_ids = [r.id for r in rows if r.kind in NULL_KINDS]
    null_effects = {i: v for i in null_ids if (v := _value(measured.get(i), "effect")) is not None}
    sds = [m.test_sd for m in measured.values() if np.isfinite(m.test_sd) and m.test_sd > 0]
    usual_sd = float(np.median(sds)) if sds else float("nan")
    corrected = level / max(len(candidates), 1)
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
        effect, p_null, n_null = found.effects["effect"].value, None, 0
        if row.kind == "feature" and effect is not None:
            nulls = [null_effects[i] for i in matched(row, rows) if i in null_effects]
            p_null, n_null = empirical_p(effect, np.array(nulls)), len(nulls)
        q = q_values.get(row.id)
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
                p_null=p_null,
                n_null=n_null,
                discovery=q is not None and q <= level and outside(p_null, n_null, level),
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
    return family.model_copy(update={"smallest_discovery": _median(strict)}), cells


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _q_values(
    candidates: Sequence[Row], measured: Mapping[str, Measured], lexical: set[str]
) -> dict[str, float]:
    """Return the q-values of the candidates that have one; all candidates count.

    One without a p-value here (screened out, undefined, lexical) was tried all the same, and
    counts as a p-value of 1.
    """
    p_values = [
        1.0 if row.id in lexical or (found := measured.get(row.id)) is None or found.p is None
        else found.p
        for row in candidates
    ]  # fmt: skip
    q_values = dict(zip((row.id for row in candidates), bh_q_values(p_values), strict=True))
    return {
        row_id: q
        for row_id, q in q_values.items()
        if row_id not in lexical and row_id in measured and measured[row_id].p is not None
    }


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
    parts = []
    if not family.n_candidates:
        parts.append("no candidates")
    elif not tested:
        parts.append(f"none of {family.n_candidates} candidates could be tested")
    elif not family.discoveries:
        inside = sum(c.q is not None and c.q <= family.level for c in cells)
        parts.append(
            f"no discovery among {family.n_candidates} candidates"
            + (f"; {inside} differ from the baseline as random rows of that size do" * bool(inside))
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


def _beside(groups: Sequence[Group]) -> dict[str, dict[str, float | None]]:
    """Return truncation, missing answers and length of every row and its baseline."""
    out: dict[str, dict[str, float | None]] = {}
    for group in groups:
        sums = group.base_test.sums()
        base = {f"{name}_base": METRICS[metric].value(sums) for name, metric in _BESIDE.items()}
        for row_id, side in zip(group.rows, group.sides_test, strict=True):
            sums = side.sums()
            out[row_id] = {**base, **{n: METRICS[m].value(sums) for n, m in _BESIDE.items()}}
    return out
