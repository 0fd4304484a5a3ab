"""What a feature's page shows, from its facts: numbers as text, tokens and charts as markup."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from harness_ext.dashboards.choose import Choice
from harness_ext.dashboards.links import neuronpedia, steering
from harness_ext.pages import charts, coloured, render, visible
from interventions.features.facts_store import Context, FactStore, FeatureFacts, TokenValue

_FREQUENT = 10  # rows of the table of most frequent tokens
_BEFORE, _AFTER = 4, 8  # tokens around the strongest firing that the index shows


@dataclass(frozen=True)
class Neighbours:
    """The pages before and after one; None at the ends."""

    before: int | None
    after: int | None


def number(value: float) -> str:
    """Return a number with three digits that count; 12,345 whole."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "\u2013"
    return charts.plain(value if abs(value) >= 1000 else float(f"{value:.3g}"))


def share(value: float) -> str:
    """Return a share in percent, with three digits that count."""
    return f"{number(100 * value)}\u2009%"


def signed(value: float) -> str:
    """Return a number with its sign."""
    return ("+" if value > 0 else "") + number(value)


def feature_page(
    store: FactStore,
    facts: FeatureFacts,
    contexts: Sequence[Context],
    choice: Choice,
    near: Neighbours,
    pages: frozenset[int],
) -> str:
    """Return a feature's page as HTML.

    Args:
        store: what `facts` are from.
        facts: of the feature.
        contexts: of the feature.
        choice: labels and scores.
        near: pages that this one links to.
        pages: all features that have one.
    """
    label = choice.labels.get(facts.feature, "")
    return render(
        "feature.html",
        feature=facts.feature,
        label=label,
        subject=store.subject,
        info=store.info,
        near=near,
        n_pages=len(pages),
        pages=pages,
        tiles=_tiles(store, facts, choice),
        fired=facts.count > 0,
        top=facts.max_act,
        histogram=_histogram(facts),
        lens=_pair("Promoted", facts.promoted, "Suppressed", facts.suppressed, _marked(facts)),
        causal=_causal(facts),
        frequent=[
            (visible(t.text), share(t.share), number(t.mean_act), t.share)
            for t in facts.frequent_tokens[:_FREQUENT]
        ],
        strongest=[(visible(t.text), number(t.value)) for t in facts.top_tokens],
        cofiring=facts.cofiring,
        injection=facts.injection,
        groups=_groups(facts, contexts),
        steer=steering(store.subject, facts.feature, facts.max_act),
        neuronpedia=neuronpedia(store.subject["sae"], facts.feature),
        number=number,
        share=share,
        signed=signed,
        visible=visible,
    )


def snippet(contexts: Sequence[Context]) -> str:
    """Return the strongest firing with a few tokens around it, as one line of text."""
    if not contexts:
        return ""
    best = max(contexts, key=lambda context: context.value)
    low, high = best.center - _BEFORE, best.center + _AFTER + 1
    before = "".join(best.tokens[max(0, low) : best.center])
    after = "".join(best.tokens[best.center + 1 : high])
    parts = (visible(text, spaces=False) for text in (before, best.tokens[best.center], after))
    left, middle, right = parts
    space = " " if middle.startswith(" ") else ""
    return f"{left}{space}«{middle.removeprefix(' ')}»{right}"


def _tiles(store: FactStore, facts: FeatureFacts, choice: Choice) -> list[tuple[str, str, str]]:
    """Return name, value and a remark of the figures at the head of the page."""
    rare = f"1 token in {number(1 / facts.density)}" if facts.density > 0 else "never"
    found = [
        ("Maximum activation", number(facts.max_act), "SAE units"),
        ("Density", share(facts.density), rare),
        ("Fires on", f"{facts.count:,}", f"of {store.info['tokens']:,} tokens"),
        ("Mean where it fires", number(facts.mean_act), "SAE units"),
        ("99.9th percentile", number(facts.p999), "of its activations"),
    ]
    for score in choice.scores:
        if facts.feature in score.values:
            rank = f"rank {score.ranks[facts.feature]} of {len(score.ranks)}"
            found.append((f"Score: {score.name}", number(score.values[facts.feature]), rank))
    if facts.injection is not None:
        remarks = {
            "token": "its tokens suffice",
            "context": "its tokens alone do not",
            "mixed": "its tokens sometimes suffice",
        }
        verdict = facts.injection.verdict
        found.append(("Injection check", verdict, remarks.get(verdict, "")))
    return found


def _histogram(facts: FeatureFacts) -> Markup | None:
    if not facts.histogram.counts:
        return None
    return charts.histogram(
        [math.log10(edge) for edge in facts.histogram.edges],
        facts.histogram.counts,
        title="Activations",
        x="activation where it fires, SAE units (log scale)",
        y="tokens (log scale)",
        log=True,
        marks=[(math.log10(facts.max_act), "max")] if facts.max_act > 0 else [],
        format_x=lambda value: number(10**value),
    )


def _marked(facts: FeatureFacts) -> tuple[frozenset[int], frozenset[int]]:
    """Return tokens that lens and measured logits both push up, and those both push down."""
    if facts.causal is None:
        return frozenset(), frozenset()
    ups = {t.id for t in facts.promoted} & {t.id for t in facts.causal.logits_up}
    downs = {t.id for t in facts.suppressed} & {t.id for t in facts.causal.logits_down}
    return frozenset(ups), frozenset(downs)


def _pair(
    up: str,
    ups: Sequence[TokenValue],
    down: str,
    downs: Sequence[TokenValue],
    marked: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset()),
    *,
    percent: bool = False,
) -> list[dict[str, Any]]:
    """Return two token tables whose bars have one scale."""
    top = max([abs(t.value) for t in (*ups, *downs)], default=0.0) or 1.0
    shown = (lambda v: signed(100 * v) + "\u2009pp") if percent else signed
    return [
        {
            "name": name,
            "kind": kind,
            "rows": [
                (visible(t.text), shown(t.value), round(100 * abs(t.value) / top), t.id in both)
                for t in tokens
            ],
        }
        for name, kind, tokens, both in (
            (up, "up", ups, marked[0]),
            (down, "down", downs, marked[1]),
        )
        if tokens
    ]


def _causal(facts: FeatureFacts) -> Mapping[str, Any] | None:
    if facts.causal is None:
        return None
    found = facts.causal
    return {
        "effect": found,
        "logits": _pair(
            "Logit up", found.logits_up, "Logit down", found.logits_down, _marked(facts)
        ),
        "probabilities": _pair(
            "More likely", found.promoted, "Less likely", found.suppressed, percent=True
        ),
    }


def _groups(facts: FeatureFacts, contexts: Sequence[Context]) -> list[dict[str, Any]]:
    """Return contexts by kind: the top ones, then quantile by quantile, strongest first."""
    kinds: dict[str, list[Context]] = {}
    for context in contexts:
        kinds.setdefault(context.kind, []).append(context)
    quantiles = sorted((kind for kind in kinds if kind != "top"), key=_quantile, reverse=True)
    last = _quantile(quantiles[0]) if quantiles else 0
    found = []
    for kind in [k for k in ("top",) if k in kinds] + quantiles:
        rows = sorted(kinds[kind], key=lambda context: -context.value)
        span = f"{number(rows[-1].value)} to {number(rows[0].value)}"
        title = (
            "Strongest firings"
            if kind == "top"
            else f"Sampled from group {_quantile(kind)} of {last} of its firings"
        )
        if kind != "top" and _quantile(kind) in (1, last):
            title += ", the strongest" if _quantile(kind) == last else ", the weakest"
        found.append(
            {
                "title": title,
                "span": span,
                "rows": [
                    {
                        "value": number(row.value),
                        "place": f"document {row.document}, token {row.position}",
                        "tokens": coloured(
                            row.tokens,
                            row.acts,
                            top=facts.max_act,
                            name=f"fires at {number(row.value)} on"
                            f" {visible(row.tokens[row.center])}",
                            peak=row.center,
                        ),
                    }
                    for row in rows
                ],
            }
        )
    return found


def _quantile(kind: str) -> int:
    return int(kind.removeprefix("quantile-"))
