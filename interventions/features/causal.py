"""What a feature does to the next token, measured: its direction is added and the model runs on.

For each feature `strength · max_act` of it is added at the last token of passages drawn from the
text, and the next-token distribution is compared with the one without. A random direction of the
same length is added beside it, so that an effect can be told from what any push does.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.errors import FeatureError
from interventions.features.facts_store import CAUSAL, FactStore
from interventions.features.lens import logit_lens
from interventions.features.prefixes import Prefixes, passages
from interventions.features.shortlist import Shortlist
from interventions.sae.norms import normalise
from interventions.subject import Subject
from interventions.text.config import TextConfig
from interventions.text.rows import rows
from interventions.train.files import read_tensors, write_tensors
from interventions.train.progress import Progress

PROBES = "causal.safetensors"
_PROBE_TOKENS = 200


@dataclass(frozen=True)
class CausalSettings:
    """How effects are measured.

    Attributes:
        contexts: passages.
        length: tokens of each.
        strength: of the push, in multiples of the feature's largest activation.
        listed: tokens listed each way.
        seed: of passages and random directions.
    """

    contexts: int = 32
    length: int = 32
    strength: float = 1.0
    listed: int = 15
    seed: int = 0


def measure_effects(
    subject: Subject,
    text: TextConfig,
    store: FactStore,
    features: Sequence[int],
    settings: CausalSettings | None = None,
) -> dict[str, Any]:
    """Return a summary after writing the effects of `features` to the store.

    Features that were measured before with the same settings are not measured again.

    Returns:
        `features` that are in the store; `lens_rank_correlation`, the median over features of
        Spearman's correlation, over the vocabulary, of logit lens and effect;
        `across_features`, the median over frequent tokens of the correlation over features, or
        None for fewer than ten; `kl` and `control_kl`, medians; `beats_control`, the share of
        features whose KL is larger than that of their random direction.

    Raises:
        FeatureError: a feature never fired, or there is too little text.
    """
    settings = settings or CausalSettings()
    kept = Shortlist(store.folder / CAUSAL, dataclasses.asdict(settings), store.info["key"])
    todo = kept.missing(features)
    largest = store.column("max_act")
    for feature in todo:
        if largest[feature] <= 0:
            raise FeatureError(
                f"feature {feature} never fired in the text of {store.folder}, so there is nothing"
                f" to add; leave it out"
            )
    probes = _read_probes(store, kept)
    lab = _Lab(subject, text, store, settings) if todo else None
    with Progress("causal", len(todo), "feature") as bar:
        for number, feature in enumerate(todo, 1):
            assert lab is not None
            row, probe = lab.effect(feature, settings.strength * largest[feature])
            kept.add(feature, row)
            probes[feature] = probe
            if kept.due:
                _save(store, kept, probes)
            bar.to(number)
    _save(store, kept, probes)
    store.__dict__.pop("causal", None)
    summary = _summary(kept.rows, probes)
    kept.finish(summary)
    return summary


class _Lab:
    def __init__(
        self, subject: Subject, text: TextConfig, store: FactStore, settings: CausalSettings
    ) -> None:
        self.subject, self.settings = subject, settings
        self.names = store.vocabulary
        found = passages(
            rows(text, subject.tokenizer), settings.contexts, settings.length, seed=settings.seed
        )
        prefixes = Prefixes(subject.model, subject.hook_point, found[:, :-1])
        last = found[:, -1:].to(subject.device)
        resid = prefixes.residuals(last)[:, 0]
        keep = torch.ones(len(found), dtype=torch.bool, device=subject.device)
        if subject.limit is not None:
            keep = resid.float().norm(dim=-1) <= subject.limit
        if not bool(keep.any()):
            raise FeatureError("the last token of every passage is a sink; use another --seed")
        if not bool(keep.all()):
            prefixes = Prefixes(subject.model, subject.hook_point, prefixes.ids[keep])
        self.prefixes, self.last, self.resid = prefixes, last[keep], resid[keep]
        self.base = prefixes.logits(self.last)[:, 0, : len(self.names)].log_softmax(-1)
        self.lens = logit_lens(subject.model, len(self.names), subject.special_ids)
        self.probe = _frequent_tokens(store, subject.special_ids).to(subject.device)

    @torch.inference_mode()
    def effect(self, feature: int, value: float) -> tuple[dict[str, Any], Tensor]:
        """Return a row of `causal.json`, and `(2, tokens)`: effect and lens at probe tokens."""
        sae = self.subject.sae
        direction = sae.W_dec[feature]
        factor = normalise(self.resid, sae.norm).factor
        size = value if factor is None else value * factor[:, None]
        push = size * direction.expand(len(self.resid), -1)
        noise = torch.randn(
            len(direction), generator=torch.Generator().manual_seed(self.settings.seed + feature)
        ).to(direction)
        other = noise / noise.norm() * push.norm(dim=-1, keepdim=True)
        both = self.prefixes.logits(self.last.expand(-1, 2), torch.stack([push, other], dim=1))[
            ..., : len(self.names)
        ]
        after = both.log_softmax(-1)
        kl = (after.exp() * (after - self.base[:, None])).sum(-1).mean(0).tolist()
        chance = (after[:, 0].exp() - self.base.exp()).mean(0)
        # Log-probabilities differ from logits by a constant of the context, which centring removes.
        change = (after[:, 0] - self.base).mean(0)
        change = change - change.mean()
        expected = self.lens.logits(direction[None])[0]
        out = torch.tensor(self.lens.without, device=chance.device, dtype=torch.long)
        row = {
            "value": value,
            **{
                name: self._listed(values.index_fill(0, out, 0.0), largest)
                for name, values, largest in (
                    ("promoted", chance, True),
                    ("suppressed", chance, False),
                    ("logits_up", change, True),
                    ("logits_down", change, False),
                )
            },
            "kl": kl[0],
            "control_kl": kl[1],
            "lens_rank_correlation": rank_correlation(expected, change),
            "contexts": len(self.last),
        }
        return row, torch.stack([change[self.probe], expected[self.probe]]).cpu()

    def _listed(self, values: Tensor, largest: bool) -> list[dict[str, Any]]:
        found = values.topk(min(self.settings.listed, len(values)), largest=largest)
        return [
            {"id": i, "text": self.names[i], "value": v}
            for i, v in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]


def rank_correlation(a: Tensor, b: Tensor) -> float | None:
    """Return Spearman's correlation of two vectors, ties at their mean rank; None if one is flat.

    Args:
        a: `(n,)`.
        b: `(n,)`.
    """
    ranks = []
    for values in (a, b):
        _, place, count = values.unique(return_inverse=True, return_counts=True)
        count = count.double()
        mean = count.cumsum(0) - (count - 1) / 2
        rank = mean[place]
        ranks.append(rank - rank.mean())
    lengths = ranks[0].norm() * ranks[1].norm()
    return None if not float(lengths) else float((ranks[0] @ ranks[1]) / lengths)


def _frequent_tokens(store: FactStore, without: Sequence[int]) -> Tensor:
    """Return the tokens that stand in the sampled firings of most features."""
    import pyarrow.compute

    compute: Any = pyarrow.compute
    ids = torch.tensor(compute.list_flatten(store.features["frequent_ids"]).to_pylist())
    count = torch.bincount(ids.long(), minlength=len(store.vocabulary))
    count[[i for i in without if i < len(count)]] = 0
    return count.topk(min(_PROBE_TOKENS, int((count > 0).sum()))).indices


def _read_probes(store: FactStore, kept: Shortlist) -> dict[int, Tensor]:
    path = store.folder / PROBES
    if not kept.rows or not path.is_file():
        return {}
    stored = read_tensors(path)
    return dict(zip(stored["features"].tolist(), stored["probes"], strict=True))


def _save(store: FactStore, kept: Shortlist, probes: dict[int, Tensor]) -> None:
    if probes:
        # First the tensors: a feature that is in the JSON has its probes.
        order = sorted(probes)
        tensors = {
            "features": torch.tensor(order),
            "probes": torch.stack([probes[f] for f in order]),
        }
        write_tensors(store.folder / PROBES, tensors)
    kept.save()


def _summary(found: dict[int, dict[str, Any]], probes: dict[int, Tensor]) -> dict[str, Any]:
    def median(values: list[float]) -> float | None:
        return float(torch.tensor(values).median()) if values else None

    measured = list(found.values())
    correlations = [r["lens_rank_correlation"] for r in measured]
    across = None
    if len(probes) >= 10:
        table = torch.stack([probes[f] for f in sorted(probes)])
        each = [rank_correlation(table[:, 0, t], table[:, 1, t]) for t in range(table.shape[2])]
        across = median([c for c in each if c is not None])
    return {
        "features": len(found),
        "lens_rank_correlation": median([c for c in correlations if c is not None]),
        "across_features": across,
        "kl": median([r["kl"] for r in measured]),
        "control_kl": median([r["control_kl"] for r in measured]),
        "beats_control": sum(r["kl"] > r["control_kl"] for r in measured) / max(1, len(measured)),
    }
