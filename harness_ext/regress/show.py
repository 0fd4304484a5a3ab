"""A verdict for a terminal, for Markdown, and as JUnit XML."""

from collections.abc import Sequence
from pathlib import Path

# Only written, never parsed: the standard library does, and the format has no better keeper.
from xml.etree import ElementTree as ET

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness_ext.regress.check import Check, Settings, Verdict

_HEADS = ("run", "task", "metric", "before", "after", "change", "margin", "p", "sees", "")
_WORDS = {"passed": "passed", "regressed": "REGRESSED", "not comparable": "NOT COMPARABLE"}


def headline(verdict: Verdict) -> str:
    """Return the outcome in one sentence."""
    if verdict.outcome == "not comparable":
        aspects = list(dict.fromkeys(aspect for _, aspect, _ in verdict.differences))
        return f"NOT COMPARABLE: differs in {', '.join(aspects)}"
    tested = [c for c in verdict.checks if c.p is not None]
    failed = [c for c in tested if c.failed]
    if failed:
        names = ", ".join(f"{c.metric} of {c.run} on {c.task}" for c in failed)
        proof = "not shown to be within their margins" if not _regression(verdict) else "worse"
        return f"REGRESSED: {len(failed)} of {len(tested)} checks {proof}: {names}"
    return f"passed: {len(tested)} checks, none " + (
        "worse than its margin" if _regression(verdict) else "outside its margin"
    )


def explain(settings: Settings) -> str:
    """Return the rule in words."""
    if settings.rule == "regression":
        return (
            f"A check fails if the one-sided paired test rejects 'the loss is at most the margin'"
            f" with a Holm-corrected p of at most {settings.level:g}: the chance of any false"
            f" alarm is at most that. 'sees' is the loss found with 80 % power."
        )
    return (
        f"A check fails unless the one-sided paired test rejects 'the loss is at least the margin'"
        f" with p of at most {settings.level:g}. All must pass, so nothing is corrected."
    )


def render(verdict: Verdict) -> RenderableType:
    """Return the verdict for a terminal."""
    style = {"passed": "bold green", "regressed": "bold red"}.get(verdict.outcome, "bold yellow")
    parts: list[RenderableType] = [Text(headline(verdict), style=style)]
    for run, aspect, text in verdict.differences:
        parts.append(Text(f"  {run}: {aspect}: {text}"))
    if verdict.differences:
        parts.append(Text(_remedy(verdict), style="dim"))
    if verdict.checks:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for i, head in enumerate(_HEADS):
            table.add_column(head, justify="left" if i < 3 else "right", overflow="fold")
        for c in verdict.checks:
            table.add_row(*_cells(c), style="red" if c.failed else "")
        parts.append(table)
    parts += [Text(line, style="dim") for line in _lines(verdict)]
    return Group(*parts)


def markdown(verdict: Verdict) -> str:
    """Return the verdict as Markdown, such as for a job's summary."""
    out = [f"### {headline(verdict)}", ""]
    for run, aspect, text in verdict.differences:
        out.append(f"- **{_escape(run)}**, {aspect}: {_escape(text)}")
    if verdict.differences:
        out += ["", _remedy(verdict), ""]
    if verdict.checks:
        out.append("| " + " | ".join(_HEADS) + " |")
        out.append("|" + " --- |" * 3 + " ---: |" * (len(_HEADS) - 3))
        out += ["| " + " | ".join(_escape(x) for x in _cells(c)) + " |" for c in verdict.checks]
        out.append("")
    out += [f"- {_escape(line)}" for line in _lines(verdict)]
    return "\n".join(out) + "\n"


def write_junit(verdict: Verdict, path: Path) -> None:
    """Write the verdict as JUnit XML: a test case a check, an error where nothing is comparable."""
    suite = ET.Element(
        "testsuite",
        name="sae-steered regress",
        tests=str(len(verdict.checks) + len(verdict.differences)),
        failures=str(sum(c.failed for c in verdict.checks)),
        errors=str(len(verdict.differences)),
        skipped=str(sum(c.p is None for c in verdict.checks)),
    )
    for c in verdict.checks:
        case = ET.SubElement(suite, "testcase", classname=f"{c.run}.{c.task}", name=c.metric)
        line = _plain(
            "; ".join(f"{h} {x}" for h, x in zip(_HEADS[3:9], _cells(c)[3:9], strict=True))
        )
        if c.p is None:
            ET.SubElement(case, "skipped", message=_plain(c.note))
        elif c.failed:
            ET.SubElement(case, "failure", message=line).text = _plain(explain(verdict.settings))
        else:
            ET.SubElement(case, "system-out").text = line
    for run, aspect, text in verdict.differences:
        case = ET.SubElement(suite, "testcase", classname=run, name=f"comparable: {aspect}")
        ET.SubElement(case, "error", message=_plain(text))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _cells(c: Check) -> tuple[str, ...]:
    change = None if c.before is None or c.after is None else c.after - c.before
    sign = {"lower": "-", "higher": "+", "either": "±"}[c.direction]
    word = "failed" if c.failed else "ok" if c.p is not None else c.note
    more = "" if c.broken is None else f" ({c.broken} worse, {c.fixed} better of {c.n})"
    return (
        c.run,
        c.task,
        c.metric,
        _number(c.metric, c.before),
        _number(c.metric, c.after),
        _number(c.metric, change, signed=True) + more,
        sign + _number(c.metric, c.margin),
        "" if c.p_corrected is None else f"{c.p_corrected:.3g}",
        "" if c.visible is None else sign + _number(c.metric, c.visible),
        word,
    )


def _number(metric: str, value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "undefined"
    if metric.startswith("mean_"):
        return f"{value:+.1f}" if signed else f"{value:.1f}"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f} %"


def _lines(verdict: Verdict) -> Sequence[str]:
    changed = verdict.settings.changed
    told = [f"differs on purpose, not compared: {', '.join(changed)}"] if changed else []
    noted = [f"differs and is no reason to fail: {line}" for line in verdict.noted]
    return [explain(verdict.settings), *told, *verdict.left_out, *noted]


def _remedy(verdict: Verdict) -> str:
    aspects = dict.fromkeys(aspect for _, aspect, _ in verdict.differences if aspect != "run")
    flag = ",".join(aspects)
    return (
        "Run it as the baseline was, or make a new baseline with `update`"
        + (f"; if that is what is tested: --changed {flag}" if flag else "")
        + "."
    )


def _regression(verdict: Verdict) -> bool:
    return verdict.settings.rule == "regression"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _plain(text: str) -> str:
    """Return text without the control characters that XML cannot hold."""
    return "".join(ch for ch in text if ch >= " " or ch in "\t\n")
