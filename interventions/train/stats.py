"""How often and how strongly each feature fires on the training text, sinks left out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 2048


@dataclass(frozen=True)
class Firing:
    """Every activation of every feature, sparse: three tensors of one length.

    Attributes:
        token: index of the token among those that were encoded.
        feature: index of the feature.
        value: the activation.
        tokens: how many tokens were encoded.
        d_sae: how many features there are.
    """

    token: Tensor
    feature: Tensor
    value: Tensor
    tokens: int
    d_sae: int


def firing(
    encode: Callable[[Tensor], Tensor], resid: Tensor, on_step: Callable[[int], None]
) -> Firing:
    """Return where features fire.

    Args:
        encode: from `(n, d_model)` residuals to `(n, d_sae)` activations.
        resid: `(tokens, d_model)` without sinks; what is found lies where it lies.
        on_step: told how many tokens are done.
    """
    token, feature, value, done, d_sae = [], [], [], 0, 0
    for part in resid.split(_CHUNK):
        acts = encode(part.float())
        d_sae = acts.shape[1]
        where = acts.nonzero()
        token.append((where[:, 0] + done).int().to(part.device))
        feature.append(where[:, 1].to(part.device, torch.int32))
        value.append(acts[where[:, 0], where[:, 1]].to(part.device))
        done += len(part)
        on_step(done)
    return Firing(torch.cat(token), torch.cat(feature), torch.cat(value), done, d_sae)


def feature_stats(fired: Firing) -> dict[str, Tensor]:
    """Return `max_act`, `mean_act`, `density`, `p999` and `count`, each `(d_sae,)`.

    `density` is the share of tokens at which the feature fires, `mean_act` the mean over those
    tokens, `p999` their 99.9th percentile (0 where it never fires).
    """
    n = fired.d_sae
    # Sorted by value first, then stably by feature: each feature's values in rising order.
    by_value = fired.value.argsort()
    order = by_value[fired.feature[by_value].argsort(stable=True)]
    feature, value = fired.feature[order].long(), fired.value[order]
    count = torch.bincount(feature, minlength=n)
    end = count.cumsum(0)
    total = torch.zeros(n, dtype=torch.float64).index_add_(0, feature, value.double())
    last = (end - 1).clamp(min=0)
    p999 = (end - count + ((count - 1).clamp(min=0) * 0.999).round().long()).clamp(
        max=len(value) - 1
    )
    alive = count > 0
    zero = torch.zeros(n)
    return {
        "max_act": torch.where(alive, value[last], zero),
        "mean_act": torch.where(alive, (total / count.clamp(min=1)).float(), zero),
        "p999": torch.where(alive, value[p999], zero),
        "density": (count.double() / fired.tokens).float(),
        "count": count.int(),
    }
