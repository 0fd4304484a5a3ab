r"""Find features in a folder of facts: by tokens, by density, by largest activation, by score.

    sae-steered find runs/facts --promotes wait --activates-on wait mistake
    sae-steered find runs/facts --mostly-on '/^\n+$/' --share 0.8 --density 0.001 0.02
    sae-steered find runs/facts --promotes but --scores runs/reason.json --spec-out but.yaml

Tokens are given as words (any case, with or without a space before), as /regular expressions/ over
the whole token, or as @FILE with one of these a line. Every condition must hold. Promoted tokens
come from the logit lens, which shortlists and no more; --makes asks for those that were measured
by `sae-steered facts --causal`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness_ext.feature_arguments import add_ranking, count, finite, ways_on, write_ranking
from interventions.features.facts_store import FactStore
from interventions.features.find import (
    SORTS,
    Query,
    find,
    parse_tokens,
    ranking,
    read_rankings,
)
from interventions.features.scored import Scored

_TOKENS = {
    "promotes": "the logit lens lists one of these among the promoted tokens",
    "suppresses": "the logit lens lists one of these among the suppressed tokens",
    "makes": "one of these becomes likelier in the measured effect",
    "activates_on": "one of these is among the tokens with the largest activations",
    "mostly_on": "these make up --share of the tokens where it fires",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status after printing the features that pass.

    Raises:
        SteeringError: the folder holds no facts, a condition is wrong, or no feature passes.
    """
    arguments = _parser().parse_args(argv)
    store = FactStore.open(arguments.facts)
    tokens = {name: getattr(arguments, name) for name in _TOKENS}
    query = Query(
        **{name: None if given is None else parse_tokens(given) for name, given in tokens.items()},
        share=arguments.share,
        top=arguments.within,
        density=_range(arguments.density),
        max_act=_range(arguments.max_act),
        verdict=arguments.verdict,
        scores=read_rankings(store, arguments.scores),
        sort=arguments.sort,
        ascending=arguments.ascending,
    )
    found = find(store, query)
    settings = {
        **{name: given for name, given in tokens.items() if given},
        "share": arguments.share,
        "within": arguments.within,
        "density": query.density,
        "max_act": query.max_act,
        "verdict": query.verdict,
        "scores": [str(path) for path in arguments.scores],
        "sort": arguments.sort,
    }
    scored = ranking(store, found, settings)
    command = write_ranking(arguments, scored)
    if arguments.json:
        whole = scored.as_dict()
        print(json.dumps({**whole, "features": whole["features"][: arguments.top]}))
    else:
        _print(scored, store, arguments.top)
        for line in ways_on(arguments, command):
            print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-steered find",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("facts", type=Path, metavar="FACTS", help="folder of `sae-steered facts`")
    group = parser.add_argument_group("tokens")
    for name, text in _TOKENS.items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, nargs="+", metavar="TOKEN", help=text)
    group.add_argument(
        "--within",
        type=count,
        default=10,
        metavar="N",
        help="how far down the lists of tokens a match counts (default: %(default)s)",
    )
    group.add_argument(
        "--share", type=_share, default=0.5, help="of --mostly-on (default: %(default)s)"
    )
    group = parser.add_argument_group("other conditions")
    for name in ("density", "max_act"):
        flag = f"--{name.replace('_', '-')}"
        text = "smallest and largest that pass; - leaves a side open"
        group.add_argument(flag, nargs=2, metavar=("MIN", "MAX"), type=_bound, help=text)
    group.add_argument(
        "--verdict", choices=("token", "context", "mixed"), help="of the token-injection check"
    )
    group.add_argument(
        "--scores",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="only features of this ranking, by its score; may be repeated, then the first sorts",
    )
    out = add_ranking(parser, top=20)
    out.add_argument("--sort", choices=SORTS, default="score", help="(default: %(default)s)")
    out.add_argument("--ascending", action="store_true", help="smallest first")
    return parser


def _bound(text: str) -> float | None:
    return None if text == "-" else finite(text)


def _share(text: str) -> float:
    share = finite(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share of more than 0 and at most 1")
    return share


def _range(given: list[float | None] | None) -> tuple[float | None, float | None]:
    return (None, None) if given is None else (given[0], given[1])


def _features(scored: Scored) -> str:
    return "1 feature" if len(scored.features) == 1 else f"{len(scored.features)} features"


def _print(scored: Scored, store: FactStore, top: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rankings = [Path(path).stem for path in scored.settings["scores"]]
    names = ["feature", "score", "max_act", "density", *rankings[1:], "promotes", "fires on"]
    table = Table(*names, title=f"{_features(scored)} of {store.folder}")
    for row in scored.features[:top]:
        facts = store.feature(row["feature"])
        tokens = (facts.promoted[:5], facts.top_tokens[:5])
        cells = [
            str(row["feature"]),
            f"{row['score']:.4g}",
            f"{row['max_act']:.4g}",
            f"{row['density']:.3%}",
            *(f"{row[name]:.4g}" for name in rankings[1:]),
            *(escape(" ".join(repr(t.text)[1:-1] for t in some)) for some in tokens),
        ]
        table.add_row(*cells)
    Console().print(table)
    for note in scored.notes:
        print(f"note: {note}")
    removed: dict[str, Any] = scored.facts["removed"]
    print("removed: " + ", ".join(f"{n} by `{label}`" for label, n in removed.items()))


if __name__ == "__main__":
    raise SystemExit(main())
