"""`sae-steered leaderboard`: many interventions on the same questions, ranked without noise."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXAMPLE = """
examples:
  sae-steered leaderboard plan examples/leaderboard/small.yaml
      requests, tokens and time; no weights are loaded
  sae-steered leaderboard run examples/leaderboard/small.yaml --output runs/small
      generate, score, rank, report; killed at any moment, the same command goes on
  sae-steered leaderboard run board.yaml --output runs/b --model-args backend=vllm,dtype=bfloat16
  sae-steered leaderboard score runs/small --draws 10000
  sae-steered leaderboard score runs/small --from-store
      records, metrics and all numbers once more, from the stored responses alone
  sae-steered leaderboard report runs/small --output site
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-steered leaderboard",
        description="Rank interventions on benchmarks: every row answers the same questions, and"
        " random rows of the same size run beside the candidates. docs/leaderboard.md says what a"
        " configuration holds.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("run", "generate what is missing, score, rank and report"),
        ("plan", "what a run would ask and cost; the same as `run --dry-run`"),
    ):
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
        one.add_argument(
            "--output", type=Path, metavar="DIR", help="folder (default: results/NAME)"
        )
        one.add_argument(
            "--model-args",
            default="",
            metavar="K=V,..",
            help="of the model, before those of the file: backend=vllm, base_url=...",
        )
        if name == "run":
            one.add_argument("--dry-run", action="store_true", help="stop after the plan")
        one.add_argument("--json", action="store_true", help="print the result as JSON")
    for name, text in (
        ("score", "the statistics again, from a folder's records, and the report"),
        ("report", "the report again, from a folder's records and statistics"),
    ):
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument("folder", type=Path, metavar="DIR", help="folder of a leaderboard")
        one.add_argument("--output", type=Path, metavar="DIR", help="another folder to write to")
        if name == "score":
            one.add_argument("--metrics", metavar="M,..", help="in place of the configuration's")
            one.add_argument("--level", type=float, help="of q-values")
            one.add_argument("--draws", type=int, help="resamples of an interval")
            one.add_argument(
                "--from-store",
                action="store_true",
                help="make the records from the store first; loads the model, which the responses"
                " are kept by, and generates only what the store lacks",
            )
        if name == "report":
            one.add_argument(
                "--sensitivity",
                type=Path,
                action="append",
                default=[],
                metavar="FILE",
                help="sensitivity.json of `sae-steered sensitivity`: two columns more; repeatable",
            )
        one.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 after printing the plan, the best rows or the files of a report."""
    args = _parser().parse_args(argv)
    return (_run if args.command in ("run", "plan") else _again)(args)


def _run(args: argparse.Namespace) -> int:
    from lm_eval.utils import simple_parse_args_string
    from rich.console import Console

    from harness_ext.autoload import install

    install()
    from harness_ext.leaderboard.config import read_config
    from harness_ext.leaderboard.forecast import Forecast
    from harness_ext.leaderboard.run import rank, run
    from harness_ext.leaderboard.tables import plan_table
    from harness_ext.stdout import others_to_stderr

    config = read_config(args.config, simple_parse_args_string(args.model_args))
    folder = args.output or Path("results") / config.name
    dry = args.command == "plan" or args.dry_run
    told: list[Forecast] = []

    def tell(forecast: Forecast) -> None:
        told.append(forecast)
        if not dry:  # before it begins; what comes after is the result
            Console(stderr=True).print(plan_table(forecast, config.name))

    with others_to_stderr():
        board = run(config, folder, dry=dry, tell=tell)
        results = None
        if board is not None:
            results, _ = rank(board, folder, config.statistics)
    if board is None or results is None:
        if args.json:
            print(json.dumps(told[0].as_dict(), indent=1))
        else:
            _console().print(plan_table(told[0], config.name))
        return 0
    return _show(args, board, results, folder)


def _again(args: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from harness_ext.errors import RecordError
    from harness_ext.leaderboard.board import read_board
    from harness_ext.leaderboard.report import write_report
    from harness_ext.leaderboard.results import Results
    from harness_ext.leaderboard.run import RESULTS, make_folder, rank

    if args.command == "score" and args.from_store:
        board = _rebuilt(args.folder)
    else:
        board = read_board(args.folder)
    target = args.output or args.folder
    make_folder(target)
    if args.command == "score":
        given: dict[str, Any] = {
            "metrics": args.metrics.split(",") if args.metrics else None,
            "level": args.level,
            "draws": args.draws,
        }
        options = {**board.info.config.get("statistics", {})}
        options |= {key: value for key, value in given.items() if value is not None}
        results, _ = rank(board, target, options)
        return _show(args, board, results, target)
    file = args.folder / RESULTS
    try:
        results = Results.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise RecordError(
            f"{file} cannot be used ({first}); make it with `sae-steered leaderboard score"
            f" {args.folder}`"
        ) from None
    if args.sensitivity:
        from harness_ext.sensitivity.join import joined

        board = joined(board, args.sensitivity)
    files = write_report(board, results, target)
    if args.json:
        print(json.dumps([str(path) for path in files], indent=1))
    else:
        _console().print("\n".join(str(path) for path in files))
    return 0


def _rebuilt(folder: Path) -> Any:
    import lm_eval  # noqa: F401  (before our model)

    from harness_ext.autoload import install

    install()
    from harness_ext.leaderboard.run import rebuild
    from harness_ext.stdout import others_to_stderr

    with others_to_stderr():
        return rebuild(folder)


def _show(args: argparse.Namespace, board: Any, results: Any, folder: Path) -> int:
    from harness_ext.leaderboard.tables import top_tables

    if args.json:
        print(results.model_dump_json(indent=1))
        return 0
    console = _console()
    console.print(top_tables(board, results))
    console.print(f"Everything lies in {folder}/", style="dim")
    return 0


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)
