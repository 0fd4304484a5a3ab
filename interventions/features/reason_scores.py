"""From sums over tokens to ReasonScores, their standard errors, and what a reader must know.

Source: Galichin et al. 2025, "I Have Covered All the Bases Here", section 3.2, and its
`compute_score.py`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.errors import FeatureError
from interventions.features.reason import ReasonSums
from interventions.features.words import WordGroups

ALPHA = 0.7
EPSILON = 1e-12


@dataclass(frozen=True, eq=False)
class ReasonScores:
    """Scores and what they are made of, each `(d_sae,)` unless said otherwise.

    Attributes:
        score: the ReasonScore.
        error: its jackknife standard error over blocks of documents; None with fewer than two.
        near, rest: mean activations near words and elsewhere, SAE units.
        by_group: `(d_sae, n)` mean activations near each group's words, SAE units.
        entropy: in `[0, 1]`; 1 where a feature is spread evenly over the groups.
        blocks: how many blocks of documents there were.
    """

    score: Tensor
    error: Tensor | None
    near: Tensor
    rest: Tensor
    by_group: Tensor
    entropy: Tensor
    blocks: int


def reason_scores(
    near: Float[Tensor, " d_sae"],
    rest: Float[Tensor, " d_sae"],
    by_group: Float[Tensor, "d_sae groups"],
    alpha: float = ALPHA,
) -> tuple[Tensor, Tensor]:
    """Return the ReasonScores and the normalised entropies.

    Args:
        near: mean activations near words.
        rest: mean activations elsewhere.
        by_group: mean activations near each group's words.
        alpha: power of the entropy; 0 leaves it out.

    Source: Galichin et al. 2025, equations 5 to 7.
    """
    share = by_group / by_group.sum(1, keepdim=True).clamp(min=EPSILON)
    groups = by_group.shape[1]
    if groups > 1:
        entropy = -torch.special.xlogy(share, share).sum(1) / math.log(groups)
        entropy = entropy.clamp(0, 1) + 0.0  # no -0.0
    else:
        entropy = torch.ones_like(near)
    score = near / near.sum().clamp(min=EPSILON) * entropy**alpha
    score -= rest / rest.sum().clamp(min=EPSILON)
    return score, entropy


def score(
    sums: ReasonSums,
    groups: WordGroups,
    *,
    alpha: float = ALPHA,
    weights: Tensor | None = None,
    drop_missing: bool = False,
) -> ReasonScores:
    """Return the scores that follow from sums.

    Args:
        sums: of `collect`.
        groups: the words.
        alpha: power of the entropy.
        weights: `(d_sae,)` factors of the activations. `sae.W_dec.norm(dim=-1)` counts what is
            written to the residual stream, as the published script does; None counts SAE units.
        drop_missing: leave groups without a token out of the entropy, which otherwise they lower.

    Raises:
        FeatureError: no word in the text, or nothing but words.
    """
    n = len(groups.names)
    total, count = sums.sums.sum(0), sums.counts.sum(0)
    if not int(count[n]) or not int(count[n + 1]):
        what = "no token is near a word" if not int(count[n]) else "every token is near a word"
        raise FeatureError(
            f"{what} of {', '.join(groups.names[:6])}{' ...' if n > 6 else ''} in"
            f" {int(sums.tokens)} tokens; give more or other text, or another word list"
        )
    there = [g for g in range(n) if not drop_missing or int(count[g])]
    rows_of = [*there, n, n + 1]
    factor = total.new_ones(1) if weights is None else weights.to(total)

    def of(part: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means = part[rows_of] / tokens[rows_of].clamp(min=1).unsqueeze(1)
        scores, entropy = reason_scores(
            means[-2] * factor, means[-1] * factor, means[:-2].T * factor[:, None], alpha
        )
        return means, scores, entropy

    means, scores, entropy = of(total, count)
    present = [k for k in range(len(sums.counts)) if int(sums.counts[k].sum())]
    error = None
    if len(present) > 1:
        without = torch.stack(
            [of(total - sums.sums[k], count - sums.counts[k])[1] for k in present]
        )
        spread = (without - without.mean(0)).square().sum(0)
        error = (spread * (len(present) - 1) / len(present)).sqrt()
    by_group = total[:n] / count[:n].clamp(min=1).unsqueeze(1)
    return ReasonScores(scores, error, means[-2], means[-1], by_group.T, entropy, len(present))


def notes(sums: ReasonSums, groups: WordGroups, *, few: int = 10) -> list[str]:
    """Return what a reader must know of the words: groups that never or hardly occur.

    Args:
        sums: of `collect`.
        groups: the words.
        few: fewer tokens near a group's words are mentioned.
    """
    count = sums.counts.sum(0).tolist()
    none = [name for name, c in zip(groups.names, count, strict=False) if not c]
    rare = [f"{name} ({c})" for name, c in zip(groups.names, count, strict=False) if 0 < c < few]
    found = []
    if none:
        found.append(
            f"no token near {', '.join(none)}: each lowers every entropy; --drop-missing leaves"
            f" them out"
        )
    if rare:
        found.append(f"few tokens near {', '.join(rare)}: their means are noise")
    return found


def as_rows(
    found: ReasonScores, sums: ReasonSums, groups: WordGroups, *, most: int | None = None
) -> list[dict[str, Any]]:
    """Return one mapping a feature, best first.

    Args:
        found: the scores.
        sums: what they were made of.
        groups: the words.
        most: features at most; None for all.
    """
    tokens = max(int(sums.counts[:, -2:].sum()), 1)
    order = found.score.argsort(descending=True, stable=True)[:most]
    listed = []
    for feature in order.tolist():
        row: dict[str, Any] = {"feature": feature, "score": float(found.score[feature])}
        if found.error is not None:
            row["error"] = float(found.error[feature])
        row |= {
            "near": float(found.near[feature]),
            "rest": float(found.rest[feature]),
            "entropy": float(found.entropy[feature]),
            "density": float(sums.active[feature]) / tokens,
            "max_here": float(sums.largest[feature]),
        }
        for group, value in zip(groups.names, found.by_group[feature].tolist(), strict=True):
            row[f"mean {group}"] = value
        listed.append(row)
    return listed
