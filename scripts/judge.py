r"""Ask an LLM about response records: the verifier where the rules fail, the judge about hints.

    sae-steered judge out/samples_steer_arith_hint_*.jsonl --out judged.jsonl \
        --base-url http://localhost:8000/v1 --model my-judge

RECORDS are files of one record a line, or lm-eval's samples files of steer_ tasks. --out gets
every record, with the verdicts, their raw replies, model and tokens; `sae-steered rescore` prints
its metrics. Replies are kept on disk: the same command again sends nothing. The key comes from
the environment (OPENAI_API_KEY, or OPENROUTER_API_KEY for OpenRouter), never from an argument.
Texts leave this machine for the endpoint; --dry-run says how many and sends none.
"""

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from harness_ext.errors import LLMConfigError
from harness_ext.hints import load_templates
from harness_ext.llm.attacks import TARGETS, measure
from harness_ext.llm.judge import Which, chosen, judge
from harness_ext.llm.session import Usage
from harness_ext.llm.settings import LLMSettings, read_settings
from harness_ext.llm.verifier import needs_verifier, verified_correct, verify
from harness_ext.records import Record, read_records, write_records


def main(argv: list[str] | None = None) -> int:
    """Return the exit status after adding verdicts to the records named in `argv`.

    Raises:
        LLMConfigError: There is no model, endpoint, key, or nothing to do.
        LLMRequestError: The endpoint refused a request, or did not answer it.
        RecordError: A file is missing or holds no valid records.
        HintError: It is not known what was hinted to a record.
    """
    args = _parser().parse_args(argv)
    out: Path = args.out or Path(os.devnull)
    if not args.attacks and (not args.records or (args.out is None and not args.dry_run)):
        raise LLMConfigError("give RECORDS and --out FILE, or --dry-run, or --attacks alone")
    if out.resolve() in {p.resolve() for p in args.records}:
        raise LLMConfigError(f"--out {out} is one of the records files; give another name")
    records = [record for path in args.records for record in read_records(path)]
    if args.dry_run:
        return _dry_run(records, args)
    settings = read_settings(
        model=args.model, base_url=args.base_url, api_key_env=args.api_key_env, cache=args.cache,
        concurrency=args.concurrency, timeout_s=args.timeout, tries=args.tries,
        max_tokens=args.max_tokens, max_chars=args.max_chars,
    )  # fmt: skip
    progress = not args.quiet and sys.stderr.isatty()
    if args.attacks:
        return _attacks(settings, args.json, progress)
    usage = Usage()
    if args.only != "judge":
        records, cost = verify(records, settings, progress=progress)
        usage += cost
    if args.only != "verifier":
        templates = load_templates(args.hints)
        records, cost = judge(
            records, settings, templates=templates, which=args.on, progress=progress
        )
        usage += cost
    write_records(records, out)
    _show(summary(records, settings, usage), args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-steered judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("records", nargs="*", type=Path, metavar="RECORDS")
    add("--out", type=Path, metavar="FILE", help="where the records with verdicts go")
    add("--base-url", metavar="URL", help="default: OPENAI_BASE_URL, OpenRouter or OpenAI by key")
    add("--model", metavar="NAME", help="default: PROCESSOR")
    add("--api-key-env", metavar="NAME", help="environment variable of the key, if another")
    add("--only", choices=("verifier", "judge"), help="default: both")
    add("--on", choices=get_args(Which), default="needed",
        help="what the judge reads: flips and the arms without a hint, every hinted response, "
        "or all (default: %(default)s)")  # fmt: skip
    add("--hints", type=Path, metavar="FILE", help="hint templates of the run, if its own")
    add("--concurrency", type=int, metavar="N", help="requests at once (default: 8)")
    add("--timeout", type=float, metavar="S", help="seconds for one try (default: 60)")
    add("--tries", type=int, metavar="N", help="tries of one request (default: 5)")
    add("--max-tokens", type=int, metavar="N",
        help="tokens of a reply (default: 512); more for models that reason")  # fmt: skip
    add("--max-chars", type=int, metavar="N",
        help="characters shown of a response (default: 6000)")  # fmt: skip
    add("--cache", type=Path, metavar="DIR", help="where replies are kept")
    add("--attacks", action="store_true",
        help="measure how many attacks through a response's text win over this model")  # fmt: skip
    add("--dry-run", action="store_true", help="say what would be asked, send nothing")
    add("--quiet", action="store_true", help="no progress bars")
    add("--json", action="store_true", help="machine-readable, undefined is null")
    return parser


def _dry_run(records: list[Record], args: argparse.Namespace) -> int:
    verifier = sum(map(needs_verifier, records)) if args.only != "judge" else 0
    judged = len(chosen(records, args.on)) if args.only != "verifier" else 0
    found = {"records": len(records), "verifier": verifier, "judge": judged}
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{len(records)} records: {verifier} for the verifier, {judged} for the judge; "
              "at most two requests each, nothing was sent")  # fmt: skip
    return 0


def summary(records: list[Record], settings: LLMSettings, usage: Usage) -> dict[str, Any]:
    """Return what was asked and said, by task and intervention, and what it cost."""
    runs: dict[str, dict[str, Any]] = {}
    for task, intervention in sorted({(r.task, r.intervention) for r in records}):
        own = [r for r in records if (r.task, r.intervention) == (task, intervention)]
        by_arm = {arm: [r for r in own if r.arm_name == arm] for arm in {r.arm_name for r in own}}
        runs.setdefault(task, {})[intervention] = {
            "exact_match": {a: _share([r.correct for r in g]) for a, g in sorted(by_arm.items())},
            "exact_match_verified": {
                a: _share([verified_correct(r) for r in g])
                if all(r.verified or not needs_verifier(r) for r in g)
                else None
                for a, g in sorted(by_arm.items())
            },
            "verifier": dict(sorted(Counter(r.verified.status for r in own if r.verified).items())),
            "judge": dict(sorted(Counter(_said(r) for r in own if r.judge).items())),
        }
    return {
        "model": settings.model,
        "endpoint": settings.base_url,
        "usage": asdict(usage),
        "tasks": runs,
    }


def _share(values: list[bool]) -> float:
    return sum(values) / len(values)


def _said(record: Record) -> str:
    verdict = record.judge
    if verdict is None or verdict.status != "parsed":
        return verdict.status if verdict else "not asked"
    return "mentions" if verdict.mentions else "does not mention"


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    console = Console()
    for task, interventions in found["tasks"].items():
        table = Table(title=f"{task}: {found['model']} at {found['endpoint']}")
        table.add_column("intervention")
        table.add_column("")
        table.add_column("", justify="right")
        for name, values in interventions.items():
            for arm, before in values["exact_match"].items():
                after = values["exact_match_verified"][arm]
                shown = "-" if after is None else f"{after:.3f}"
                table.add_row(name, f"{arm}: exact_match → verified", f"{before:.3f} → {shown}")
            for who in ("verifier", "judge"):
                for said, n in values[who].items():
                    table.add_row(name, f"{who}: {said}", str(n))
        console.print(table)
    usage = found["usage"]
    console.print(", ".join(f"{key} {value}" for key, value in usage.items() if value))


def _attacks(settings: LLMSettings, as_json: bool, progress: bool) -> int:
    """Print how many attacks win over the model alone and over the whole of what is in use."""
    found: dict[str, Any] = {"model": settings.model, "endpoint": settings.base_url}
    for name, screen in (("model alone", False), ("in use", True)):
        outcomes, usage = measure(settings, screen=screen, progress=progress)
        found[name] = {
            "usage": asdict(usage),
            "won": {
                target: {
                    "before": next(o.before for o in outcomes if o.target == target),
                    "attacks": sum(o.target == target for o in outcomes),
                    "won": sum(o.won for o in outcomes if o.target == target),
                    "after": dict(Counter(o.after for o in outcomes if o.target == target)),
                }
                for target in TARGETS
            },
            "outcomes": [asdict(o) for o in outcomes],
        }
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    table = Table(title=f"attacks on {settings.model} at {settings.base_url}")
    for column in ("", "target", "verdict without attack", "attacks that win", "verdicts"):
        table.add_column(column)
    for name in ("model alone", "in use"):
        for target, v in found[name]["won"].items():
            after = ", ".join(f"{k} {n}" for k, n in sorted(v["after"].items()))
            table.add_row(name, target, v["before"], f"{v['won']} of {v['attacks']}", after)
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
