"""What an update of a baseline changes, for whoever reviews it."""

from harness_ext.regress.baseline import Baseline
from harness_ext.regress.comparable import differences

NEW = "new baseline"


def changes(before: Baseline | None, after: Baseline) -> list[str]:
    """Return a line for every run, task and metric whose value changes, and for what made them."""
    if before is None:
        return [
            f"{NEW}: {name}: {task}: {len(found.questions)} questions"
            for name, run in after.runs.items()
            for task, found in run.tasks.items()
        ]
    lines = [f"{d.run}: {d.aspect}: {d.text}" for d in differences(before, after)]
    lines += [f"{name}: new run" for name in after.runs if name not in before.runs]
    for name, run in before.runs.items():
        if name not in after.runs:
            continue
        for task, old in run.tasks.items():
            new = after.runs[name].tasks.get(task)
            if new is None:
                continue
            for metric in after.metrics:
                was, now = old.values.get(metric), new.values.get(metric)
                if was != now:
                    lines.append(f"{name}: {task}: {metric} {_text(was)} -> {_text(now)}")
            shared = old.questions.keys() & new.questions.keys()
            moved = sum(old.questions[q] != new.questions[q] for q in shared)
            if moved:
                lines.append(f"{name}: {task}: {moved} of {len(shared)} questions changed")
    return lines or ["nothing changed"]


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:g}"
