"""Facts about features on disk: Parquet files that any program can read, and their reader.

    FOLDER/info.json           what was studied, on which text, with which settings and versions
    FOLDER/features.parquet    one row a feature, in the order of their indices
    FOLDER/contexts.parquet    one row a context, sorted by feature
    FOLDER/vocabulary.parquet  token id to its text
    FOLDER/stats.safetensors   max_act and the like, in the layout that lies beside an SAE
    FOLDER/causal.json, FOLDER/injection.json   of a shortlist, where they were measured

Contexts are written in small row groups, so that those of one feature are read without the rest.
"""

import bisect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from interventions.errors import FeatureError

INFO, FEATURES, CONTEXTS = "info.json", "features.parquet", "contexts.parquet"
VOCABULARY, CAUSAL, INJECTION = "vocabulary.parquet", "causal.json", "injection.json"
VERSION = 1


@dataclass(frozen=True)
class TokenValue:
    """A token of the vocabulary and a number about it; `text` keeps its spaces."""

    id: int
    text: str
    value: float


@dataclass(frozen=True)
class TokenShare:
    """A token that a feature fires on.

    Attributes:
        id, text: the token.
        share: of the sampled firings that are at this token.
        mean_act: over these.
    """

    id: int
    text: str
    share: float
    mean_act: float


@dataclass(frozen=True)
class CoFiring:
    """Another feature that is among the strongest where this one fires.

    Attributes:
        feature: the other one.
        count: sampled firings of this feature where it is.
        share: of the sampled firings.
        pmi: log of `share` over the other's density; 0 where it is there as often as anywhere.
    """

    feature: int
    count: int
    share: float
    pmi: float


@dataclass(frozen=True)
class Histogram:
    """Counts of activations; `counts[i]` are those in `[edges[i], edges[i + 1])`, log-spaced."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Context:
    """A stretch of text around one firing.

    Attributes:
        tokens: texts of the tokens, spaces kept.
        ids: of the tokens.
        acts: the feature's activation at each; 0 at sinks and special tokens.
        kind: `top`, or `quantile-k`: the k-th of equal groups of firings, 1 the weakest.
        value: activation at the firing.
        document: running number in the text.
        position: of the firing in its row of tokens.
        row: of tokens in the text.
        center: index of the firing in `tokens`.
    """

    tokens: list[str]
    ids: list[int]
    acts: list[float]
    kind: str
    value: float
    document: int
    position: int
    row: int
    center: int


@dataclass(frozen=True)
class CausalEffect:
    """What adding a feature does to the next token, measured; see `causal`.

    Attributes:
        value: activation that was added, SAE units.
        promoted, suppressed: tokens by mean change of probability.
        logits_up, logits_down: tokens by mean change of the logit, its mean over tokens removed.
        kl: mean KL divergence from the unsteered distribution, nats.
        control_kl: the same for a random direction of the same length.
        lens_rank_correlation: Spearman's, over the vocabulary, of the lens with the change.
        contexts: how many were measured.
    """

    value: float
    promoted: list[TokenValue]
    suppressed: list[TokenValue]
    logits_up: list[TokenValue]
    logits_down: list[TokenValue]
    kl: float
    control_kl: float
    lens_rank_correlation: float | None
    contexts: int


@dataclass(frozen=True)
class Injection:
    """Whether a feature fires on its tokens alone; see `injection`.

    Attributes:
        verdict: `token`, `context`, `mixed`.
        tokens: that were put in.
        fires: share of injections that reach `level`, over both kinds of context.
        baseline: the same for tokens drawn from the text.
        neutral, random: `fires` in each kind of context.
        low, high: 95 % Wilson interval of `fires`.
        count: injections, and as many for the baseline.
        level: activation that counts as firing.
    """

    verdict: str
    tokens: list[TokenValue]
    fires: float
    baseline: float
    neutral: float
    random: float
    low: float
    high: float
    count: int
    level: float


@dataclass(frozen=True)
class FeatureFacts:
    """All that is known of one feature, but for its contexts.

    Attributes:
        feature: index.
        max_act, mean_act, p999: largest, mean and 99.9th percentile of its activations, SAE units.
        density: share of tokens where it fires.
        count: tokens where it fires.
        histogram: of its activations.
        promoted, suppressed: tokens by the logit lens, strongest first; empty without a lens.
        top_tokens: different tokens with the largest activation each, largest first.
        frequent_tokens: tokens of a uniform sample of its firings, most frequent first.
        cofiring: features among the strongest where it fires, highest `pmi` first.
        causal, injection: of a shortlist; None where they were not measured.
    """

    feature: int
    max_act: float
    mean_act: float
    p999: float
    density: float
    count: int
    histogram: Histogram
    promoted: list[TokenValue]
    suppressed: list[TokenValue]
    top_tokens: list[TokenValue]
    frequent_tokens: list[TokenShare]
    cofiring: list[CoFiring]
    causal: CausalEffect | None
    injection: Injection | None


class FactStore:
    """A folder of facts, opened for reading. Nothing is loaded before it is asked for."""

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        """Take a folder and the content of its `info.json`; `open` checks both."""
        self.folder, self.info = folder, info
        self._last_group: tuple[int, Any] | None = None

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Return the facts in a folder.

        Raises:
            FeatureError: it holds no facts, or those of another version.
        """
        path = Path(folder).expanduser()
        try:
            info = json.loads((path / INFO).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FeatureError(
                f"{path} holds no facts ({error}); make them with `sae-steered facts --out {path}`"
            ) from error
        version = info.get("version") if isinstance(info, dict) else None
        if version != VERSION:
            raise FeatureError(
                f"{path} holds facts of version {version}, this reads {VERSION}; make"
                f" them again with `sae-steered facts`"
            )
        if missing := [name for name in ("d_sae", "subject", "histogram") if name not in info]:
            raise _damaged(path / INFO, f"it lacks {', '.join(missing)}")
        return cls(path, info)

    @property
    def d_sae(self) -> int:
        """How many features there are."""
        return int(self.info["d_sae"])

    @property
    def subject(self) -> dict[str, Any]:
        """Model and SAE, as `Subject.describe()` gave them."""
        return self.info["subject"]

    @cached_property
    def features(self) -> Any:
        """All of `features.parquet`, a `pyarrow.Table` of `d_sae` rows; `.to_pandas()` works."""
        return self._table(FEATURES)

    @cached_property
    def vocabulary(self) -> list[str]:
        """Text of every token id, spaces kept."""
        return self._table(VOCABULARY)["text"].to_pylist()

    @cached_property
    def causal(self) -> dict[int, CausalEffect]:
        """Measured effects by feature; empty where none were measured."""
        lists = ("promoted", "suppressed", "logits_up", "logits_down")
        return {
            int(feature): CausalEffect(
                **{**row, **{name: _values(row[name]) for name in lists}},
            )
            for feature, row in self._shortlist(CAUSAL).items()
        }

    @cached_property
    def injections(self) -> dict[int, Injection]:
        """Verdicts of the injection check by feature; empty where none were measured."""
        return {
            int(feature): Injection(**{**row, "tokens": _values(row["tokens"])})
            for feature, row in self._shortlist(INJECTION).items()
        }

    def column(self, name: str) -> list[Any]:
        """Return one column of `features`, a value a feature."""
        return self.features[name].to_pylist()

    def feature(self, feature: int) -> FeatureFacts:
        """Return the facts of one feature.

        Raises:
            FeatureError: the index is outside the SAE.
        """
        self._check(feature)
        row = self.features.slice(feature, 1).to_pylist()[0]
        lists: dict[str, Any] = {
            name: self._tokens(row[f"{name}_ids"], row[f"{name}_values"])
            for name in ("promoted", "suppressed", "top_tokens")
        }
        names = self.vocabulary
        frequent = zip(
            row["frequent_ids"], row["frequent_share"], row["frequent_mean"], strict=True
        )
        together = zip(
            row["cofire_features"],
            row["cofire_count"],
            row["cofire_share"],
            row["cofire_pmi"],
            strict=True,
        )
        plain: Any = {k: row[k] for k in ("max_act", "mean_act", "p999", "density", "count")}
        return FeatureFacts(
            feature=feature,
            **plain,
            histogram=self._histogram(row["histogram_first"], row["histogram"]),
            **lists,
            frequent_tokens=[TokenShare(i, names[i], share, mean) for i, share, mean in frequent],
            cofiring=[CoFiring(*item) for item in together],
            causal=self.causal.get(feature),
            injection=self.injections.get(feature),
        )

    def contexts(self, feature: int) -> list[Context]:
        """Return the contexts of one feature: top ones, strongest first, then by quantile.

        Raises:
            FeatureError: the index is outside the SAE, or the file is damaged.
        """
        self._check(feature)
        file, last = self._context_groups
        # The feature's rows start in the first group that ends at or after it.
        group = bisect.bisect_left(last, feature)
        rows: list[dict[str, Any]] = []
        while group < len(last):
            table = self._group(file, group)
            found = table.filter(_compute().equal(table["feature"], feature)).to_pylist()
            rows += found
            if last[group] > feature or not found:
                break
            group += 1
        return list(self._contexts(rows))

    def _contexts(self, rows: Sequence[dict[str, Any]]) -> Iterator[Context]:
        names = self.vocabulary
        for row in rows:
            del row["feature"], row["rank"]
            yield Context(tokens=[names[i] for i in row["ids"]], **row)

    def _group(self, file: Any, group: int) -> Any:
        # Neighbours share groups: whoever goes through all features reads each group once.
        if self._last_group is None or self._last_group[0] != group:
            with _readable(self.folder / CONTEXTS):
                self._last_group = group, file.read_row_group(group)
        return self._last_group[1]

    def _table(self, name: str) -> Any:
        import pyarrow.parquet

        with _readable(self.folder / name):
            return pyarrow.parquet.read_table(self.folder / name)

    @cached_property
    def _context_groups(self) -> tuple[Any, list[int]]:
        import pyarrow.parquet

        with _readable(self.folder / CONTEXTS):
            file = pyarrow.parquet.ParquetFile(self.folder / CONTEXTS)
        number = file.schema_arrow.names.index("feature")
        meta = file.metadata
        groups = range(meta.num_row_groups)
        return file, [meta.row_group(g).column(number).statistics.max for g in groups]

    def _histogram(self, first: int, counts: list[int]) -> Histogram:
        low, step = self.info["histogram"]["first_log2"], self.info["histogram"]["step_log2"]
        edges = [2.0 ** (low + step * (first + i)) for i in range(len(counts) + bool(counts))]
        return Histogram(edges, counts)

    def _tokens(self, ids: Sequence[int], values: Sequence[float]) -> list[TokenValue]:
        names = self.vocabulary
        return [TokenValue(i, names[i], value) for i, value in zip(ids, values, strict=True)]

    def _shortlist(self, name: str) -> dict[str, dict[str, Any]]:
        path = self.folder / name
        if not path.is_file():
            return {}
        with _readable(path):
            return json.loads(path.read_text(encoding="utf-8"))["features"]

    def _check(self, feature: int) -> None:
        if not 0 <= feature < self.d_sae:
            raise FeatureError(
                f"feature {feature} is outside 0..{self.d_sae - 1} of {self.folder}; name a feature"
                f" of this SAE"
            )


def _values(rows: Sequence[dict[str, Any]]) -> list[TokenValue]:
    return [TokenValue(**row) for row in rows]


def _compute() -> Any:
    import pyarrow.compute

    return pyarrow.compute


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, why: str) -> FeatureError:
    plain = " ".join(why.split())
    return FeatureError(
        f"{path} is damaged or missing ({plain}); make these facts again with `sae-steered facts`"
    )
