"""Whether a run and a baseline measure the same thing, and if not, what differs."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from harness_ext.regress.baseline import Baseline, RunBaseline
from harness_ext.regress.runs import ASPECTS

CHANGEABLE = (*ASPECTS, "questions")
"""What `--changed` may name."""

_SHOWN = 90
_LISTED = 3


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    Attributes:
        run: name of the run.
        aspect: one of `CHANGEABLE`, or `run` for a run that is missing.
        text: what differs, with both values.
    """

    run: str
    aspect: str
    text: str


def differences(
    baseline: Baseline, current: Baseline, changed: Collection[str] = ()
) -> list[Difference]:
    """Return what keeps two measurements from being compared, nothing if nothing does.

    Args:
        baseline: what was committed.
        current: the run, counted in the same way.
        changed: aspects that differ on purpose, such as the model or the SAE under test.
    """
    found = []
    for name, before in baseline.runs.items():
        after = current.runs.get(name)
        if after is None:
            have = ", ".join(f"'{n}'" for n in current.runs) or "none"
            found.append(Difference(name, "run", f"the run has no '{name}'; it has {have}"))
            continue
        found += _identity(name, before, after, changed)
        found += [d for d in _questions(name, before, after) if d.aspect not in changed]
    return found


def _identity(
    name: str, before: RunBaseline, after: RunBaseline, changed: Collection[str]
) -> list[Difference]:
    found = []
    for aspect in ASPECTS:
        if aspect in changed:
            continue
        old, new = before.identity.get(aspect), after.identity.get(aspect)
        # A fingerprint holds the model and the SAE as well.
        if aspect == "intervention" and {"model", "sae"} & set(changed):
            old, new = _without_fingerprint(old), _without_fingerprint(new)
        if aspect in ("decoding", "data", "task") and isinstance(old, dict):
            # Tasks that only the run has are not compared.
            new = {k: v for k, v in new.items() if k in old} if isinstance(new, dict) else new
        if old == new:
            continue
        if old is None or new is None:
            silent, other = ("baseline", "run") if old is None else ("run", "baseline")
            told = new if old is None else old
            text = f"the {silent} does not say its {aspect}, the {other} has {_short(told)}"
        else:
            text = "; ".join(_changes(old, new))
        found.append(Difference(name, aspect, text))
    return found


def _without_fingerprint(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: v for k, v in value.items() if k != "fingerprint"}


def _questions(name: str, before: RunBaseline, after: RunBaseline) -> list[Difference]:
    found = []
    for task, old in before.tasks.items():
        new = after.tasks.get(task)
        if new is None:
            have = ", ".join(after.tasks) or "none"
            found.append(Difference(name, "questions", f"{task} was not run; the run has {have}"))
            continue
        lost = sorted(old.questions.keys() - new.questions.keys())
        if lost:
            found.append(
                Difference(
                    name,
                    "questions",
                    f"{task}: {len(lost)} of the baseline's {len(old.questions)} questions are not"
                    f" in the run ({_some(lost)})",
                )
            )
        shared = sorted(old.questions.keys() & new.questions.keys())
        arms = [
            q for q in shared if old.questions[q].answers.keys() != new.questions[q].answers.keys()
        ]
        if arms:
            was, now = (sorted(side.questions[arms[0]].answers) for side in (old, new))
            text = f"{task}: arms {', '.join(was)} in the baseline, {', '.join(now)} in the run"
            found.append(Difference(name, "questions", f"{text} ({_some(arms)})"))
        other = [
            q for q in shared
            if q not in arms and old.questions[q].digest != new.questions[q].digest
        ]  # fmt: skip
        if other:
            first = other[0]
            text = (
                f"{task}: {len(other)} of {len(shared)} questions, golds or hints were changed"
                f" ({_some(other)}; digest {old.questions[first].digest} in the baseline,"
                f" {new.questions[first].digest} in the run)"
            )
            found.append(Difference(name, "data", text))
    return found


def extra_questions(baseline: Baseline, current: Baseline) -> list[str]:
    """Return a line for everything that only the run has, and that is left out."""
    lines = []
    for name in current.runs.keys() - baseline.runs.keys():
        lines.append(f"run '{name}' is not in the baseline and was not checked")
    for name, before in baseline.runs.items():
        after = current.runs.get(name)
        if after is None:
            continue
        for task in after.tasks.keys() - before.tasks.keys():
            lines.append(f"{name}: task {task} is not in the baseline and was not checked")
        for task, old in before.tasks.items():
            new = after.tasks.get(task)
            more = sorted(new.questions.keys() - old.questions.keys()) if new else []
            if more:
                lines.append(
                    f"{name}: {task}: {len(more)} questions are not in the baseline and were left"
                    f" out ({_some(more)})"
                )
    return sorted(lines)


def _changes(old: Any, new: Any, path: str = "") -> list[str]:
    """Return every leaf that differs, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(old.keys() | new.keys())
        out = []
        for key in keys:
            if old.get(key) != new.get(key):
                out += _changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return out
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and path:
        return [
            text
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            if a != b
            for text in _changes(a, b, f"{path}[{i}]")
        ]
    where = f"{path}: " if path else ""
    return [f"{where}{_short(old)} in the baseline, {_short(new)} in the run"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _some(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
