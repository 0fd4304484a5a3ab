"""Find features that change what a model writes, and measure named ones beside random ones.

Called like this:

  python scripts/named_features.py search examples/train/default.yaml --run runs/default
  python scripts/named_features.py measure examples/train/default.yaml --sae SAE_FOLDER

`search` prints candidates. `measure` reads the names, features and strengths in
SAE_FOLDER/named_features.json and writes that file again with the figures measured now.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from interventions.default_model import resolve_pretrained
from interventions.errors import SpecError
from interventions.train.config import TrainConfig, load_config
from interventions.train.files import read_tensors, write_text
from interventions.train.named_features import (
    Lab,
    measure,
    rank_features,
    search,
    token_classes,
)
from interventions.train.pipeline import Run, load_trained


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("search", "measure"))
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("--run", type=Path, metavar="DIR", help="training run (for search)")
    parser.add_argument("--sae", type=Path, metavar="DIR", help="SAE; default: that of the run")
    parser.add_argument("--chunks", type=int, default=3, help="harvest files to rank with")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="kinds of token; default: all")
    parser.add_argument("--per-class", type=int, default=4, help="features tried for each class")
    parser.add_argument("--strength", type=float, default=1.5, help="for search")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code after a search or a measurement.

    Raises:
        SteeringError: Bad settings, or a folder that lacks what is asked for.
        SystemExit: Bad usage, or help.
    """
    args = _parser().parse_args(argv)
    config = load_config(args.config)
    torch.set_num_threads(config.threads)
    run = None if args.run is None else Run(config, args.run)
    if run is None and (args.action == "search" or args.sae is None):
        raise SpecError(f"`{args.action}` needs --run DIR, the folder of a training run")
    folder: Path = args.sae if run is None or args.sae is not None else run.result
    lab = _lab(config, folder)
    stats = read_tensors(folder / "stats.safetensors")
    classes = token_classes(lab.tokenizer)
    if args.action == "search" and run is not None:
        wanted = _wanted(args.classes, classes)
        chunks = sorted((run.out / "harvest").glob("train_*.safetensors"))[: args.chunks]
        shares = rank_features(load_trained(folder), chunks, wanted, run.limit)
        found = search(lab, shares, wanted, stats, per_class=args.per_class, strength=args.strength)
        for row in found:
            print(json.dumps(row))
        return 0
    path = folder / "named_features.json"
    if not path.is_file():
        raise SpecError(f"{path} does not exist; write the names, features and strengths there")
    entries: list[dict[str, Any]] = json.loads(path.read_text())
    for entry in entries:
        members = classes[entry["token_class"]]
        entry |= measure(lab, entry["feature"], members, stats, entry["strength"])
        figures, control = entry["measured"], entry["random_control"]
        print(
            f"{entry['name']:<20} feature {entry['feature']:>5} x{entry['strength']:g}:"
            f" {figures['rate_base']:.3f} -> {figures['rate']:.3f}"
            f" (random {control['rate_mean']:.3f}, at most {control['rate_max']:.3f}),"
            f" distinct-2 {figures['distinct_2']:.2f}, nats {figures['nats']:.2f}"
        )
    write_text(path, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
    return 0


def _wanted(names: list[str] | None, classes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    unknown = sorted(set(names or ()) - set(classes))
    if unknown:
        raise SpecError(f"unknown class '{unknown[0]}'; known: {', '.join(classes)}")
    return {name: classes[name] for name in names or classes}


def _lab(config: TrainConfig, folder: Path) -> Lab:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve_pretrained(config.model).path
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    return Lab(model, AutoTokenizer.from_pretrained(path), folder)


if __name__ == "__main__":
    from harness_ext.cli import report_errors

    sys.exit(report_errors("named_features", main, sys.argv[1:]))
