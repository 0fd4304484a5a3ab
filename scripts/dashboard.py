"""Pages of features to browse: an index, and one a feature, from the facts about them.

    sae-steered facts --text docs:stdlib --tokens 50000 --out runs/facts
    sae-steered dashboard runs/facts --out runs/pages --top 1000
    sae-steered dashboard runs/facts --out runs/pages --scores runs/wait.json --top 100

Without --features and --scores, the features with the largest --by. The pages open from the
folder in any browser, need no network, and can be copied anywhere.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness_ext.dashboards.build import write_dashboards
from harness_ext.dashboards.choose import ORDERS, choose
from harness_ext.dashboards.links import unknown_to_neuronpedia
from harness_ext.feature_arguments import count
from interventions.features.facts_store import FactStore
from interventions.train.progress import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status after writing the pages.

    Raises:
        interventions.errors.SteeringError: the facts or scores cannot be read, or name no feature.
    """
    parser = argparse.ArgumentParser(
        prog="sae-steered dashboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("facts", type=Path, metavar="FACTS", help="folder of `sae-steered facts`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the pages")
    parser.add_argument("--features", metavar="LIST", help="such as 3036,292,100-120")
    parser.add_argument(
        "--scores",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="JSON of `sae-steered score` or `find`: its features, best first; may be repeated",
    )
    parser.add_argument("--top", type=count, default=1000, metavar="N", help="(default: 1000)")
    parser.add_argument("--by", choices=ORDERS, default="max_act", help="(default: max_act)")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="names: .json or .csv of feature and label"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    started = time.monotonic()
    store = FactStore.open(args.facts)
    choice = choose(
        store,
        features=args.features,
        scores=args.scores,
        top=args.top,
        by=args.by,
        labels=args.labels,
    )
    with Progress("pages", len(choice.features), "page") as bar:
        built = write_dashboards(store, choice, args.out, on_page=bar.to)
    seconds = time.monotonic() - started
    if why := unknown_to_neuronpedia(store.subject["sae"]):
        sys.stderr.write(f"{why}\n")
    if args.json:
        figures = {"pages": built.pages, "bytes": built.bytes, "seconds": round(seconds, 2)}
        print(json.dumps({"index": str(built.index), **figures, "removed": built.removed}))
    else:
        gone = f"; {built.removed} of an earlier choice removed" if built.removed else ""
        print(
            f"{built.pages} pages, {built.bytes / 1e6:.1f} MB in {seconds:.1f} s{gone}\n"
            f"open {built.index}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
