"""Features that are more active in one set of prompts or responses than in another.

The score is that of the two seed notebooks: `100 (m_exp - m_base) / (m_base + 1e-6)`, kept where
`m_base > 0.01` and `m_exp > 0.1`, m the mean over prompts of the mean over tokens. Beside it stands
what the notebooks leave out: a permutation p and its q, an interval, the features that the baseline
does not have at all, and how much the lengths of the two sets differ.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from interventions.errors import FeatureError
from interventions.features.aggregate import AGGREGATES, Aggregate, Summaries
from interventions.features.permutation import (
    Design,
    bootstrap_interval,
    permutation_p,
    q_values,
)

EPSILON = 1e-6
MIN_UNITS = 4
"""Fewer units a set cannot be told from chance: 3 and 3 have 20 arrangements."""
RARE = 3
"""Features active in fewer units, of both sets together, are not tested: they cannot differ."""
_FEATURES_AT_ONCE = 4096
List = Literal["increase", "absent"]


@dataclass(frozen=True)
class ContrastSettings:
    """What is compared, and what is kept.

    Attributes:
        aggregate: over a passage's tokens: `mean`, `last`, `max`, or `active`, the share of them.
        trim: share of the units left out at each end, feature by feature, before they are
            averaged; the test and the interval use all units.
        min_base: m_base must be over it; what is not is listed apart, as absent.
        min_exp: m_exp must be over it.
        max_q: q must be at most this; 1 keeps everything.
        permutations: at most, a feature.
        resamples: of the interval.
        seed: of both.
    """

    aggregate: Aggregate = "mean"
    trim: float = 0.0
    min_base: float = 0.01
    min_exp: float = 0.1
    max_q: float = 0.05
    permutations: int = 10_000
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            raise FeatureError(
                f"unknown aggregate '{self.aggregate}'; use one of {', '.join(AGGREGATES)}"
            )
        if not 0 <= self.trim < 0.5:
            raise FeatureError(
                f"trim {self.trim} leaves nothing; give 0 to under 0.5, such as 0.05"
            )
        if self.permutations < 19 or self.resamples < 1:
            raise FeatureError(
                f"{self.permutations} permutations, {self.resamples} resamples; 19 and 1 at least"
            )


@dataclass(frozen=True, eq=False)
class Units:
    """Passages of both sets, averaged by group within each set.

    Attributes:
        summaries: of the passages, baseline and experiment.
        unit: `(passages,)` int64, the unit of each passage; -1 for one with no token that counts.
        design: of the units.
        tokens: `(units,)` fp64, mean number of tokens that counted.
        empty: passages with no token that counts, in the baseline and in the experiment.
    """

    summaries: Summaries
    unit: Tensor
    design: Design
    tokens: Tensor
    empty: tuple[int, int]

    def values(self, passages: Tensor) -> Tensor:
        """Return the mean of each unit's passages, `(units, k)` fp64, from `(passages, k)`."""
        kept = self.unit >= 0
        totals = torch.zeros(len(self.tokens), passages.shape[1], dtype=torch.float64)
        totals.index_add_(0, self.unit[kept], passages[kept].double())
        return totals / torch.bincount(self.unit[kept], minlength=len(self.tokens))[:, None]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Every feature's figures, `(d_sae,)` each; see `contrast`.

    Attributes:
        base, exp: m of the two sets, trimmed if the settings say so.
        mean_base, mean_exp: untrimmed.
        increase: percent.
        share_base, share_exp: share of units in which the feature fires at all.
        p, q: two-sided; nan where the feature is not tested.
        kept: by list, features in their order.
        removed: what removed how many features, in the order in which it was asked.
    """

    base: Tensor
    exp: Tensor
    mean_base: Tensor
    mean_exp: Tensor
    increase: Tensor
    share_base: Tensor
    share_exp: Tensor
    p: Tensor
    q: Tensor
    kept: dict[List, list[int]]
    removed: dict[str, int]


def make_units(summaries: Summaries, groups: Sequence[str], exp: Sequence[bool]) -> Units:
    """Return the units of some passages.

    Args:
        summaries: of all passages.
        groups: of each passage.
        exp: whether each passage is in the experiment set.

    Raises:
        FeatureError: a set is empty or has too few units.
    """
    number: dict[tuple[bool, str], int] = {}
    empty = [0, 0]
    unit = []
    for group, is_exp, tokens in zip(groups, exp, summaries.tokens.tolist(), strict=True):
        if not tokens:
            empty[is_exp] += 1
            unit.append(-1)
            continue
        unit.append(number.setdefault((bool(is_exp), group), len(number)))
    for is_exp, name in ((False, "baseline"), (True, "experiment")):
        here = sum(kind == is_exp for kind, _ in number)
        passages = sum(bool(e) == is_exp for e in exp)
        if not here:
            why = f"none of its {passages} texts has a token that counts" if passages else "no text"
            raise FeatureError(
                f"the {name} set is empty ({why}); give texts, or count another part of them"
            )
        if here < MIN_UNITS:
            raise FeatureError(
                f"the {name} set has {here} questions or prompts and {MIN_UNITS} are needed to tell"
                f" a difference from chance; give more"
            )
    kinds = torch.tensor([kind for kind, _ in number], dtype=torch.bool)
    at = torch.tensor(unit, dtype=torch.long)
    design = Design.of([group for _, group in number], kinds)
    units = Units(summaries, at, design, torch.zeros(len(number)), (empty[0], empty[1]))
    tokens = units.values(summaries.tokens[:, None].double())[:, 0]
    return Units(summaries, at, design, tokens, (empty[0], empty[1]))


def contrast(units: Units, settings: ContrastSettings) -> Contrast:
    """Return what tells the experiment from the baseline.

    Kept, and ranked by percent increase, are features over both thresholds whose q is small enough.
    Features over `min_exp` that the baseline lacks have no meaningful percentage: they are a list
    of their own, ranked by the difference. q counts every feature that fires in at least three
    units, whichever set they are in, so that looking at the sets first does not flatter it.
    """
    d_sae = units.summaries.d_sae
    is_exp = units.design.exp
    parts: dict[str, list[Tensor]] = {}
    for first in range(0, d_sae, _FEATURES_AT_ONCE):
        last = min(first + _FEATURES_AT_ONCE, d_sae)
        values = units.values(units.summaries.dense(settings.aggregate, first, last))
        fires = units.values(units.summaries.dense("active", first, last)) > 0
        tested = fires.sum(0) >= RARE
        p = torch.full((last - first,), torch.nan, dtype=torch.float64)
        p[tested] = permutation_p(
            values[:, tested], units.design, most=settings.permutations, seed=settings.seed
        )
        found = {
            "base": trimmed_mean(values[~is_exp], settings.trim),
            "exp": trimmed_mean(values[is_exp], settings.trim),
            "mean_base": values[~is_exp].mean(0),
            "mean_exp": values[is_exp].mean(0),
            "share_base": fires[~is_exp].double().mean(0),
            "share_exp": fires[is_exp].double().mean(0),
            "p": p,
        }
        for name, column in found.items():
            parts.setdefault(name, []).append(column)
    columns = {name: torch.cat(some) for name, some in parts.items()}
    tested = ~columns["p"].isnan()
    q = torch.full((d_sae,), torch.nan, dtype=torch.float64)
    q[tested] = q_values(columns["p"][tested])
    increase = percent(columns["base"], columns["exp"])
    kept, removed = _keep(columns, tested, q, increase, settings)
    return Contrast(increase=increase, q=q, kept=kept, removed=removed, **columns)


def percent(base: Tensor, exp: Tensor) -> Tensor:
    """Return the notebooks' percent increase."""
    return 100 * (exp - base) / (base + EPSILON)


def trimmed_mean(values: Tensor, trim: float) -> Tensor:
    """Return the mean of each column without `int(trim * n)` values at each end."""
    cut = int(trim * len(values))
    if not cut:
        return values.mean(0)
    return values.sort(0).values[cut:-cut].mean(0)


def _keep(
    columns: dict[str, Tensor],
    tested: Tensor,
    q: Tensor,
    increase: Tensor,
    settings: ContrastSettings,
) -> tuple[dict[List, list[int]], dict[str, int]]:
    base, exp = columns["base"], columns["exp"]
    left = torch.ones_like(tested)
    removed: dict[str, int] = {}
    fires = (columns["share_base"] > 0) | (columns["share_exp"] > 0)
    for reason, passes in (
        ("never active", fires),
        (f"active in fewer than {RARE} of all prompts", tested),
        (f"m_exp <= {settings.min_exp:g}", exp > settings.min_exp),
        # Trimmed and not: what is ranked is the one, what is tested the other.
        ("m_exp <= m_base", (columns["mean_exp"] > columns["mean_base"]) & (exp > base)),
        (f"q > {settings.max_q:g}", q.nan_to_num(nan=torch.inf) <= settings.max_q),
    ):
        removed[reason] = int((left & ~passes).sum())
        left = left & passes
    present = base > settings.min_base
    lists: dict[List, tuple[Tensor, Tensor]] = {
        "increase": (left & present, increase),
        "absent": (left & ~present, exp - base),
    }
    removed[f"m_base <= {settings.min_base:g} (listed as absent)"] = int((left & ~present).sum())
    kept: dict[List, list[int]] = {}
    for name, (chosen, score) in lists.items():
        features = chosen.nonzero().squeeze(1)
        order = score[features].sort(descending=True, stable=True).indices
        kept[name] = features[order].tolist()
    return kept, removed


def as_rows(
    result: Contrast, units: Units, settings: ContrastSettings, *, most: int = 200
) -> list[dict[str, Any]]:
    """Return the kept features as rows, best first: those with an increase, then the absent ones.

    `score` is the percent increase; of an absent feature it is the difference, and `list` says so.
    `low` and `high` are the 95 % bootstrap interval of the difference of means, `length_r` the
    correlation of a feature's value with a unit's number of tokens within the sets.

    Args:
        result: of `contrast`.
        units: that it is of.
        settings: that it was made with.
        most: rows of each list.
    """
    chosen = [(name, rank, f) for name, all_ in result.kept.items()
              for rank, f in enumerate(all_[:most], 1)]  # fmt: skip
    if not chosen:
        return []
    features = [feature for _, _, feature in chosen]
    picked = units.summaries.pick(features)
    values = {name: units.values(column) for name, column in picked.items()}
    is_exp = units.design.exp
    low, high = bootstrap_interval(
        values[settings.aggregate],
        units.design,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    lengths = _length_correlation(values[settings.aggregate], units)
    rows = []
    for column, (name, rank, feature) in enumerate(chosen):
        row: dict[str, Any] = {
            "feature": feature,
            "score": float((result.increase if name == "increase" else result.exp)[feature]),
            "list": name,
            "rank": rank,
            "base": float(result.base[feature]),
            "exp": float(result.exp[feature]),
            "increase": float(result.increase[feature]),
            "difference": float((result.mean_exp - result.mean_base)[feature]),
            "low": float(low[column]),
            "high": float(high[column]),
            "p": float(result.p[feature]),
            "q": float(result.q[feature]),
            "share_base": float(result.share_base[feature]),
            "share_exp": float(result.share_exp[feature]),
            "length_r": float(lengths[column]),
        }
        if name == "absent":
            row["score"] = float((result.exp - result.base)[feature])
        for aggregate, found in values.items():
            row[f"{aggregate}_base"] = float(found[~is_exp, column].mean())
            row[f"{aggregate}_exp"] = float(found[is_exp, column].mean())
        row["max_here"] = float(picked["max"][:, column].max())
        rows.append(row)
    return rows


def _length_correlation(values: Tensor, units: Units) -> Tensor:
    """Return each column's correlation with the units' tokens, both centred within their set."""
    columns, tokens = values.clone(), units.tokens.clone()[:, None]
    for kind in (units.design.exp, ~units.design.exp):
        columns[kind] -= columns[kind].mean(0)
        tokens[kind] -= tokens[kind].mean(0)
    scale = columns.norm(dim=0) * tokens.norm()
    return torch.where(scale > 0, (columns * tokens).sum(0) / scale, torch.nan)


def facts(result: Contrast, units: Units) -> dict[str, Any]:
    """Return figures on the two sets, and what removed how many features."""
    sides: dict[str, Any] = {}
    for name, kind, number in (("base", False, 0), ("exp", True, 1)):
        here = units.design.exp == kind
        passages = (units.unit >= 0) & here[units.unit.clamp(min=0)]
        sides[name] = {
            "units": int(here.sum()),
            "texts": int(passages.sum()),
            "texts_without_tokens": units.empty[number],
            "tokens": int(units.summaries.tokens[passages].sum()),
            "mean_tokens": float(units.tokens[here].mean()),
            "tokens_left_out": int(units.summaries.left_out[passages].sum()),
        }
    return {
        **sides,
        "pairs": len(units.design.pairs),
        "tested": int((~result.p.isnan()).sum()),
        "removed": result.removed,
        "kept": {name: len(some) for name, some in result.kept.items()},
    }


def notes(result: Contrast, units: Units, settings: ContrastSettings) -> list[str]:
    """Return what a reader must know about the comparison."""
    about = facts(result, units)
    found = []
    short, long = sorted(about[name]["mean_tokens"] for name in ("base", "exp"))
    if long > 1.2 * short:
        found.append(
            f"the sets differ in length ({about['base']['mean_tokens']:.0f} tokens that count in"
            f" the baseline, {about['exp']['mean_tokens']:.0f} in the experiment): a feature may"
            f" follow length or position (column length_r); `first` cuts both alike"
        )
    for name, label in (("base", "baseline"), ("exp", "experiment")):
        if about[name]["texts_without_tokens"]:
            found.append(
                f"{about[name]['texts_without_tokens']} texts of the {label} have no token that"
                f" counts and were left out"
            )
    if settings.max_q >= 1:
        found.append("no feature was left out for its q: some of these differ by chance alone")
    if not any(result.kept.values()):
        found.append(why_none(result))
    return found


def why_none(result: Contrast) -> str:
    """Return which threshold removed how many features, for when all of them are gone."""
    steps = [f"{count} by {reason}" for reason, count in result.removed.items() if count]
    q = result.q[~result.q.isnan()]
    smallest = f"; the smallest q is {float(q.min()):.3g}" if len(q) else ""
    return (
        f"no feature passes: of {len(result.p)}, removed were {', '.join(steps)}{smallest}; give"
        f" more texts, or move that threshold"
    )


def settings_dict(settings: ContrastSettings) -> dict[str, Any]:
    """Return the settings as plain data."""
    return asdict(settings)
