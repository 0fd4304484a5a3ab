"""The index of features: a table to search and sort, and how they are spread."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from harness_ext.dashboards.choose import Choice
from harness_ext.dashboards.links import neuronpedia_sae
from harness_ext.dashboards.view import number, share, snippet
from harness_ext.pages import Column, charts, render, table, visible
from interventions.features.facts_store import Context, FactStore, FeatureFacts

_TOKENS = 4  # of each kind in a row; all are searched
_BINS = 40


def index_row(facts: FeatureFacts, contexts: Sequence[Context], choice: Choice) -> dict[str, Any]:
    """Return a feature's row of the index."""
    # The strongest say more of a feature than the most frequent: those are mostly weak firings.
    fires = list(dict.fromkeys(visible(t.text) for t in facts.top_tokens))
    promotes = list(dict.fromkeys(visible(t.text) for t in facts.promoted))
    hidden = [visible(t.text) for t in (*facts.frequent_tokens, *facts.suppressed)]
    row: dict[str, Any] = {
        "feature": facts.feature,
        "href": f"features/{facts.feature}.html",
        "label": choice.labels.get(facts.feature),
        "max_act": facts.max_act,
        "density": facts.density,
        "injection": None if facts.injection is None else facts.injection.verdict,
        "fires": fires[:_TOKENS],
        "promotes": promotes[:_TOKENS],
        "example": snippet(contexts),
        "words": " ".join([*fires[_TOKENS:], *promotes[_TOKENS:], *hidden]),
    }
    for index, score in enumerate(choice.scores):
        row[f"score{index}"] = score.values.get(facts.feature)
    return row


def index_page(store: FactStore, choice: Choice, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the index as HTML.

    Args:
        store: facts.
        choice: what is shown; the table starts in its order.
        rows: of `index_row`, in that order.
    """
    return render(
        "features.html",
        n=len(rows),
        subject=store.subject,
        info=store.info,
        neuronpedia=neuronpedia_sae(store.subject["sae"]),
        about="Click a head to sort. The search looks into labels, tokens that a feature fires on,"
        " promotes or suppresses, and the example; several words must all be there.",
        table=table(
            _columns(choice, rows),
            rows,
            id="features",
            caption="Features",
            page_size=50,
        ),
        charts=_charts(rows),
        facts=_facts(store),
    )


def _columns(choice: Choice, rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    def column(key: str, title: str, kind: Any = "text", **more: Any) -> Column:
        # A column without a value in any row is noise on a phone.
        there = any(row.get(key) not in (None, "", []) for row in rows)
        return Column(key, title, kind, **{**more, "hidden": not there})

    scores = [
        column(f"score{i}", score.name, "number", digits=_digits(score.values.values()))
        for i, score in enumerate(choice.scores)
    ]
    peaks = _digits(row["max_act"] for row in rows)
    return [
        Column("feature", "Feature", "number", href="href"),
        Column("href", hidden=True),
        column("label", "Label"),
        column("fires", "Fires on", "list", help="tokens with the largest activations"),
        *scores,
        column("max_act", "Max act", "number", digits=peaks, help="largest activation"),
        column("density", "Density", "percent", digits=3, help="share of tokens where it fires"),
        column(
            "injection",
            "Injection",
            filter="select" if any(row["injection"] for row in rows) else "",
            help="does it fire on its tokens alone",
        ),
        column("promotes", "Promotes", "list", help="by the logit lens"),
        column("example", "Strongest firing"),
        Column("words", hidden=True, search=True),
    ]


def _digits(values: Any) -> int:
    """Return the digits after the point that leave three that count in the largest value."""
    top = max((abs(value) for value in values), default=0.0)
    return 2 if top == 0 else max(0, min(6, 2 - math.floor(math.log10(top))))


def _charts(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    named = (
        ("density", "Density", "share of tokens where a feature fires (log scale)", share),
        ("max_act", "Maximum activation", "SAE units (log scale)", number),
    )
    found = []
    for key, title, axis, shown in named:
        values = [math.log10(row[key]) for row in rows if row[key] > 0]
        if not values:
            continue
        low, high = min(values), max(values)
        step = (high - low or 1.0) / _BINS
        counts = [0] * _BINS
        for value in values:
            counts[min(_BINS - 1, int((value - low) / step))] += 1
        found.append(
            charts.histogram(
                [low + step * i for i in range(_BINS + 1)],
                counts,
                title=title,
                x=axis,
                y="features",
                format_x=lambda value, shown=shown: shown(10**value),
            )
        )
    return found


def _facts(store: FactStore) -> list[tuple[str, str]]:
    subject, info = store.subject, store.info
    guard = subject["norm_guard"]
    limit = "none" if guard is None else f"{guard:g} times the median residual norm"
    return [
        ("Model", f"{subject['model']} ({subject['dtype']})"),
        ("SAE", f"{subject['sae_label']}, {info['d_sae']:,} features"),
        ("SAE content", str(subject["sae_hash"])),
        ("Hook point", str(subject["hook_point"])),
        ("Tokens", f"{info['tokens']:,}"),
        ("Text", str(info["text"])),
        ("Left out", f"special tokens, and sinks: residual norm over {limit}"),
    ]
