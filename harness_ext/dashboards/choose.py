"""Which features get a page, in which order, and what they are called."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interventions.default_model import default_sae_path
from interventions.errors import FeatureError
from interventions.features.facts_store import FactStore
from interventions.features.scored import read_scored

ORDERS = ("max_act", "density", "mean_act", "p999", "count")
"""Columns that `--by` takes."""


@dataclass(frozen=True)
class Score:
    """The scores of one file.

    Attributes:
        name: the kind of score, and the file where two are of one kind.
        values: by feature.
        ranks: by feature, 1 the best.
    """

    name: str
    values: dict[int, float]
    ranks: dict[int, int]


@dataclass(frozen=True)
class Choice:
    """Features in the order of their pages, with the scores and labels that are known.

    Attributes:
        features: indices, each once.
        scores: of files.
        labels: by feature.
    """

    features: list[int]
    scores: list[Score]
    labels: dict[int, str]


def choose(
    store: FactStore,
    *,
    features: str | None = None,
    scores: Sequence[Path] = (),
    top: int | None = None,
    by: str = "max_act",
    labels: Path | None = None,
) -> Choice:
    """Return the features to show.

    Args:
        store: facts.
        features: such as `3036,292,100-120`, in this order; otherwise those of `scores`, best
            first; otherwise those with the largest `by` among those that fired.
        scores: files of `sae-steered score` and `find`; of this SAE.
        top: at most so many.
        by: one of `ORDERS`.
        labels: a `.json` of feature to label, or a `.csv` with `feature` and `label`. The default
            SAE has a few of its own.

    Raises:
        FeatureError: there is no such feature, none is left, or a file does not fit.
    """
    if top is not None and top < 1:
        raise FeatureError(f"--top {top} shows nothing; give 1 or more")
    known = [_score(store, path) for path in scores]
    twice = {s.name for s in known if sum(o.name == s.name for o in known) > 1}
    known = [
        Score(f"{s.name} ({path.name})", s.values, s.ranks) if s.name in twice else s
        for s, path in zip(known, scores, strict=True)
    ]
    if features is not None:
        chosen = _listed(features, store)
    elif known:
        chosen = list(dict.fromkeys(feature for score in known for feature in score.values))
    else:
        chosen = _largest(store, by)
    chosen = chosen[:top]
    if not chosen:
        raise FeatureError(
            f"no feature is left to show: of {store.d_sae} in {store.folder} none fired, or the"
            f" scores list none"
        )
    return Choice(chosen, known, {**_named(store), **({} if labels is None else _labels(labels))})


def _listed(text: str, store: FactStore) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise FeatureError(f"'{part.strip()}' is no feature; --features takes 12,345,100-120")
        if dash and int(last) < int(first):
            raise FeatureError(f"'{part.strip()}' counts down; write {last}-{first}")
        if int(last or first) >= store.d_sae:
            raise FeatureError(
                f"feature {last or first} is outside 0..{store.d_sae - 1} of {store.folder}; name"
                f" features of this SAE"
            )
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))


def _largest(store: FactStore, by: str) -> list[int]:
    if by not in ORDERS:
        raise FeatureError(f"features cannot be ordered by '{by}'; choose {', '.join(ORDERS)}")
    values, counts = store.column(by), store.column("count")
    fired = [feature for feature in range(store.d_sae) if counts[feature] > 0]
    return sorted(fired, key=lambda feature: (-values[feature], feature))


def _score(store: FactStore, path: Path) -> Score:
    found = read_scored(path)
    theirs, ours = found.subject.get("sae_hash"), store.subject["sae_hash"]
    if theirs != ours:
        raise FeatureError(
            f"{path} scores features of the SAE {str(theirs)[:12]}, and {store.folder} has facts of"
            f" {ours[:12]}; give files of one SAE"
        )
    rows = {int(row["feature"]): row.get("score") for row in found.features}
    values = {feature: float(score) for feature, score in rows.items() if score is not None}
    ranks = {feature: rank for rank, feature in enumerate(rows, 1)}
    return Score(found.kind, values, ranks)


def _named(store: FactStore) -> dict[int, str]:
    """Return the named features that ship with the default SAE, if the facts are of it."""
    if not store.subject["sae"].get("default"):
        return {}
    from interventions.sae.io import load_sae
    from interventions.spec import SAERef

    if load_sae(SAERef(default=True)).content_hash != store.subject["sae_hash"]:
        return {}
    path = default_sae_path() / "named_features.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {int(row["feature"]): f"{row['name']}: {row['description']}" for row in rows}


def _labels(path: Path) -> dict[int, str]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            rows = csv.DictReader(text.splitlines())
            return {int(row["feature"]): row["label"] for row in rows}
        return {int(feature): str(label) for feature, label in json.loads(text).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeatureError(
            f"{path} holds no labels ({type(error).__name__}: {error}); give a .json of feature to"
            f" label, or a .csv with the columns feature and label"
        ) from error
