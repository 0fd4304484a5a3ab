"""One SAE from examples to sensitivities: ask, read, count."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from harness_ext.llm.session import Usage
from harness_ext.llm.settings import LLMSettings
from harness_ext.sensitivity import measure, writer
from harness_ext.sensitivity.collected import Collected, Settings
from harness_ext.sensitivity.measure import Rate, Read
from harness_ext.sensitivity.prompts import cleaned, copied
from harness_ext.sensitivity.writer import Estimate, Written
from interventions.subject import Subject

T = TypeVar("T")


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
