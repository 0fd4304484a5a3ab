"""A folder of facts written by the real writer, with tokens that a page must not take for HTML."""

import random
from pathlib import Path
from typing import Any

import torch

from interventions.features.facts_write import write_store

HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror=window.pwned=1>",
    '" onmouseover="window.pwned=1',
    "' onfocus='window.pwned=1",
    "{{ 7 * 7 }}",
    "<!--",
    "&lt;b&gt;",
    "\u202eevil",
    "\u200b",
    "\x00",
    "\ud800",
]
WORDS = ["\n", "\n\n", "\t", " ", " wait", " music", "Wait", " the", " of", "<|im_end|>", "é", "…"]
SUBJECT: dict[str, Any] = {
    "model": "tiny/model",
    "sae": {"path": "runs/tiny sae"},
    "sae_label": "runs/tiny sae",
    "sae_hash": "ab" * 32,
    "hook_point": "blocks.3.hook_resid_post",
    "median_norm": 12.0,
    "norm_guard": 10.0,
    "dtype": "float32",
}


def make_facts(
    folder: Path,
    *,
    features: int = 12,
    vocabulary: int = 60,
    top: int = 6,
    quantiles: int = 4,
    each: int = 3,
    window: int = 10,
    silent: int | None = None,
    subject: dict[str, Any] | None = None,
) -> Path:
    """Write facts about `features` features, seeded; the one called `silent` never fired."""
    draw = random.Random(7)
    texts = [*WORDS, *(f" w{i}" for i in range(vocabulary - len(WORDS) - len(HOSTILE)))]
    texts += HOSTILE
    size = len(texts)
    fired = [feature != silent for feature in range(features)]
    peaks = [draw.uniform(5, 60) if on else 0.0 for on in fired]

    def some(count: int, on: bool = True) -> list[int]:
        return draw.sample(range(size), count) if on else []

    def falling(count: int, largest: float) -> list[float]:
        return sorted((largest * draw.random() for _ in range(count)), reverse=True)

    rows: dict[str, list[Any]] = {name: [] for name in ("feature", "rank", "kind", "value")}
    for name in ("document", "position", "row", "center", "ids", "acts"):
        rows[name] = []
    for feature in range(features):
        if not fired[feature]:
            continue
        kinds = ["top"] * top + [
            f"quantile-{q}" for q in range(1, quantiles + 1) for _ in range(each)
        ]
        for rank, kind in enumerate(kinds):
            share = 1 - 0.3 * rank / top if kind == "top" else int(kind[-1]) / (quantiles + 2)
            acts = [draw.random() * (draw.random() < 0.2) for _ in range(2 * window + 1)]
            acts = [min(act, share) * peaks[feature] for act in acts]
            acts[window] = share * peaks[feature]
            values = (feature, rank, kind, acts[window], rank, window + rank, rank, window)
            names = ("feature", "rank", "kind", "value", "document", "position", "row", "center")
            for name, value in zip(names, values, strict=True):
                rows[name].append(value)
            rows["ids"].append([draw.randrange(size) for _ in acts])
            rows["acts"].append(acts)
    table = {
        "feature": list(range(features)),
        "max_act": peaks,
        "mean_act": [peak / 3 for peak in peaks],
        "p999": [peak * 0.97 for peak in peaks],
        "density": [draw.uniform(1e-5, 0.05) if on else 0.0 for on in fired],
        "count": [draw.randrange(20, 900) if on else 0 for on in fired],
        "histogram_first": [10] * features,
        "histogram": [[draw.randrange(200) for _ in range(24)] if on else [] for on in fired],
        "promoted_ids": [some(10) for _ in fired],
        "promoted_values": [falling(10, 1.0) for _ in fired],
        "suppressed_ids": [some(10) for _ in fired],
        "suppressed_values": [sorted(-draw.random() for _ in range(10)) for _ in fired],
        "top_tokens_ids": [some(8, on) for on in fired],
        "top_tokens_values": [falling(8 * (peak > 0), peak) for peak in peaks],
        "frequent_ids": [some(8, on) for on in fired],
        "frequent_share": [[0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.01, 0.01][: 8 * on] for on in fired],
        "frequent_mean": [[peak / 2] * 8 * on for peak, on in zip(peaks, fired, strict=True)],
        "cofire_features": [draw.sample(range(features), 4) if on else [] for on in fired],
        "cofire_count": [[40, 30, 20, 10][: 4 * on] for on in fired],
        "cofire_share": [[0.4, 0.3, 0.2, 0.1][: 4 * on] for on in fired],
        "cofire_pmi": [[3.1, 2.2, 0.4, -0.2][: 4 * on] for on in fired],
    }  # fmt: skip
    info = {
        "d_sae": features,
        "subject": SUBJECT if subject is None else subject,
        "text": {"sources": [{"docs": ["stdlib"]}]},
        "tokens": 20_000,
        "histogram": {"first_log2": -4.0, "step_log2": 0.25},
    }
    stats = {"max_act": torch.tensor(peaks), "median_norm": torch.tensor(12.0)}
    write_store(
        folder,
        info=info,
        features=table,
        contexts=rows,
        texts=[text.encode("utf-8", "replace").decode() for text in texts],
        stats=stats,
        sae_hash=info["subject"]["sae_hash"],
    )
    return folder
