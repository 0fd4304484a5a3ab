"""Print every metric of saved responses, without generating anything.

    sae-steered rescore out/samples_steer_arith_hint_*.jsonl --json

RECORDS are files of one record a line (.jsonl), lm-eval's samples files of steer_ tasks run with
--log_samples (.jsonl), or the seed notebook's 1_runs.json files (give the one without and the one
with hints together). Records of several files are put together; tasks and interventions stay
apart. The meaning of every number is in docs/rescore.md.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from harness_ext.detectors import REGISTRY, Detector, load_detector, with_lexicon
from harness_ext.lexicon import load_lexicon
from harness_ext.metrics import by_run, summarise
from harness_ext.notebook import check_pairs, is_notebook_file, read_notebook
from harness_ext.records import Record, read_records
from harness_ext.rescore_table import compare, comparison_tables, tables


def main(argv: list[str] | None = None) -> int:
    """Return the exit status after printing the metrics of the records named in `argv`.

    Raises:
        RecordError: A file is missing or holds no valid records.
        MetricError: Two records claim the same response, or there is nothing to compare with.
        DataError: A lexicon or a detector cannot be loaded.
    """
    parser = argparse.ArgumentParser(
        prog="sae-steered rescore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORDS")
    parser.add_argument("--json", action="store_true", help="machine-readable, undefined is null")
    parser.add_argument(
        "--compare",
        metavar="BASE",
        help="also print every other intervention minus BASE (such as none), paired by question",
    )
    parser.add_argument(
        "--lexicon", type=Path, metavar="FILE", help="lexicon instead of the package's own"
    )
    parser.add_argument(
        "--detector",
        action="append",
        default=[],
        metavar="NAME=MODULE:FUNCTION",
        help="a detector of your own beside the others; may be given several times",
    )
    parser.add_argument(
        "--at-k",
        action="append",
        type=int,
        metavar="K",
        help="k of pass@k and maj@k (default: 1, 2, 4, 8, ... and all samples); several times",
    )
    parser.add_argument("--task", help="task name of 1_runs.json files, by default their data set")
    parser.add_argument(
        "--intervention", default="none", help="intervention of 1_runs.json files (default: none)"
    )
    args = parser.parse_args(argv)
    detectors = _detectors(args.lexicon, args.detector)
    records: list[Record] = []
    for path in args.records:
        if is_notebook_file(path):
            records += read_notebook(path, task=args.task, intervention=args.intervention)
        else:
            records += read_records(path)
    check_pairs(records)
    summary = summarise(records, detectors, ks=args.at_k)
    runs = by_run(records)
    compared = {
        task: compare(by_name, args.compare, detectors)
        for task, by_name in runs.items()
        if args.compare
    }
    if args.json:
        for task, found in compared.items():
            for name, values in found.items():
                summary[task][name][f"minus_{args.compare}"] = values
        print(json.dumps(summary, indent=2, allow_nan=False))
        return 0
    # Not folded to 80 columns in a file or a pipe, where names of interventions would be cut.
    console = Console(width=None if sys.stdout.isatty() else 120)
    for task, by_name in runs.items():
        for table in tables(task, by_name, summary[task], detectors):
            console.print(table)
        for table in comparison_tables(task, args.compare, compared.get(task, {})):
            console.print(table)
    return 0


def _detectors(lexicon: Path | None, own: list[str]) -> Mapping[str, Detector]:
    found = dict(with_lexicon(load_lexicon(lexicon)) if lexicon else REGISTRY)
    found.update(load_detector(spec) for spec in own)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
