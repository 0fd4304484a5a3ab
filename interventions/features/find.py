"""Finding features in a folder of facts: by tokens, by density, by largest activation."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interventions.errors import FeatureError
from interventions.features.facts_store import FactStore
from interventions.features.scored import Scored, read_scored

_COLUMNS = (
    *("feature", "score", "max_act", "mean_act", "density", "count", "share"),
    *("promotes", "suppresses", "makes", "activates_on"),
)
SORTS = ("score", "max_act", "mean_act", "density", "count")


@dataclass(frozen=True)
class TokenQuery:
    """Which tokens are meant.

    A word stands for every token that equals it without case and surrounding spaces; a regular
    expression, in slashes, is searched in the token as it is, spaces and all.

    Attributes:
        words: lower case.
        patterns: regular expressions.
    """

    words: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()

    def ids(self, vocabulary: Sequence[str]) -> set[int]:
        """Return the ids of the tokens that are meant."""
        return {
            number
            for number, text in enumerate(vocabulary)
            if text.strip().lower() in self.words
            or any(pattern.search(text) for pattern in self.patterns)
        }

    def unknown(self, vocabulary: Sequence[str]) -> list[str]:
        """Return the words that no token equals, as a model that splits them has none."""
        return sorted(self.words - {text.strip().lower() for text in vocabulary})


def parse_tokens(texts: Sequence[str]) -> TokenQuery:
    """Return the query of words, `/regular expressions/` and `@files` of them, one a line.

    A line of a file that is empty or begins with `#` is left out.

    Raises:
        FeatureError: a file cannot be read, an expression is wrong, or nothing is named.
    """
    words, patterns = set(), []
    todo = list(texts)
    while todo:
        text = todo.pop(0)
        if text.startswith("@") and len(text) > 1:
            try:
                lines = Path(text[1:]).expanduser().read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise FeatureError(f"word list {text[1:]} cannot be read: {error}") from error
            todo = [line for line in lines if line.strip() and line[0] not in "#@"] + todo
        elif len(text) > 2 and text[0] == text[-1] == "/":
            try:
                patterns.append(re.compile(text[1:-1]))
            except re.error as error:
                raise FeatureError(
                    f"'{text}' is no regular expression: {error}; correct it, or leave the slashes"
                    f" out for a plain word"
                ) from error
        else:
            words.add(text.strip().lower())
    words.discard("")
    if not words and not patterns:
        raise FeatureError(f"no word or expression in {list(texts)}; name one")
    return TokenQuery(frozenset(words), tuple(patterns))


@dataclass(frozen=True)
class Query:
    """What is looked for; every condition that is given must hold.

    Attributes:
        promotes, suppresses: a token among the `top` of the logit lens.
        makes: a token among the `top` that become likelier in the measured effect.
        activates_on: a token among the `top` with the largest activations.
        mostly_on: tokens with at least `share` of the sampled firings together.
        share: for `mostly_on`.
        top: how far down the lists are looked.
        density, max_act: smallest and largest that pass, None where open.
        verdict: of the token-injection check.
        scores: by name of a ranking, score by feature; only features that are in all pass, and
            the first one is the `score`.
        sort: one of `SORTS`; without a ranking `score` is the strongest match of the first
            token condition (its logit, change of probability, activation or share), or `max_act`.
        ascending: smallest first.
    """

    promotes: TokenQuery | None = None
    suppresses: TokenQuery | None = None
    makes: TokenQuery | None = None
    activates_on: TokenQuery | None = None
    mostly_on: TokenQuery | None = None
    share: float = 0.5
    top: int = 10
    density: tuple[float | None, float | None] = (None, None)
    max_act: tuple[float | None, float | None] = (None, None)
    verdict: str | None = None
    scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    sort: str = "score"
    ascending: bool = False


@dataclass(frozen=True)
class Found:
    """Features that pass, best first, and how many each condition removed.

    Attributes:
        features: rows with `feature`, `score`, `max_act`, `mean_act`, `density`, `count`, and
            the tokens that matched, a column a condition.
        removed: condition to how many features of those left before it failed it.
        notes: what a reader must know, one sentence each.
    """

    features: list[dict[str, Any]]
    removed: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find(store: FactStore, query: Query) -> Found:
    """Return the features that pass every condition.

    Raises:
        FeatureError: none passes (the message says which condition removed how many), the store
            lacks what a condition needs, or no token is meant by one.
    """
    notes = _unknown_words(store, query)
    numbers = {name: store.column(name) for name in ("max_act", "mean_act", "density", "count")}
    rows = [
        {"feature": f, "score": None, **{name: column[f] for name, column in numbers.items()}}
        for f in range(store.d_sae)
    ]
    removed: dict[str, int] = {}

    def keep(label: str, test: Callable[[dict[str, Any]], bool]) -> None:
        nonlocal rows
        before = len(rows)
        rows = [row for row in rows if test(row)]
        removed[label] = before - len(rows)

    keep("fires in the text", lambda row: row["count"] > 0)
    for name in ("density", "max_act"):
        low, high = getattr(query, name)
        if low is not None:
            keep(f"{name} >= {low:g}", lambda row, n=name, x=low: row[n] >= x)
        if high is not None:
            keep(f"{name} <= {high:g}", lambda row, n=name, x=high: row[n] <= x)
    for name, scores in query.scores.items():
        keep(f"in the ranking {name}", lambda row, scores=scores: row["feature"] in scores)
        for row in rows:
            row[name] = float(scores[row["feature"]])
            row["score"] = row[name] if row["score"] is None else row["score"]
    for label, test in _token_conditions(store, query):
        keep(label, test)
    if query.verdict is not None:
        verdicts = store.injections
        if not verdicts:
            raise FeatureError(
                f"{store.folder} has no injection verdicts; add them with `sae-steered facts"
                f" --inject`"
            )
        keep(
            f"verdict {query.verdict}",
            lambda row: (
                row["feature"] in verdicts and verdicts[row["feature"]].verdict == query.verdict
            ),
        )
    if not rows:
        lost = "; ".join(f"`{label}` removed {n}" for label, n in removed.items() if n)
        raise FeatureError(f"no feature of {store.d_sae} passes: {lost}; loosen a condition")
    return Found(_sorted(rows, query), removed, notes)


def read_rankings(store: FactStore, files: Sequence[Path]) -> dict[str, dict[int, float]]:
    """Return scores by feature of each ranking, named after its file.

    Raises:
        FeatureError: a file is no ranking, is of another SAE, or two have one name.
    """
    found: dict[str, dict[int, float]] = {}
    for path in files:
        scored = read_scored(path)
        ours, theirs = store.subject["sae_hash"], scored.subject.get("sae_hash")
        if ours != theirs:
            raise FeatureError(
                f"{path} ranks features of {scored.subject.get('sae_label')} ({str(theirs)[:12]}),"
                f" the facts are of {store.subject['sae_label']} ({ours[:12]}); give a ranking of"
                f" the same SAE"
            )
        if path.stem in found or path.stem in _COLUMNS:
            raise FeatureError(f"{path}: '{path.stem}' is taken as a column; rename the file")
        found[path.stem] = {
            int(row["feature"]): float(row["score"])
            for row in scored.features
            if row["score"] is not None
        }
    return found


def ranking(store: FactStore, found: Found, settings: Mapping[str, Any]) -> Scored:
    """Return what was found as a ranking that can be written, compared and steered with."""
    subject = store.subject
    return Scored(
        "find",
        subject,
        store.info["text"],
        dict(settings),
        found.features,
        found.notes,
        {"facts": str(store.folder), "removed": found.removed},
    )


def _unknown_words(store: FactStore, query: Query) -> tuple[str, ...]:
    """Return a note on words that are no token, and so can never be found."""
    unknown: set[str] = set()
    for name in ("promotes", "suppresses", "makes", "activates_on", "mostly_on"):
        wanted: TokenQuery | None = getattr(query, name)
        if wanted is None:
            continue
        split = wanted.unknown(store.vocabulary)
        if not wanted.ids(store.vocabulary):
            raise FeatureError(
                f"`{name.replace('_', ' ')}` means no token of this model: "
                + (f"it has no single one for {', '.join(split)}" if split else "none matches")
                + "; name the first piece of the word, or give another /regular expression/"
            )
        unknown.update(split)
    if not unknown:
        return ()
    return (f"no single token of this model, so not looked for: {', '.join(sorted(unknown))}",)


def _token_conditions(
    store: FactStore, query: Query
) -> list[tuple[str, Callable[[dict[str, Any]], bool]]]:
    if (query.promotes or query.suppresses) and not store.info["settings"]["lens"]:
        raise FeatureError(
            f"{store.folder} was made without a logit lens; make facts with --lens 20, or use"
            f" `activates on`"
        )
    if query.makes and not store.causal:
        raise FeatureError(
            f"{store.folder} has no measured effects; add them with `sae-steered facts --causal`"
        )
    conditions: list[tuple[str, Callable[[dict[str, Any]], bool]]] = []
    for name, column in (
        ("promotes", "promoted"),
        ("suppresses", "suppressed"),
        ("activates_on", "top_tokens"),
    ):
        wanted: TokenQuery | None = getattr(query, name)
        if wanted is not None:
            ids, values = store.column(f"{column}_ids"), store.column(f"{column}_values")
            conditions.append(
                (
                    name.replace("_", " "),
                    _among(name, wanted.ids(store.vocabulary), ids, values, query.top, store),
                )
            )
    if query.makes is not None:
        effects = store.causal
        likelier = [effects[f].promoted if f in effects else [] for f in range(store.d_sae)]
        ids = [[token.id for token in tokens] for tokens in likelier]
        values = [[token.value for token in tokens] for tokens in likelier]
        conditions.append(
            (
                "makes likelier",
                _among("makes", query.makes.ids(store.vocabulary), ids, values, query.top, store),
            )
        )
    if query.mostly_on is not None:
        wanted_ids = query.mostly_on.ids(store.vocabulary)
        ids, shares = store.column("frequent_ids"), store.column("frequent_share")

        def mostly(row: dict[str, Any]) -> bool:
            feature = row["feature"]
            pairs = zip(ids[feature], shares[feature], strict=True)
            row["share"] = sum(share for i, share in pairs if i in wanted_ids)
            return row["share"] >= query.share

        conditions.append((f"mostly on, share >= {query.share:g}", mostly))
    return conditions


def _among(
    name: str,
    wanted: set[int],
    ids: Sequence[Sequence[int]],
    values: Sequence[Sequence[float]],
    top: int,
    store: FactStore,
) -> Callable[[dict[str, Any]], bool]:
    """Return a test for a wanted token among the first `top`; a match leaves a column."""

    def test(row: dict[str, Any]) -> bool:
        feature = row["feature"]
        pairs = list(zip(ids[feature], values[feature], strict=True))[:top]
        hits = [(i, value) for i, value in pairs if i in wanted]
        if not hits:
            return False
        row[name] = [store.vocabulary[i] for i, _ in hits]
        row.setdefault("match", hits[0][1])
        return True

    return test


def _sorted(rows: list[dict[str, Any]], query: Query) -> list[dict[str, Any]]:
    for row in rows:
        match = row.pop("match", row.get("share"))
        if row["score"] is None:
            row["score"] = float(row["max_act"] if match is None else abs(match))
    sign = 1 if query.ascending else -1
    return sorted(rows, key=lambda row: (sign * row[query.sort], row["feature"]))
