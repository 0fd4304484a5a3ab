"""Print how well each hint detector finds what was labelled by hand.

    sae-steered detectors --errors

Reads the package's labelled traces, or FILE: one record a line, each with a `label` (the rule is
in docs/detectors.md). The split is by the hash of the trace's id; the lexicon was tuned on dev
alone, so the honest numbers are those of test, the default. The judge is shown where the records
hold its verdicts.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness_ext.detectors import DETECTORS, REGISTRY, Detector, load_detector, with_lexicon
from harness_ext.errors import RecordError
from harness_ext.hints import load_templates
from harness_ext.labelled import (
    SPLITS,
    Quality,
    Rate,
    Reliance,
    by_case,
    load_labelled,
    quality,
    reliance,
    split_of,
    verdicts,
)
from harness_ext.lexicon import load_lexicon
from harness_ext.records import Record


def main(argv: list[str] | None = None) -> int:
    """Return the exit status after printing precision, recall and F1 of each detector.

    Raises:
        RecordError: The file is missing, holds no valid records or none of the family, or a
            record has no label.
        DataError: A lexicon or a detector cannot be loaded.
    """
    parser = argparse.ArgumentParser(
        prog="sae-steered detectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument(
        "--family", help="hint family, such as seed, the one that regex is made for"
    )
    parser.add_argument("--errors", action="store_true", help="also every wrong verdict")
    parser.add_argument("--cases", action="store_true", help="also the kinds of trace")
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help="lexicon to try instead")
    parser.add_argument(
        "--detector", action="append", default=[], metavar="NAME=MODULE:FUNCTION",
        help="a detector of your own beside the others; may be given several times",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="machine-readable, undefined is null")
    args = parser.parse_args(argv)
    detectors: dict[str, Detector] = dict(
        with_lexicon(load_lexicon(args.lexicon)) if args.lexicon else REGISTRY
    )
    own = [load_detector(spec) for spec in args.detector]
    detectors.update(own)
    records = load_labelled(args.file)
    if args.family:
        ids = {template.id for template in load_templates() if template.type == args.family}
        records = [record for record in records if record.hint_id in ids]
        if not records:
            raise RecordError(
                f"no trace of hint family {args.family!r}; docs/hints.md lists the families"
            )
    chosen = [r for r in records if args.split in ("all", split_of(r.qid))]
    names = [*DETECTORS, *(name for name, _ in own)]
    if any(record.judge is not None for record in chosen):
        names.append("judge")
    found = [quality(records, n, split=args.split, detectors=detectors) for n in names]
    relies = reliance(records, split=args.split)
    if args.json:
        out = {
            "split": args.split,
            "traces": len(chosen),
            "mentions": sum(bool(r.label and r.label.mentions) for r in chosen),
            "detectors": {q.detector: asdict(q) for q in found},
            "reliance": asdict(relies),
        }
        print(json.dumps(out, indent=2, allow_nan=False))
        return 0
    _print(chosen, found, relies, detectors, cases=args.cases, errors=args.errors)
    return 0


def _print(
    chosen: Sequence[Record],
    found: Sequence[Quality],
    relies: Reliance,
    detectors: Mapping[str, Detector],
    *,
    cases: bool,
    errors: bool,
) -> None:
    console = Console()
    yes = sum(bool(r.label and r.label.mentions) for r in chosen)
    table = Table(title=f"split {found[0].split}: {len(chosen)} traces, {yes} with a mention")
    for column in ("detector", "precision", "recall", "F1", "false positives*", "kappa", "none**"):
        table.add_column(column, justify="left" if column == "detector" else "right")
    for q in found:
        rates = (q.precision, q.recall, q.f1, q.false_positive_rate)
        kappa = "-" if q.agreement.kappa is None else f"{q.agreement.kappa:.2f}"
        table.add_row(q.detector, *map(_rate, rates), kappa, str(q.no_verdict))
    console.print(table)
    console.print(
        "95 % intervals: Wilson, F1 by bootstrap over traces. * on the arms without an answer. "
        "** traces without a usable verdict, in no other number.",
        highlight=False,
    )
    if relies.n:
        console.print(f"judge, relies yes or no: {_rate(relies.accuracy)}, all five values: "
                      f"{_rate(relies.exact)}, of {relies.n}", highlight=False)  # fmt: skip
    if cases:
        console.print(_cases(chosen, [q.detector for q in found], detectors))
    if errors:
        for q in found:
            for trace, case in q.wrong:
                console.print(f"{q.detector}: {trace} ({case})", highlight=False)


def _cases(
    chosen: Sequence[Record], names: Sequence[str], detectors: Mapping[str, Detector]
) -> Table:
    table = Table(title="right verdicts by kind of trace")
    table.add_column("kind")
    table.add_column("traces", justify="right")
    rows: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for name in names:
        table.add_column(name, justify="right")
        for case, (right, n) in by_case(chosen, verdicts(chosen, detectors[name])).items():
            rows.setdefault(case, []).append(f"{right}/{n}")
            sizes[case] = max(sizes.get(case, 0), n)
    for case, cells in sorted(rows.items()):
        table.add_row(case, str(sizes[case]), *cells)
    return table


def _rate(rate: Rate) -> str:
    if rate.value is None:
        return "-"
    return f"{rate.value:.2f} [{rate.lo:.2f}, {rate.hi:.2f}]"


if __name__ == "__main__":
    raise SystemExit(main())
