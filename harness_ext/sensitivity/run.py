"""One SAE from examples to sensitivities: collect, ask, read, count."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness_ext.errors import SensitivityError
from harness_ext.llm.session import Usage
from harness_ext.llm.settings import LLMSettings
from harness_ext.sensitivity import measure, writer
from harness_ext.sensitivity.measure import Rate, Read
from harness_ext.sensitivity.prompts import cleaned, copied, marked
from harness_ext.sensitivity.writer import Estimate, Written
from interventions.errors import FeatureError
from interventions.features import examples as collected
from interventions.features.examples import Example
from interventions.fingerprint import digest, weights_digest
from interventions.subject import Subject
from interventions.text.config import TextConfig
from interventions.train.files import write_text

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How one SAE is evaluated.

    Attributes:
        features: explicit indices; else `number` are drawn from those that are alive.
        number: how many; None for all.
        seed: of every draw.
        top, weighted: examples of each kind a feature.
        alive: firings that a feature must exceed to be drawn.
        per_call: texts that are asked for.
        attempts: requests a feature, where no text comes.
        max_length: tokens of a text that are read.
    """

    features: tuple[int, ...] | None = None
    number: int | None = 50
    seed: int = 42
    top: int = 10
    weighted: int = 5
    alive: int = collected.ALIVE
    per_call: int = 10
    attempts: int = 3
    max_length: int = measure.MAX_LENGTH


@dataclass(frozen=True, eq=False)
class Collected:
    """Examples, and how often features fire.

    Attributes:
        examples: by feature; empty where it never fires on this text.
        texts: the same as `marked` text.
        density: share of tokens; None where it is not known.
        max_act: largest activation, likewise.
        seconds: that reading the text took, in this run or in the one that kept the examples.
    """

    examples: Mapping[int, list[Example]]
    texts: Mapping[int, list[str]]
    density: Mapping[int, float]
    max_act: Mapping[int, float]
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class FeatureResult:
    """What was found of one feature; `control` and `injection` may be empty.

    `copied` says of each generated text whether it is one of the examples again.
    """

    feature: int
    status: str
    generated: list[Read]
    original: list[Read]
    generated_texts: list[str]
    copied: list[bool]
    control: Rate
    injection: Rate
    injection_baseline: Rate
    injected_token: str | None
    density: float | None
    max_act: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data: rates with intervals, no texts."""
        return {
            "feature": self.feature,
            "status": self.status,
            "generated": measure.rate(self.generated).as_dict(),
            "generated_new": measure.rate(
                [r for r, old in zip(self.generated, self.copied, strict=True) if not old]
            ).as_dict(),
            "copied": sum(self.copied),
            "original": measure.rate(self.original).as_dict(),
            "control": self.control.as_dict(),
            "injection": self.injection.as_dict(),
            "injection_baseline": self.injection_baseline.as_dict(),
            "injected_token": self.injected_token,
            "density": self.density,
            "max_act": self.max_act,
        }


@dataclass(eq=False)
class Evaluation:
    """All of one SAE's evaluation; `seconds` is by part: text, llm, measure."""

    subject: Subject
    settings: Settings
    collected: Collected
    written: list[Written]
    results: list[FeatureResult]
    usage: Usage
    estimate: Estimate
    seconds: dict[str, float] = field(default_factory=dict)


def collect(subject: Subject, text: TextConfig, settings: Settings, folder: Path) -> Collected:
    """Return examples of the features that the settings name or draw.

    Args:
        subject: model and SAE.
        text: what to read; twice where features are drawn.
        settings: which features, how many examples.
        folder: keeps the first pass's sums, and beside it the examples, so that a second call
            with the same arguments reads no text.

    Raises:
        FeatureError: no feature is alive, or one is outside the SAE.
    """
    subject.sae.check_features(settings.features or ())
    key = digest(
        {
            "subject": subject.describe(),
            "weights": weights_digest(subject.model),
            "text": text.model_dump(mode="json"),
            # What is asked of the writer changes no example.
            "settings": {
                k: v
                for k, v in asdict(settings).items()
                if k not in ("per_call", "attempts", "max_length")
            },
        }
    )
    stored = folder.with_name(f"{folder.name}-examples.json")
    if (known := _read(stored, key)) is not None:
        return Collected(known[0], marked_texts(subject, known[0]), *known[1:])
    begin = time.perf_counter()
    found = collected.density(subject, text, folder=folder)
    features = (
        list(settings.features)
        if settings.features is not None
        else collected.choose(found, settings.number, settings.seed, alive=settings.alive)
    )
    examples = collected.collect(
        subject, text, features, top=settings.top, weighted=settings.weighted, seed=settings.seed
    )
    densities = {f: int(found.counts[f]) / max(found.tokens, 1) for f in features}
    largest = {f: float(found.largest[f]) for f in features}
    seconds = time.perf_counter() - begin
    _write(stored, key, examples, densities, largest, seconds)
    return Collected(examples, marked_texts(subject, examples), densities, largest, seconds)


def _write(
    path: Path,
    key: str,
    examples: Mapping[int, Sequence[Example]],
    densities: Mapping[int, float],
    largest: Mapping[int, float],
    seconds: float,
) -> None:
    rows = [
        [f, densities[f], largest[f], [[one.ids, one.acts, one.kind] for one in some]]
        for f, some in examples.items()
    ]
    write_text(path, json.dumps({"key": key, "seconds": seconds, "features": rows}))


def _read(
    path: Path, key: str
) -> tuple[dict[int, list[Example]], dict[int, float], dict[int, float], float] | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["key"] != key or "seconds" not in data:
            return None
    except (ValueError, LookupError, TypeError) as error:
        raise SensitivityError(
            f"{path} holds no examples ({error}); delete it, and the text is read again"
        ) from None
    rows = data["features"]
    return (
        {f: [Example(tuple(i), tuple(a), kind) for i, a, kind in some] for f, _, _, some in rows},
        {f: density for f, density, _, _ in rows},
        {f: largest for f, _, largest, _ in rows},
        data["seconds"],
    )


def from_facts(subject: Subject, folder: Path, settings: Settings) -> Collected:
    """Return examples from a fact store: its top contexts, and those of weaker quantiles.

    Args:
        subject: the SAE that the facts are about.
        folder: of the store.
        settings: which features, how many examples.

    Raises:
        SensitivityError: the facts are of another SAE.
        FeatureError: there is no such store, or no feature is alive.
    """
    import random

    from interventions.features.facts_store import FactStore

    begin = time.perf_counter()
    store = FactStore.open(folder)
    if store.subject["sae_hash"] != subject.sae.content_hash:
        raise SensitivityError(
            f"{folder} holds facts of SAE {store.subject['sae_hash'][:12]}, this is"
            f" {subject.sae.content_hash[:12]}; make them with `sae-steered facts` for this SAE"
        )
    counts, densities = store.column("count"), store.column("density")
    largest = store.column("max_act")
    features = list(settings.features or ())
    if settings.features is None:
        living = [f for f, count in enumerate(counts) if count > settings.alive]
        if not living:
            raise FeatureError(f"no feature fires more than {settings.alive} times in {folder}")
        number = len(living) if settings.number is None else min(settings.number, len(living))
        features = sorted(random.Random(settings.seed).sample(living, number))
    examples: dict[int, list[Example]] = {}
    for feature in features:
        contexts = store.contexts(feature)
        top = [c for c in contexts if c.kind == "top"][: settings.top]
        rest = [c for c in contexts if c.kind != "top"]
        random.Random(settings.seed * 1_000_003 + feature).shuffle(rest)
        chosen = [(c, "top") for c in top] + [(c, "weighted") for c in rest[: settings.weighted]]
        listed = [Example(tuple(c.ids), tuple(c.acts), kind) for c, kind in chosen]
        examples[feature] = sorted(listed, key=lambda one: -one.largest)
    return Collected(
        examples,
        marked_texts(subject, examples),
        {f: float(densities[f]) for f in features},
        {f: float(largest[f]) for f in features},
        time.perf_counter() - begin,
    )


def marked_texts(
    subject: Subject, examples: Mapping[int, Sequence[Example]]
) -> dict[int, list[str]]:
    """Return every example as the writer and the CSV files see it."""
    return {
        feature: [marked(one, measure.pieces(subject, one.ids)) for one in some]
        for feature, some in examples.items()
    }


def estimated(subject: Subject, found: Collected, settings: Settings) -> Estimate:
    """Return what asking the LLM will cost, before anything is sent."""
    asked = writer.prompts(found.texts, settings.per_call)

    def tokens(text: str) -> int:
        return len(subject.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return writer.estimate(asked, found.texts, settings.per_call, tokens)


def evaluate(
    subject: Subject,
    found: Collected,
    settings: Settings,
    llm: LLMSettings,
    *,
    progress: bool = True,
) -> Evaluation:
    """Return the sensitivities of all features in `found`.

    Args:
        subject: model and SAE.
        found: examples.
        settings: of the evaluation.
        llm: who writes.
        progress: show bars.

    Raises:
        LLMRequestError: the endpoint refused, or did not answer; what came is kept.
    """
    cost = estimated(subject, found, settings)
    asked = writer.prompts(found.texts, settings.per_call)
    (written, usage), llm_seconds = _timed(
        lambda: writer.write(
            asked, llm, number=settings.per_call, attempts=settings.attempts, progress=progress
        )
    )
    results, seconds = _timed(lambda: results_of(subject, found, written, settings))
    return Evaluation(
        subject,
        settings,
        found,
        written,
        results,
        usage,
        cost,
        {"text": found.seconds, "llm": llm_seconds, "measure": seconds},
    )


def results_of(
    subject: Subject, found: Collected, written: Sequence[Written], settings: Settings
) -> list[FeatureResult]:
    """Return what follows from the texts, arm by arm.

    Args:
        subject: model and SAE.
        found: examples.
        written: what the LLM wrote.
        settings: of the evaluation.
    """
    features = list(found.examples)
    texts = {one.feature: [cleaned(text) for text in one.texts] for one in written}
    status = {one.feature: one.status for one in written}
    old = {o.feature: [copied(t, found.texts[o.feature]) for t in o.texts] for o in written}

    def ids(text: str) -> tuple[int, ...]:
        return measure.tokenize(subject, text, settings.max_length)

    def originals(feature: int) -> list[str]:
        return [str(subject.tokenizer.decode(list(one.ids))) for one in found.examples[feature]]

    generated = _arm(subject, {f: [ids(t) for t in texts.get(f, [])] for f in features})
    original = _arm(subject, {f: [ids(t) for t in originals(f)] for f in features})
    partner = measure.others([f for f in features if texts.get(f)], settings.seed)
    control = _arm(
        subject, {f: [ids(t) for t in texts[partner[f]]] if f in partner else [] for f in features}
    )
    neighbours = measure.others([f for f in features if found.examples[f]], settings.seed + 1)
    puts: dict[int, list[tuple[int, ...]]] = {}
    plains: dict[int, list[tuple[int, ...]]] = {}
    places: dict[int, int] = {}
    tokens: dict[int, str | None] = dict.fromkeys(features)
    for f in features:
        token = measure.typical_token(found.examples[f])
        contexts = found.examples[neighbours[f]] if f in neighbours else []
        same = [c for c in contexts if len(c.ids) == len(contexts[0].ids)]
        if token is None or not same:
            puts[f], plains[f], places[f] = [], [], 0
            continue
        puts[f], plains[f], places[f] = measure.injected(subject, token, same)
        tokens[f] = measure.pieces(subject, [token])[0]
    put, plain = _arm(subject, puts), _arm(subject, plains)
    return [
        FeatureResult(
            f,
            status.get(f, "no examples"),
            generated[f],
            original[f],
            texts.get(f, []),
            old.get(f, []),
            measure.rate(control[f]),
            measure.rate_at(put[f], places[f]),
            measure.rate_at(plain[f], places[f]),
            tokens[f],
            found.density.get(f),
            found.max_act.get(f),
        )
        for f in features
    ]


def _arm(subject: Subject, texts: Mapping[int, Sequence[Sequence[int]]]) -> dict[int, list[Read]]:
    pairs = [(ids, feature) for feature, some in texts.items() for ids in some]
    read = measure.by_feature(pairs, measure.activations(subject, pairs))
    return {feature: read.get(feature, []) for feature in texts}


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def settings_dict(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain data."""
    return asdict(settings)
