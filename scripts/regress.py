"""`sae-steered regress`: a run against a committed baseline; 0 passed, 1 regressed, 2 neither."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXAMPLE = """
examples:
  sae-steered regress run examples/regress/default.yaml
      generate with the embedded model, then check; three minutes on two busy cores
  sae-steered regress run examples/regress/default.yaml --update
      generate, and write the baseline instead
  lm_eval --model sae_steered --tasks steer_arith --log_samples --output_path out ...
  sae-steered regress update out --baseline baseline.json
  sae-steered regress check out --baseline baseline.json --margin acc_none=0.03 \\
      --junit regress.xml --summary "$GITHUB_STEP_SUMMARY"
  sae-steered regress check out --baseline baseline.json --changed sae
      a new SAE is what is tested; model, data and decoding must still agree

RUN is a folder of `sae-steered evaluate`, of `lm_eval --log_samples --output_path`, or of a
leaderboard, or files of records. exit status: 0 passed, 1 regressed, 2 not comparable (says in
what) or a usage error. The rule is in docs/regress.md.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-steered regress",
        description="Check a run against a committed baseline, question by question.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, does: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=does,
            description=f"{does[0].upper()}{does[1:]}.",
            epilog=f"example:\n  sae-steered regress {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    check = add("check", "compare a run with the baseline", "out --baseline baseline.json")
    update = add("update", "make the baseline from a run", "out --baseline baseline.json")
    run = add("run", "generate as a config says, then check or update", "check.yaml --summary s.md")
    for sub in (check, update):
        sub.add_argument("run", nargs="+", type=Path, metavar="RUN", help="folder, or records")
        sub.add_argument(
            "--baseline", type=Path, required=True, metavar="FILE", help="the committed JSON"
        )
    update.add_argument(
        "--metric", action="append", default=[], help="count for this metric too; may be repeated"
    )
    run.add_argument("config", type=Path, metavar="CONFIG", help="YAML; docs/regress.md")
    run.add_argument("--output", type=Path, help="folder for the run (default: a temporary one)")
    run.add_argument("--update", action="store_true", help="write the baseline, check nothing")
    run.add_argument("--baseline", type=Path, metavar="FILE", help="instead of the config's")
    for sub in (check, run):
        sub.add_argument(
            "--margin", action="append", default=[], metavar="METRIC=M",
            help="accepted loss, such as acc_none=0.02; replaces all others; may be repeated",
        )  # fmt: skip
        sub.add_argument("--level", type=float, help="of the test (default: .05)")
        sub.add_argument(
            "--rule",
            choices=("regression", "noninferiority"),
            help="fail what is proven worse (default), or what is not proven to be as good",
        )
        sub.add_argument(
            "--changed", metavar="A,B", help="what differs on purpose, such as model,sae"
        )
        sub.add_argument("--summary", type=Path, metavar="FILE", help="append Markdown to FILE")
        sub.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    for sub in (check, update, run):
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 for passed or updated, 1 for regressed, 2 for not comparable.

    Raises:
        HarnessError: a file cannot be read or a setting is wrong; `sae-steered` exits with 2.
    """
    args = _parser().parse_args(argv)
    if args.command == "run":
        return _run(args)
    from harness_ext.regress.runs import load_runs

    runs = load_runs(args.run)
    if args.command == "update":
        return _update(runs, args.baseline, args.metric, as_json=args.json)
    return _check(runs, args.baseline, _settings(args), args)


def _run(args: argparse.Namespace) -> int:
    from lm_eval.utils import simple_parse_args_string  # noqa: F401  (lm-eval before our model)

    from harness_ext.autoload import install
    from harness_ext.regress.config import load_config, load_specs
    from harness_ext.regress.runs import load_runs, runs_of

    config = load_config(args.config)
    folder = args.config.parent
    specs = load_specs(config, folder)
    path = args.baseline or folder / config.baseline
    settings = _settings(args, config.settings)
    if not args.update:
        from harness_ext.regress.baseline import read_baseline
        from harness_ext.regress.check import check_metrics

        # What makes a check impossible is reported before anything is generated.
        check_metrics(read_baseline(path), settings)
    install()
    from harness_ext.evaluate import compare
    from harness_ext.stdout import others_to_stderr

    with tempfile.TemporaryDirectory() as temporary:
        output = args.output or Path(temporary)
        with others_to_stderr():
            made = compare(
                {"backend": "hf", **config.model},
                specs,
                config.tasks,
                output=output,
                limit=config.limit,
                gen_kwargs=config.gen_kwargs or None,
                metadata=config.metadata,
                chat_template=config.chat_template,
            )
        # The folder may hold more, of an earlier run.
        runs = runs_of(load_runs([output]), [run.name for run in made.runs], made.tasks)
    if args.update:
        return _update(runs, path, tuple(settings.margins), as_json=args.json)
    return _check(runs, path, settings, args)


def _settings(args: argparse.Namespace, given: Any = None) -> Any:
    from harness_ext.errors import MetricError
    from harness_ext.regress.check import Settings, parse_margins
    from harness_ext.regress.comparable import CHANGEABLE

    changes: dict[str, Any] = {}
    if args.margin:
        changes["margins"] = parse_margins(args.margin)
    if args.level is not None:
        if not 0 < args.level < 0.5:
            raise MetricError(f"level {args.level} is outside 0 to .5")
        changes["level"] = args.level
    if args.rule:
        changes["rule"] = args.rule
    if args.changed:
        changes["changed"] = tuple(args.changed.split(","))
    settings = (given or Settings()).model_copy(update=changes)
    for aspect in settings.changed:
        if aspect not in CHANGEABLE:
            raise MetricError(f"'{aspect}' cannot differ on purpose; choose of {CHANGEABLE}")
    return settings


def _check(runs: Any, path: Path, settings: Any, args: argparse.Namespace) -> int:
    from harness_ext.regress.baseline import make_baseline, read_baseline
    from harness_ext.regress.check import check
    from harness_ext.regress.show import markdown, render, write_junit

    baseline = read_baseline(path)
    verdict = check(baseline, make_baseline(runs, baseline.metrics), settings)
    if args.summary:
        with args.summary.open("a", encoding="utf-8") as out:
            out.write(markdown(verdict))
    if args.junit:
        write_junit(verdict, args.junit)
    if args.json:
        print(verdict.model_dump_json(indent=1))
    else:
        _console().print(render(verdict))
    return verdict.exit_code


def _update(runs: Any, path: Path, more: Sequence[str], *, as_json: bool) -> int:
    import json

    from harness_ext.regress.baseline import (
        STORED,
        make_baseline,
        read_baseline,
        write_baseline,
    )
    from harness_ext.regress.changes import changes

    before = read_baseline(path) if path.is_file() else None
    known = STORED if before is None else before.metrics
    after = make_baseline(runs, tuple(dict.fromkeys((*known, *more))))
    told = changes(before, after)
    write_baseline(after, path)
    if as_json:
        print(json.dumps({"baseline": str(path), "changes": told}, indent=1))
        return 0
    for line in told:
        print(line)
    print(f"{path} written; commit it")
    return 0


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 150)
