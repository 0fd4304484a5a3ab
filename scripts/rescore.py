"""Print every metric of response records, without generating anything.

    sae-steered rescore out/samples_steer_arith_hint_*.jsonl --json

RECORDS are files of one record a line, or lm-eval's samples files of steer_ tasks run with
--log_samples. Records of several files are put together; tasks and interventions stay apart.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness_ext.metrics import METRICS, question_counts, summarise
from harness_ext.records import Record, read_records
from harness_ext.stats import Estimate


def main(argv: list[str] | None = None) -> int:
    """Return the exit status after printing the metrics of the records named in `argv`.

    Raises:
        RecordError: A file is missing or holds no valid records.
        MetricError: Two records claim the same response.
    """
    parser = argparse.ArgumentParser(
        prog="sae-steered rescore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORDS")
    parser.add_argument("--json", action="store_true", help="machine-readable, undefined is null")
    args = parser.parse_args(argv)
    records: list[Record] = [record for path in args.records for record in read_records(path)]
    summary = summarise(records)
    if args.json:
        print(json.dumps(summary, indent=2, allow_nan=False))
        return 0
    for task, interventions in summary.items():
        Console().print(_table(task, interventions, records))
    return 0


def _table(task: str, interventions: Iterable[str], records: list[Record]) -> Table:
    """Return one table of a task: a row a metric, a column an intervention."""
    table = Table(title=f"{task} (value ± standard error over questions)")
    table.add_column("metric")
    columns = []
    for name in interventions:
        own = [r for r in records if r.task == task and r.intervention == name]
        questions = list(question_counts(own).values())
        columns.append({key: metric.estimate(questions) for key, metric in METRICS.items()})
        table.add_column(name, justify="right")
    for metric in METRICS:
        if any(column[metric].value is not None for column in columns):
            table.add_row(metric, *(_cell(column[metric]) for column in columns))
    return table


def _cell(found: Estimate) -> str:
    if found.value is None:
        return "-"
    return f"{found.value:.3f}" + (f" ± {found.se:.3f}" if found.se is not None else "")


if __name__ == "__main__":
    raise SystemExit(main())
