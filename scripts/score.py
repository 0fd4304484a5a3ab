"""Rank an SAE's features by what they tell apart.

    sae-steered score contrast --help
    sae-steered score reason --text records.jsonl --out runs/reason.json

`contrast` and `reason` print a table, write the ranking to --out, and with --spec-out a steering
spec of the best features, which `sae-steered evaluate --spec` takes.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

MODES: dict[str, str] = {
    "contrast": "more active in one set of prompts or responses than in another",
    "backtracking-data": "a data set of sentences that backtrack, and like ones that do not",
    "reason": "active near words of reasoning, evenly over the words (ReasonScore)",
}
"""Mode to its line of help; `score NAME` runs `harness_ext.scripts.score_NAME`, which has
`add_arguments(parser)` and `main(arguments) -> int`. Dashes of a mode are underscores there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status of the mode that `argv` names.

    Raises:
        SteeringError: the mode refuses its input.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="sae-steered score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    modes = parser.add_subparsers(dest="mode", metavar="MODE", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    module = None
    for name, line in MODES.items():
        # Only the chosen mode is imported: some import libraries that others do without.
        if name != chosen:
            modes.add_parser(name, help=line)
            continue
        module = importlib.import_module(f"harness_ext.scripts.score_{name.replace('-', '_')}")
        sub = modes.add_parser(
            name,
            help=line,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(sub)
    arguments = parser.parse_args(argv)
    assert module is not None
    return module.main(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
