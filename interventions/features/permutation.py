"""Is a difference between two sets of prompts more than chance: permutation, bootstrap, BH.

A unit is a question (or a prompt that stands alone). Units of one group that are in both sets are
a pair: their labels are swapped together. All other units are shuffled freely.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 500
_FEATURES_AT_ONCE = 8192
ENOUGH = 10
"""Exceedances that settle a p-value; features with fewer are permuted further."""
FIRST_STAGE = 1000


@dataclass(frozen=True, eq=False)
class Design:
    """Which units are in which set, and which belong together.

    Attributes:
        exp: `(n,)` bool, whether a unit is in the experiment set.
        pairs: `(m, 2)` int64, unit in the baseline and unit in the experiment of each pair.
    """

    exp: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, groups: list[str], exp: Tensor) -> "Design":
        """Return the design of units whose groups are unique within each set."""
        base_at = {group: i for i, group in enumerate(groups) if not exp[i]}
        pairs = [(base_at[g], i) for i, g in enumerate(groups) if exp[i] and g in base_at]
        return cls(exp, torch.tensor(pairs, dtype=torch.long).reshape(-1, 2))

    @property
    def free(self) -> Tensor:
        """Units that are in no pair, int64."""
        alone = torch.ones(len(self.exp), dtype=torch.bool)
        alone[self.pairs.flatten()] = False
        return alone.nonzero().squeeze(1)

    def contrast(self, labels: Tensor) -> Tensor:
        """Return weights whose product with values is mean(experiment) - mean(baseline).

        Args:
            labels: `(..., n)` bool; every row has as many of each kind as the design.
        """
        n_exp = int(self.exp.sum())
        return torch.where(labels, 1 / n_exp, -1 / (len(self.exp) - n_exp)).double()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return labels as they might have been, `(count, n)` bool."""
        labels = self.exp.repeat(count, 1)
        if len(self.pairs):
            swap = torch.rand(count, len(self.pairs), generator=generator) < 0.5
            labels[:, self.pairs[:, 0]] = swap
            labels[:, self.pairs[:, 1]] = ~swap
        free = self.free
        if len(free):
            order = torch.rand(count, len(free), generator=generator).argsort(1)
            labels[:, free] = self.exp[free][order]
        return labels


def permutation_p(values: Tensor, design: Design, *, most: int = 10_000, seed: int = 0) -> Tensor:
    """Return the two-sided p of each column's difference of means, `(k,)` fp64.

    p = (1 + permutations with a difference at least as large) / (1 + permutations). All columns
    are permuted a thousand times; those with fewer than ten exceedances go on to `most`.

    Args:
        values: `(n, k)`, one row a unit.
        design: of the units.
        most: permutations of a column.
        seed: of the permutations; all columns share them.

    Source: Besag and Clifford 1991, Sequential Monte Carlo p-values.
    """
    found = torch.ones(values.shape[1], dtype=torch.float64)
    for first in range(0, values.shape[1], _FEATURES_AT_ONCE):
        columns = values[:, first : first + _FEATURES_AT_ONCE].double()
        found[first : first + columns.shape[1]] = _p_of(columns, design, most, seed)
    return found


def _p_of(values: Tensor, design: Design, most: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    observed = (design.contrast(design.exp) @ values).abs()
    # What is equal but for rounding counts as at least as large.
    reach = observed - 1e-10 * values.abs().amax(0)
    exceeded = torch.zeros(values.shape[1], dtype=torch.long)
    used = torch.zeros_like(exceeded)
    going = torch.arange(values.shape[1])
    done = 0
    for end in dict.fromkeys((min(FIRST_STAGE, most), most)):
        while done < end and len(going):
            count = min(_BLOCK, end - done)
            weights = design.contrast(design.draw(count, generator))
            differences = (weights @ values[:, going]).abs()
            exceeded[going] += (differences >= reach[going]).sum(0)
            used[going] += count
            done += count
        going = going[exceeded[going] < ENOUGH]
    return (1 + exceeded).double() / (1 + used).double()


def q_values(p: Tensor) -> Tensor:
    """Return Benjamini and Hochberg's q of each p."""
    from statsmodels.stats.multitest import fdrcorrection

    if not len(p):
        return p
    return torch.as_tensor(fdrcorrection(p.numpy())[1])


def bootstrap_interval(
    values: Tensor, design: Design, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Tensor:
    """Return the percentile interval of each column's difference of means, `(2, k)` fp64.

    Pairs are drawn together, other units within their set.

    Args:
        values: `(n, k)`, one row a unit.
        design: of the units.
        resamples: of the units.
        level: of the interval.
        seed: of the resamples; all columns share them.
    """
    generator = torch.Generator().manual_seed(seed)
    sign = design.contrast(design.exp)
    free = design.free
    drawn = []
    for first in range(0, resamples, _BLOCK):
        count = min(_BLOCK, resamples - first)
        times = torch.zeros(count, len(design.exp), dtype=torch.float64)
        for members in (design.pairs, free[design.exp[free]], free[~design.exp[free]]):
            if not len(members):
                continue
            pick = torch.randint(len(members), (count, len(members)), generator=generator)
            often = torch.zeros(count, len(members), dtype=torch.float64)
            often.scatter_add_(1, pick, torch.ones_like(pick, dtype=torch.float64))
            times[:, members.flatten()] = often.repeat_interleave(members[0].numel(), 1)
        drawn.append((times * sign) @ values.double())
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return torch.cat(drawn).quantile(ends, dim=0)
