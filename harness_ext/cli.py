"""The console script `sae-steered`: one subcommand a job, each a thin file in `scripts/`."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable, Sequence

from harness_ext import __version__
from harness_ext.autoload import install

COMMANDS: dict[str, str] = {
    "dashboard": "pages of features to browse, from the facts about them",
    "detectors": "precision and recall of each hint detector on hand-labelled responses",
    "doctor": "does an SAE fit the model and layer, and is it read as it was trained",
    "evaluate": "baseline and steered features of a model on a task, one table",
    "facts": "maxima, histograms, tokens and contexts of every feature, from one pass over text",
    "find": "features by the tokens they promote or fire on, by density, by score",
    "judge": "an LLM's verdicts on response records: right after all, and does it name the hint",
    "leaderboard": "many interventions on the same questions, ranked beside random ones",
    "path": "where the embedded model, or its SAE, lies; for programs that do not know `default`",
    "regress": "a run against a committed baseline: passed, regressed, or not comparable",
    "rescore": "every metric of response records, without generating anything",
    "score": "features ranked by what they tell apart: contrasts, ReasonScore and others",
    "sensitivity": "do texts that an LLM writes after a feature's examples make it fire",
    "threshold": "the threshold that stands for a TopK SAE's gate in vLLM",
    "train": "an SAE from a config: text, activations, training, calibration, measurement",
}
"""Subcommand to its line of help; `sae-steered NAME` runs `harness_ext.scripts.NAME.main`."""


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="sae-steered",
        description="Evaluate language models whose residual stream is steered by SAE features.",
        epilog=f"commands:\n{lines}\n\nexample:\n  sae-steered evaluate --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sae-steered {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below")
    parser.add_argument("args", metavar="ARGS", nargs="*", help="see `sae-steered COMMAND --help`")
    return parser


def report_errors(name: str, run: Callable[[list[str]], int | None], argv: Sequence[str]) -> int:
    """Return the exit code of `run(argv)`; 2 after one line on stderr for an error of ours.

    Errors of the system are told likewise: a file that is missing or cannot be written, a full
    disk, a network that is not there.

    Args:
        name: The command as the user typed it, put before the message.
        run: What to call; its None counts as 0.
        argv: Arguments for `run`.
    """
    from harness_ext.errors import HarnessError
    from interventions.errors import SteeringError

    try:
        return run(list(argv)) or 0
    except (SteeringError, HarnessError) as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        pass
    except Exception as error:
        # Libraries that import lazily turn an interrupt into an error of their own.
        if not _interrupted(error):
            if not isinstance(error, OSError):
                raise
            sys.stderr.write(f"{name}: error: {_system(error)}\n")
            return 2
    sys.stderr.write(f"{name}: interrupted\n")
    return 130


def _system(error: OSError) -> str:
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of the subcommand that `argv` names.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: Help or version was asked for, or the command is missing or unknown.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        parser = _parser()
        if not argv:
            parser.print_help(sys.stderr)
            raise SystemExit(2)
        name = parser.parse_args(argv[:1]).command
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f", did you mean '{close[0]}'?" if close else ""
        parser.error(f"unknown command '{name}'{hint} (commands: {', '.join(COMMANDS)})")
    name, rest = argv[0], argv[1:]
    # Commands that run lm-eval find our model and tasks even where the hook is switched off.
    install()

    def run(arguments: list[str]) -> int | None:
        return importlib.import_module(f"harness_ext.scripts.{name}").main(arguments)

    # The modes of `score` are commands of their own to their user.
    mode = f" {rest[0]}" if name == "score" and rest and not rest[0].startswith("-") else ""
    return report_errors(f"sae-steered {name}{mode}", run, rest)
