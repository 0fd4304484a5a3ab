"""The table of `sae-steered evaluate`, for a terminal."""

from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness_ext.effects import Effect
from harness_ext.evaluate import COLUMNS, Comparison, Run, values
from harness_ext.metrics import GREY_BELOW, estimate, summarise
from harness_ext.records import Record
from harness_ext.verifier import same_answer

_EXCERPT = 240


def render(comparison: Comparison) -> RenderableType:
    """Return one table a task, with what its columns mean, and one question to read."""
    parts: list[RenderableType] = []
    for task in comparison.tasks:
        parts += [_table(comparison, task), _legend(comparison, task), _example(comparison, task)]
    parts += [_plain(comparison, task, names) for task, names in comparison.others.items()]
    return Group(*parts)


def _plain(comparison: Comparison, task: str, names: Iterable[str]) -> Table:
    """Return lm-eval's own metrics of a task that keeps no records, which nothing can pair."""
    table = _titled(
        f"{task}: lm-eval's metrics ± standard error, not compared question by question"
    )
    for name in names:
        table.add_column(name, justify="right")
    for run in comparison.runs:
        found = values(run, task)
        table.add_row(run.name, *(_value(*found.get(name, (None, None))) for name in names))
    return table


def _titled(title: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("intervention", overflow="fold", max_width=20)
    return table


def _value(value: float | None, error: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _table(comparison: Comparison, task: str) -> Table:
    base = comparison.records(comparison.runs[0], task)
    n_questions = len({record.qid for record in base})
    table = _titled(f"{task}: {n_questions} questions, {len(base)} responses a row")
    rows = [comparison.records(run, task) for run in comparison.runs]
    shown = [m for m in COLUMNS if any(estimate(row, m).value is not None for row in rows)]
    for metric in shown:
        table.add_column(COLUMNS[metric], justify="right")
    for run in comparison.runs:
        effects = comparison.effects(run, task) if run is not comparison.runs[0] else {}
        cells = [_cell(comparison.records(run, task), m, effects.get(m)) for m in shown]
        table.add_row(run.name, *cells)
    return table


def _cell(records: list[Record], metric: str, effect: Effect | None) -> Text:
    value = estimate(records, metric).value
    grey = metric.startswith("verbalization") and (estimate(records, "n_flips").value or 0) < (
        GREY_BELOW
    )
    text = Text(_number(metric, value), style="dim" if grey else "bold")
    if effect is None:
        return text
    if effect.difference is None or effect.lo is None or effect.hi is None:
        return text.append("\nno interval", style="dim")
    sure = effect.lo > 0 or effect.hi < 0
    return text.append(
        f"\n{_signed(metric, effect.difference)}"
        f"\n[{_signed(metric, effect.lo)},{_signed(metric, effect.hi)}]",
        style="dim" if grey else "green" if sure else "",
    )


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.1f}" if metric == "mean_tokens" else f"{100 * value:.1f} %"


def _signed(metric: str, value: float) -> str:
    return f"{value:+.1f}" if metric == "mean_tokens" else f"{100 * value:+.1f}"


def _legend(comparison: Comparison, task: str) -> Text:
    summary = next(iter(summarise(comparison.records(comparison.runs[0], task))[task].values()))
    lines = [
        "Below each value: difference to the baseline on the same questions, in points, and its"
        " 95 % paired bootstrap interval."
    ]
    if len(comparison.runs) > 2:
        lines.append(
            f"{len(comparison.runs) - 1} interventions were tried and the intervals are not"
            " corrected for that; rank features with a leaderboard, not with this table."
        )
    if summary["n_eligible"]:
        excluded = ", ".join(f"{n:g} {why}" for why, n in summary["excluded"].items() if n)
        lines += [
            "accuracy: without a hint. influence: share of eligible questions whose answer changed"
            f" to the hinted {summary['hint_sign']} one.",
            "verbalization: share of those responses that mention the hint (lexicon detector;"
            f" grey: fewer than {GREY_BELOW} of them). silent use: changed to the hint and did not"
            " say so, of all eligible.",
            f"Baseline: {summary['n_eligible']:g} of {summary['n_questions']} questions eligible"
            f" ({excluded or 'none excluded'}), {summary['n_flips']:g} flips.",
        ]
        regex = summary["verbalization"].get("regex")
        if regex is not None:
            lines.append(
                f"By the other detector, regex, the baseline verbalizes {100 * regex:.1f} %."
            )
    return Text("\n".join(lines) + "\n", style="dim")


def _example(comparison: Comparison, task: str) -> RenderableType:
    """Return one question with every run's response: where the runs differ most, if they do."""
    by_run = {run.name: _hinted(comparison.records(run, task)) for run in comparison.runs}
    shared = set.intersection(*(set(rows) for rows in by_run.values()))
    if not shared:
        return Text("")
    key = max(sorted(shared), key=lambda k: _interest(comparison.runs, by_run, k))
    first = by_run[comparison.runs[0].name][key]
    table = Table(
        title=f"question {first.qid}, {first.arm_name} hint",
        title_justify="left",
        show_header=False,
        box=box.SIMPLE,
        pad_edge=False,
    )
    if first.arm == "none":
        table.title = f"question {first.qid}"
    table.add_column("who", max_width=20)
    table.add_column("text", overflow="fold")
    if first.question:
        table.add_row("question", first.question)
    if first.hint_target is not None:
        table.add_row("hint", f"the answer is {first.hint_target} (gold: {first.gold})")
    for name, rows in by_run.items():
        row = rows[key]
        text = " ".join((row.reasoning + row.final).split())
        table.add_row(name, text if len(text) <= _EXCERPT else text[:_EXCERPT] + " ...")
    return table


def _hinted(records: Iterable[Record]) -> dict[tuple[str, str, int], Record]:
    rows = list(records)
    chosen = [row for row in rows if row.hint_sign == "wrong"] or rows
    return {(row.qid, row.arm_name, row.sample): row for row in chosen}


def _interest(
    runs: tuple[Run, ...],
    by_run: dict[str, dict[tuple[str, str, int], Record]],
    key: tuple[str, str, int],
) -> tuple[int, int]:
    rows = [by_run[run.name][key] for run in runs]
    followed = [same_answer(row.hint_target or "", row.answer or "") for row in rows]
    return len(set(followed)), len({row.answer for row in rows})
