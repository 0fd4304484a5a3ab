"""`sae-steered train`: an SAE from a config, step by step; resumes what it finds in --out."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interventions.errors import SpecError
from interventions.train.config import load_config
from interventions.train.pipeline import STEPS, Run, measure, run
from interventions.train.world import joined

_EXAMPLE = """example:
  sae-steered train examples/train/small.yaml --out runs/small
  sae-steered train examples/train/small.yaml --out runs/small --evaluate SAE_FOLDER --json
  torchrun --nproc-per-node 2 --no-python sae-steered train CONFIG.yaml --out DIR

A run that was stopped goes on where it was when the same command is given again."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-steered train",
        description="Train an SAE: text, activations, dictionary, threshold, statistics, figures.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="settings of the run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--until", choices=STEPS, help="stop after this step")
    parser.add_argument(
        "--evaluate",
        type=Path,
        metavar="DIR",
        help="measure the SAE in DIR on this run's held-out text instead of training one",
    )
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code after a run, or after a measurement with `--evaluate`.

    Args:
        argv: Arguments after the command's name.

    Raises:
        SteeringError: Bad settings, missing model or text; the message is one line.
        SystemExit: Bad usage, or help.
    """
    arguments = _parser().parse_args(argv)
    config = load_config(arguments.config)
    if arguments.evaluate is not None:
        if not (arguments.evaluate / "sae_weights.safetensors").is_file():
            raise SpecError(
                f"--evaluate {arguments.evaluate} holds no sae_weights.safetensors; name the"
                f" folder of an SAE"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SpecError("--evaluate runs in one process; start it without torchrun")
        run(config, arguments.out, until="harvest")
        found = measure(Run(config, arguments.out), arguments.evaluate)
        _print(found, arguments.json)
        return 0
    with joined() as world:
        reports = run(config, arguments.out, until=arguments.until, world=world)
    if not world.first:
        return 0
    _print(reports, arguments.json)
    if arguments.until in (None, "save") and not arguments.json:
        print(f"\nSAE: {Run(config, arguments.out).result}")
    return 0


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        json.dump(report, sys.stdout, indent=2)
        print()
        return
    for name, value in _flat(report):
        print(f"{name:<44} {value:.6g}" if isinstance(value, float) else f"{name:<44} {value}")


def _flat(report: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in report.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            rows.append((f"{prefix}{key}", value))
    return rows


if __name__ == "__main__":
    from harness_ext.cli import report_errors

    sys.exit(report_errors("train", main, sys.argv[1:]))
