"""The tables that `sae-steered rescore` prints."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from harness_ext.counts import SIGNS
from harness_ext.detectors import Detector
from harness_ext.effects import Cohort, Effect, fixed_cohort, paired_effects
from harness_ext.errors import MetricError
from harness_ext.hints import Sign
from harness_ext.metric_table import metric_table
from harness_ext.metrics import GREY_BELOW, question_counts
from harness_ext.records import Record
from harness_ext.stats import Estimate

Runs = Mapping[str, Sequence[Record]]
Summary = Mapping[str, Mapping[str, Any]]


def tables(
    task: str, runs: Runs, summary: Summary, detectors: Mapping[str, Detector]
) -> Iterator[Table]:
    """Yield the tables of one task: metrics, samples, exclusions, agreement, the seed's rule.

    Args:
        task: its name.
        runs: its records by intervention.
        summary: `metrics.summarise` of them, by intervention.
        detectors: by name.
    """
    yield _metrics(task, runs, detectors)
    if any(run["pass_at_k"] for run in summary.values()):
        yield _repeated(task, summary)
    if any(run["by_sign"] for run in summary.values()):
        yield _exclusions(task, summary)
        yield _agreement(task, summary)
    if any(run["seed"]["pairs"] for run in summary.values()):
        yield _seed(task, summary)


def _metrics(task: str, runs: Runs, detectors: Mapping[str, Detector]) -> Table:
    table = Table(title=f"{task} (value ± standard error over questions)")
    table.add_column("metric")
    columns = []
    for name, records in runs.items():
        questions = list(question_counts(records, detectors).values())
        found = {k: m.estimate(questions) for k, m in metric_table(detectors).items()}
        columns.append(found)
        table.add_column(name, justify="right")
    for metric in metric_table(detectors):
        if metric.startswith("excluded_"):
            continue  # they have a table of their own
        if any(column[metric].value is not None for column in columns):
            cells = (_cell(column[metric], _few(metric, column)) for column in columns)
            table.add_row(metric, *cells)
    return table


def _few(metric: str, column: Mapping[str, Estimate]) -> bool:
    """Return whether a share of flips is over too few of them to be looked at."""
    if "verbalization" not in metric and "dependence" not in metric:
        return False
    flips = column["n_flips_correct" if metric.endswith("_correct") else "n_flips"].value
    return flips is None or flips < GREY_BELOW


def _cell(found: Estimate, few: bool) -> Text:
    if found.value is None:
        return Text("-")
    whole = found.se is None and float(found.value).is_integer()
    text = f"{found.value:.0f}" if whole else f"{found.value:.3f}"
    text += f" ± {found.se:.3f}" if found.se is not None else ""
    return Text(f"({text})", style="bright_black") if few else Text(text)


def _repeated(task: str, summary: Summary) -> Table:
    table = Table(title=f"{task}: several samples a question (value ± standard error)")
    for column in ("arm", "metric"):
        table.add_column(column)
    for name in summary:
        table.add_column(name, justify="right")
    runs = list(summary.values())
    for arm in dict.fromkeys(arm for run in runs for arm in run["pass_at_k"]):
        for name in ("pass", "maj"):
            columns = [run[f"{name}_at_k"].get(arm, {}) for run in runs]
            for k in sorted({k for column in columns for k in column}, key=int):
                metric = f"{name}@{k}"
                found = [
                    Estimate(column.get(k), run["stderr"].get(f"{metric}_{arm}"))
                    for column, run in zip(columns, runs, strict=True)
                ]
                table.add_row(arm, metric, *(_cell(estimate, few=False) for estimate in found))
    return table


def _exclusions(task: str, summary: Summary) -> Table:
    table = Table(title=f"{task}: not eligible, by reason")
    table.add_column("hint")
    table.add_column("reason")
    for name in summary:
        table.add_column(name, justify="right")
    for sign in SIGNS:
        signs = [run["by_sign"].get(sign) for run in summary.values()]
        known = next((s for s in signs if s), None)
        if known is None:
            continue
        for reason in known["excluded"]:
            table.add_row(sign, reason, *(_number(s and s["excluded"][reason]) for s in signs))
        table.add_row(sign, "(eligible)", *(_number(s and s["n_eligible"]) for s in signs))
    for detector in next(iter(summary.values()))["no_verdict"]:
        row = [run["no_verdict"].get(detector) for run in summary.values()]
        if any(row):
            table.add_row("any", f"no usable verdict of {detector}", *map(_number, row))
    return table


def _agreement(task: str, summary: Summary) -> Table:
    table = Table(title=f"{task}: agreement of the detectors")
    for column in ("intervention", "responses", "detectors", "n", "raw", "kappa", "AC1", "yes"):
        table.add_column(
            column, justify="left" if column in ("intervention", "responses") else "right"
        )
    for name, run in summary.items():
        groups = {f"flips, {s} hint": run["by_sign"][s]["agreement"] for s in run["by_sign"]}
        for where, pairs in {**groups, "all hinted": run["agreement_all_hinted"]}.items():
            for pair, found in pairs.items():
                yes = found["prevalence"]
                table.add_row(
                    name,
                    where,
                    pair,
                    _number(found["n"]),
                    *(_share(found[k]) for k in ("raw", "kappa", "ac1")),
                    " / ".join(_share(v) for v in yes.values()) if yes else "-",
                )
    return table


def _seed(task: str, summary: Summary) -> Table:
    table = Table(title=f"{task}: the seed notebook's rule")
    table.add_column("count")
    for name in summary:
        table.add_column(name, justify="right")
    seeds = [run["seed"] for run in summary.values()]
    table.add_row("pairs", *(_number(s["pairs"]) for s in seeds))
    for reason in seeds[0]["excluded"]:
        table.add_row(reason.replace("_", " "), *(_number(s["excluded"][reason]) for s in seeds))
    table.add_row("flips", *(_number(s["flips"]) for s in seeds))
    table.add_row("verbalized", *(_number(s["verbalized"]) for s in seeds))
    table.add_row("rate", *(_share(s["rate"]) for s in seeds))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


COMPARED = ("acc_none", "acc_correct", "acc_wrong", "influence", "verbalization_{d}",
            "silent_use_{d}", "verbalized_use_{d}", "truncation", "no_answer",
            "mean_tokens", "repeated_4grams")  # fmt: skip
"""What `compare` shows; `{d}` stands for each detector."""


def compare(runs: Runs, base: str, detectors: Mapping[str, Detector]) -> dict[str, dict[str, Any]]:
    """Return, for each other intervention of a task, its paired effects and the fixed cohort.

    Args:
        runs: records of one task by intervention.
        base: the intervention to compare with.
        detectors: by name; one without a verdict on the base is left out.

    Raises:
        MetricError: `base` is not among the interventions, or shares no question with another.
    """
    if base not in runs:
        raise MetricError(f"no records of intervention {base!r}; there are {', '.join(runs)}")
    names = [n.format(d=d) for n in COMPARED for d in (detectors if "{d}" in n else ("",))]
    out: dict[str, dict[str, Any]] = {}
    for name, records in runs.items():
        if name == base:
            continue
        effects = paired_effects(runs[base], records, names, detectors=detectors)
        out[name] = {
            "effects": {n: vars(e) for n, e in effects.items() if e.base is not None},
            "fixed_cohort": {
                sign: {d: vars(_cohort(runs[base], records, d, sign, detectors)) for d in detectors}
                for sign in SIGNS
            },
        }
    return out


def _cohort(
    base: Sequence[Record],
    steered: Sequence[Record],
    detector: str,
    sign: Sign,
    detectors: Mapping[str, Detector],
) -> Cohort:
    return fixed_cohort(base, steered, detector=detector, sign=sign, detectors=detectors)


def comparison_tables(task: str, base: str, found: Mapping[str, Any]) -> Iterator[Table]:
    """Yield one table of paired effects for each intervention that `compare` returned."""
    for name, run in found.items():
        table = Table(title=f"{task}: {name} minus {base}, paired by question")
        for column in ("metric", base, name, "difference", "95 % interval", "p"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for metric, values in run["effects"].items():
            effect = Effect(**values)
            interval = "-" if effect.lo is None else f"[{effect.lo:+.3f}, {effect.hi:+.3f}]"
            difference = "-" if effect.difference is None else f"{effect.difference:+.3f}"
            table.add_row(
                metric, _share(effect.base), _share(effect.steered), difference, interval,
                _share(effect.p),
            )  # fmt: skip
        for sign, cohorts in run["fixed_cohort"].items():
            for detector, cohort in cohorts.items():
                if cohort["n"]:
                    table.add_row(
                        f"verbalization_{detector}, the {cohort['n']} {sign} flips of {base}",
                        _share(cohort["base"]), _share(cohort["steered"]),
                        f"{cohort['steered'] - cohort['base']:+.3f}", "-", "-",
                    )  # fmt: skip
        yield table
