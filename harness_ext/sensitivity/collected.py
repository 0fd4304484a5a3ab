"""Examples of features from a text or a fact store, kept so that they are read once."""

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness_ext.errors import SensitivityError
from harness_ext.sensitivity import measure
from harness_ext.sensitivity.prompts import marked
from interventions.errors import FeatureError
from interventions.features import examples as drawing
from interventions.features.checkpoint import Checkpoint
from interventions.features.examples import Example
from interventions.features.firings import density, firings, pass_key
from interventions.fingerprint import digest
from interventions.subject import Subject
from interventions.text.config import TextConfig
from interventions.train.files import write_text


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
    alive: int = drawing.ALIVE
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
        seconds: that reading the text took, in this run or in those that kept what they read.
    """

    examples: Mapping[int, list[Example]]
    texts: Mapping[int, list[str]]
    density: Mapping[int, float]
    max_act: Mapping[int, float]
    seconds: float = 0.0


def collect(subject: Subject, text: TextConfig, settings: Settings, folder: Path) -> Collected:
    """Return examples of the features that the settings name or draw.

    Args:
        subject: model and SAE.
        text: what to read: once for how often features fire, once more for their firings.
        settings: which features, how many examples.
        folder: keeps both passes, so that a killed one goes on, and the examples, so that a second
            call with the same arguments reads no text; for any subjects, texts and settings.

    Raises:
        FeatureError: no feature is alive, or one is outside the SAE.
        SensitivityError: the examples in the folder are damaged.
    """
    subject.sae.check_features(settings.features or ())
    place = pass_key(subject, text)
    # What is asked of the writer changes no example.
    writers = ("per_call", "attempts", "max_length")
    kept = {k: v for k, v in asdict(settings).items() if k not in writers}
    stored = folder / f"examples-{digest([place, kept])}.json"
    if (known := _read(stored)) is not None:
        return _collected(subject, *known)
    counted = density(subject, text, folder=folder / f"density-{place}")
    features = (
        list(settings.features)
        if settings.features is not None
        else drawing.choose(counted, settings.number, settings.seed, alive=settings.alive)
    )
    key = pass_key(subject, text, features)
    found = firings(subject, text, features, folder=folder / f"firings-{key}")
    examples = drawing.draw(
        found,
        features,
        top=settings.top,
        weighted=settings.weighted,
        seed=settings.seed,
        lead=int(text.bos) * len(measure.front(subject)),
    )
    densities = {f: int(counted.counts[f]) / max(counted.tokens, 1) for f in features}
    largest = {f: float(counted.largest[f]) for f in features}
    seconds = counted.seconds + found.seconds
    _write(stored, examples, densities, largest, seconds)
    # Firings are large, and the examples are drawn; how often all fire serves other settings too.
    Checkpoint(folder / f"firings-{key}", key).clear()
    return _collected(subject, examples, densities, largest, seconds)


def _collected(
    subject: Subject,
    examples: dict[int, list[Example]],
    densities: Mapping[int, float],
    largest: Mapping[int, float],
    seconds: float,
) -> Collected:
    return Collected(examples, marked_texts(subject, examples), densities, largest, seconds)


def _write(
    path: Path,
    examples: Mapping[int, Sequence[Example]],
    densities: Mapping[int, float],
    largest: Mapping[int, float],
    seconds: float,
) -> None:
    rows = [
        [f, densities[f], largest[f], [[one.ids, one.acts, one.kind] for one in some]]
        for f, some in examples.items()
    ]
    write_text(path, json.dumps({"seconds": seconds, "features": rows}))


def _read(
    path: Path,
) -> tuple[dict[int, list[Example]], dict[int, float], dict[int, float], float] | None:
    if not path.is_file():
        return None
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        rows = data["features"]
        return (
            {f: [Example(tuple(i), tuple(a), k) for i, a, k in some] for f, _, _, some in rows},
            {f: density for f, density, _, _ in rows},
            {f: largest for f, _, largest, _ in rows},
            float(data["seconds"]),
        )
    except (ValueError, LookupError, TypeError) as error:
        raise SensitivityError(
            f"{path} holds no examples ({error}); delete it, and the text is read again"
        ) from None


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
    """Return every example as the writer and the CSV files see it.

    Tokens are marked that are over a hundredth of the feature's largest activation in its examples,
    not in each of them, as published.
    """
    found = {}
    for feature, some in examples.items():
        level = drawing.MARK_SHARE * max((one.largest for one in some), default=0.0)
        found[feature] = [marked(one, measure.pieces(subject, one.ids), level) for one in some]
    return found
