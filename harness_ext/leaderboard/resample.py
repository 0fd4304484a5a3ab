"""Paired tests and intervals for the ratios of many rows at once; questions are resampled.

All rows share the resamples, so that one matrix product serves them together.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

_CHUNK = 2000
_ENOUGH = 20
"""Permutations at least as extreme as what was seen, after which a p-value is precise enough."""
_EPS = 1e-9


@dataclass(frozen=True)
class Pairs:
    """A ratio's numerators and denominators by question, without and with each row's edit.

    Attributes:
        top_base, bottom_base: `(questions,)`.
        top, bottom: `(questions, rows)`.
    """

    top_base: np.ndarray
    bottom_base: np.ndarray
    top: np.ndarray
    bottom: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Pairs":
        """Return the same for some of the rows."""
        return Pairs(self.top_base, self.bottom_base, self.top[:, chosen], self.bottom[:, chosen])

    def questions(self, chosen: np.ndarray) -> "Pairs":
        """Return the same for some of the questions."""
        return Pairs(
            self.top_base[chosen], self.bottom_base[chosen], self.top[chosen], self.bottom[chosen]
        )


def ratio_of(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return `top / bottom`, NaN where `bottom` is 0."""
    out = np.full(np.broadcast_shapes(top.shape, bottom.shape), np.nan)
    return np.divide(top, bottom, out=out, where=bottom > _EPS)


def effects(pairs: Pairs) -> np.ndarray:
    """Return each row's ratio minus the baseline's, `(rows,)`, NaN where undefined."""
    base = ratio_of(pairs.top_base.sum(keepdims=True), pairs.bottom_base.sum(keepdims=True))
    return ratio_of(pairs.top.sum(axis=0), pairs.bottom.sum(axis=0)) - base


def standard_errors(pairs: Pairs) -> np.ndarray:
    """Return the paired delta-method standard error of each effect, `(rows,)`, NaN if undefined.

    The effect is the mean of w_q = (n1 - R1 d1)/D1 - (n0 - R0 d0)/D0 over the n questions (D the
    mean denominators) plus a constant; the error is sd(w) / sqrt(n).
    """
    n = len(pairs.top_base)
    if n < 2:
        return np.full(pairs.top.shape[1], np.nan)
    total0, total1 = pairs.bottom_base.sum(), pairs.bottom.sum(axis=0)
    r0 = ratio_of(pairs.top_base.sum(keepdims=True), pairs.bottom_base.sum(keepdims=True))
    r1 = ratio_of(pairs.top.sum(axis=0), total1)
    left = ratio_of(pairs.top_base - r0 * pairs.bottom_base, np.full(1, total0))
    right = ratio_of(pairs.top - r1 * pairs.bottom, np.broadcast_to(total1, pairs.top.shape))
    return np.sqrt(((right - left[:, None]) ** 2).sum(axis=0) * n / (n - 1))


def bootstrap_intervals(
    pairs: Pairs, *, draws: int, seed: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of each effect's percentile bootstrap interval, `(rows,)` each.

    Questions are drawn with all their arms and samples, the same ones for every row. With few
    questions plain percentiles cover too little; they are taken further out, by as much as
    Student's interval is wider than the normal one without the factor n/(n-1). NaN where more
    than half of the resamples leave the metric undefined.

    Source: Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3.
    """
    n, rows = pairs.top.shape
    if n < 2:
        return np.full(rows, np.nan), np.full(rows, np.nan)
    rng = np.random.default_rng(seed)
    drawn = np.empty((draws, rows))
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        w = rng.multinomial(n, np.full(n, 1.0 / n), size=size).astype(float)
        base = ratio_of(w @ pairs.top_base, w @ pairs.bottom_base)
        drawn[start : start + size] = ratio_of(w @ pairs.top, w @ pairs.bottom) - base[:, None]
    tail = float(norm.cdf(np.sqrt(n / (n - 1)) * t.ppf((1 - level) / 2, n - 1)))
    defined = ~np.isnan(drawn)
    whole = defined.all(axis=0)
    lo, hi = np.full(rows, np.nan), np.full(rows, np.nan)
    if whole.any():
        lo[whole], hi[whole] = np.quantile(drawn[:, whole], [tail, 1 - tail], axis=0)
    for row in np.flatnonzero(~whole & (defined.sum(axis=0) >= draws / 2)):
        lo[row], hi[row] = np.quantile(drawn[defined[:, row], row], [tail, 1 - tail])
    return lo, hi


def permutation_p(pairs: Pairs, *, draws: int, most: int, seed: int) -> np.ndarray:
    """Return each effect's two-sided p-value, `(rows,)`, NaN where the effect is undefined.

    Under "the edit changes nothing" the two sides of a question may change places, with all
    their arms and samples. So sides are swapped at random, question by question, and the
    studentised difference of the ratios is compared with those of the swaps. Exact under that
    hypothesis at any number of questions; studentising keeps it right, for many questions,
    where only the ratio is unchanged. Swaps that leave the metric undefined count as extreme.

    Args:
        pairs: the counts.
        draws: swaps for every row.
        most: swaps for rows of which fewer than 20 swaps were as extreme, so that small p-values
            survive a correction for many rows. Stopping early cannot make p too small (Besag &
            Clifford 1991).
        seed: of the swaps.

    Source: Janssen 1997; Chung & Romano 2013, "Exact and asymptotically robust permutation tests".
    """
    observed = _t(_Sums.of(pairs, None))[0]
    out = np.full(pairs.top.shape[1], np.nan)
    open_rows = np.flatnonzero(~np.isnan(observed))
    extreme = np.zeros(len(out))
    rng = np.random.default_rng(seed)
    done = 0
    while done < most and open_rows.size:
        size = min(_CHUNK, (draws if done < draws else most) - done)
        swap = rng.integers(0, 2, size=(size, len(pairs.top_base))).astype(float)
        drawn = np.abs(_t(_Sums.of(pairs.rows(open_rows), swap)))
        drawn = np.broadcast_to(drawn, (size, open_rows.size))
        bar = np.abs(observed[open_rows]) * (1 - _EPS) - _EPS
        extreme[open_rows] += (np.isnan(drawn) | (drawn >= bar)).sum(axis=0)
        done += size
        out[open_rows] = (1 + extreme[open_rows]) / (1 + done)
        if done >= draws:
            open_rows = open_rows[extreme[open_rows] < _ENOUGH]
    return out


@dataclass(frozen=True)
class _Sums:
    """Sums over questions after a swap of sides: `(draws, rows)`, or `(1, rows)` for none."""

    n0: np.ndarray
    n1: np.ndarray
    d0: np.ndarray
    d1: np.ndarray
    squares0: tuple[np.ndarray, np.ndarray, np.ndarray]
    squares1: tuple[np.ndarray, np.ndarray, np.ndarray]
    crossed: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    questions: int

    @classmethod
    def of(cls, pairs: Pairs, swap: np.ndarray | None) -> "_Sums":
        n0, d0 = pairs.top_base[:, None], pairs.bottom_base[:, None]
        n1, d1 = pairs.top, pairs.bottom
        # A common scale keeps sums of squares of token counts well-conditioned.
        scale = max(float(np.abs(n0).max(initial=0)), float(np.abs(n1).max(initial=0)), 1.0)
        n0, n1 = n0 / scale, n1 / scale

        def exchange(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            a, b = np.broadcast_arrays(a, b)
            sum_a, sum_b, gap = a.sum(axis=0), b.sum(axis=0), b - a
            moved = swap @ gap if swap is not None and gap.any() else np.zeros((1, gap.shape[1]))
            return sum_a + moved, sum_b - moved

        tops, bottoms = exchange(n0, n1), exchange(d0, d1)
        nn, nd, dd = exchange(n0 * n0, n1 * n1), exchange(n0 * d0, n1 * d1), exchange(d0**2, d1**2)
        across = exchange(n0 * d1, n1 * d0)
        kept = (n0 * n1).sum(axis=0), (d0 * d1).sum(axis=0)
        return cls(
            *tops, *bottoms, (nn[0], nd[0], dd[0]), (nn[1], nd[1], dd[1]),
            (kept[0], across[0], across[1], kept[1]), len(pairs.top_base),
        )  # fmt: skip


def _t(s: _Sums) -> np.ndarray:
    """Return the studentised difference of two ratios; NaN where a denominator is 0."""
    r0, r1 = ratio_of(s.n0, s.d0), ratio_of(s.n1, s.d1)

    def spread(r: np.ndarray, squares: tuple[np.ndarray, ...], d: np.ndarray) -> np.ndarray:
        nn, nd, dd = squares
        return ratio_of(nn - 2 * r * nd + r * r * dd, d * d)

    n0n1, n0d1, n1d0, d0d1 = s.crossed
    both = ratio_of(n0n1 - r1 * n0d1 - r0 * n1d0 + r0 * r1 * d0d1, s.d0 * s.d1)
    variance = spread(r0, s.squares0, s.d0) + spread(r1, s.squares1, s.d1) - 2 * both
    difference = r1 - r0
    # A difference without any variance is beyond every finite t; none at all is 0.
    flat = variance < 1e-12
    t_value = difference / np.sqrt(np.where(flat, 1.0, variance))
    return np.where(
        flat & ~np.isnan(difference),
        np.where(np.abs(difference) > 1e-9, np.sign(difference) * 1e9, 0.0),
        t_value,
    )
