"""Whether a feature is just a word detector: its tokens are put where nothing else calls for it.

For each feature the tokens with its largest activations are put after passages that have nothing
to do with it: bland sentences, and stretches of text drawn at random. An injection *fires* when the
feature's activation at that token reaches half of its mean activation where it fires in the text.
The same is done with tokens drawn from the text: the baseline. What would follow the token cannot
change its activation in a causal model, so the passage ends there.

    lift = share of injections that fire - share of the baseline that fires
    verdict: `token` for a lift of at least 0.5, `context` for at most 0.1, else `mixed`

A `token` feature says that a word is there; it needs no reasoning, or whatever its contexts look
like, to fire.

Source: the token injection of "Falsifying Sparse Autoencoder Reasoning Features in Language
Models" (arXiv 2601.05679), which puts several tokens into texts at once and compares activations.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.errors import FeatureError
from interventions.features.facts_store import INJECTION, FactStore
from interventions.features.prefixes import Prefixes, passages
from interventions.features.shortlist import Shortlist
from interventions.subject import Subject
from interventions.text.config import TextConfig
from interventions.text.rows import rows
from interventions.train.progress import Progress

NEUTRAL = (
    "The parcel was left at the front desk on Tuesday morning, and the clerk put it on the shelf",
    "Most of the houses in this street have two floors and a small garden with a wooden fence",
    "She keeps the blue cups in the upper cupboard and the plates on the table near the window",
    "A bus leaves from the station every twenty minutes and stops at the library and the park",
    "In the evening they walked along the river and looked at the boats that were tied to the pier",
    "The museum opens at nine and has a large collection of maps, coins and paintings of ships",
    "He bought a loaf of bread, some apples and a bottle of milk on his way home from the office",
    "The room has white walls, one narrow bed, a lamp and a chair that nobody has used for years",
)
"""Sentences about nothing much, cut to the length of a passage."""

TOKEN_LIFT, CONTEXT_LIFT = 0.5, 0.1
_LEVEL = 0.5


@dataclass(frozen=True)
class InjectionSettings:
    """How injections are made.

    Attributes:
        tokens: of each feature, those with the largest activations; as many for the baseline.
        contexts: passages drawn from the text; there are as many as `NEUTRAL` of the other kind.
        length: tokens of a passage, at most as many as the shortest of `NEUTRAL` has.
        seed: of the draws.
    """

    tokens: int = 5
    contexts: int = 8
    length: int = 16
    seed: int = 0


def check_injections(
    subject: Subject,
    text: TextConfig,
    store: FactStore,
    features: Sequence[int],
    settings: InjectionSettings | None = None,
) -> dict[str, Any]:
    """Return how often each verdict was given, after writing the verdicts to the store.

    Features that were checked before with the same settings are not checked again.

    Raises:
        FeatureError: a feature never fired, or there is too little text.
    """
    settings = settings or InjectionSettings()
    kept = Shortlist(store.folder / INJECTION, dataclasses.asdict(settings), store.info["key"])
    todo = kept.missing(features)
    bench = _Bench(subject, text, settings) if todo else None
    mean = store.column("mean_act")
    with Progress("injection", len(todo), "feature") as bar:
        for number, feature in enumerate(todo, 1):
            tokens = store.feature(feature).top_tokens[: settings.tokens]
            if not tokens:
                raise FeatureError(
                    f"feature {feature} never fired in the text of {store.folder}, so it has no"
                    f" tokens to put in; leave it out"
                )
            assert bench is not None
            row = bench.check(feature, [token.id for token in tokens], _LEVEL * mean[feature])
            kept.add(feature, {**row, "tokens": [dataclasses.asdict(token) for token in tokens]})
            if kept.due:
                kept.save()
            bar.to(number)
    verdicts = [row["verdict"] for row in kept.rows.values()]
    summary = {name: verdicts.count(name) for name in ("token", "context", "mixed")}
    kept.finish(summary)
    store.__dict__.pop("injections", None)
    return summary


class _Bench:
    def __init__(self, subject: Subject, text: TextConfig, settings: InjectionSettings) -> None:
        self.subject = subject
        tokenizer = subject.tokenizer
        drawn = passages(
            rows(text, tokenizer), settings.contexts, settings.length, seed=settings.seed
        )
        bos = drawn[0, :1].tolist() if text.bos and drawn[0, 0] in subject.special_ids else []
        neutral = [
            [*bos, *tokenizer(t, add_special_tokens=False)["input_ids"]][: settings.length]
            for t in NEUTRAL
        ]
        shortest = min(map(len, neutral))
        if shortest < settings.length:
            raise FeatureError(
                f"a neutral passage has {shortest} tokens, fewer than {settings.length}; ask for"
                f" shorter passages"
            )
        self.neutral = torch.arange(len(NEUTRAL) + len(drawn)) < len(NEUTRAL)
        ids = torch.cat([torch.tensor(neutral), drawn])
        self.prefixes = Prefixes(subject.model, subject.hook_point, ids)
        others = passages(
            rows(text, tokenizer), settings.contexts, settings.length, seed=settings.seed + 1
        ).flatten()
        special = torch.tensor(subject.special_ids, dtype=torch.long)
        others = others[~torch.isin(others, special)]
        chance = torch.Generator().manual_seed(settings.seed)
        place = torch.randint(len(others), (len(ids), settings.tokens), generator=chance)
        self.baseline = self._encoded(others[place])

    @torch.inference_mode()
    def check(self, feature: int, tokens: list[int], level: float) -> dict[str, Any]:
        """Return a row of `injection.json`, but for its `tokens`."""
        wanted = torch.tensor(tokens).expand(len(self.neutral), -1)
        acts, usable = self._encoded(wanted)
        there, count = self._fires(acts[..., feature], usable, level)
        base, base_usable = self.baseline
        before, base_count = self._fires(base[..., feature], base_usable, level)
        if not count or not base_count:
            raise FeatureError("every injected token is a sink; use other passages (--seed)")
        neutral, random = there[self.neutral], there[~self.neutral]
        fires, baseline = int(there.sum()) / count, int(before.sum()) / base_count
        low, high = wilson(int(there.sum()), count)
        lift = fires - baseline
        verdict = "token" if lift >= TOKEN_LIFT else "context" if lift <= CONTEXT_LIFT else "mixed"
        return {
            "verdict": verdict,
            "fires": fires,
            "baseline": baseline,
            "neutral": float(neutral.sum()) / max(1, int(usable[self.neutral].sum())),
            "random": float(random.sum()) / max(1, int(usable[~self.neutral].sum())),
            "low": low,
            "high": high,
            "count": count,
            "level": level,
        }

    def _encoded(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        resid = self.prefixes.residuals(tokens)
        usable = torch.ones(resid.shape[:2], dtype=torch.bool, device=resid.device)
        if self.subject.limit is not None:
            usable = resid.float().norm(dim=-1) <= self.subject.limit
        return self.subject.sae.encode(resid), usable

    def _fires(self, acts: Tensor, usable: Tensor, level: float) -> tuple[Tensor, int]:
        return ((acts >= level) & usable).cpu(), int(usable.sum())


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share.

    Args:
        hits: successes.
        n: trials, at least one.
    """
    z = 1.959963984540054
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
