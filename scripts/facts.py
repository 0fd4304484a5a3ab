r"""Gather facts about every feature of an SAE: one pass over text, one folder of Parquet files.

    sae-steered facts --text docs:stdlib --tokens 200000 --out runs/facts
    sae-steered facts --text docs:stdlib --out runs/facts --causal --inject --top 100
    sae-steered facts --text docs:stdlib --out runs/facts --inject --features 12,345

Maxima, histograms, density, tokens, contexts, co-firing features, tokens through the logit lens.
With --causal and --inject also the measured next-token effect and the token-injection check, of a
shortlist: --features, the best of a --scores file, or --top live features with the largest
density below 5 %. A command that was killed goes on where it had been when it is given again.
`sae-steered find` searches the folder, `sae-steered dashboard` makes pages of it, and
`facts: FOLDER` in a spec's `sae` takes `max_act` from it. With DeepSeek-R1-Distill-Llama-8B:

    sae-steered facts --model deepseek-ai/DeepSeek-R1-Distill-Llama-8B \
        --sae-release llama_scope_r1_distill --sae-id l18r_400m_slimpajama_400m_openr1_math \
        --text hub:open-thoughts/OpenThoughts-114k:metadata --column deepseek_reasoning \
        --tokens 4000000 --context 1024 --out runs/r1_facts
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness_ext.feature_arguments import (
    add_subject,
    add_text,
    count,
    finite,
    subject_of,
    text_of,
)
from interventions.errors import SpecError
from interventions.features.scored import Scored, read_scored

_DENSE = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status after gathering facts and printing a summary.

    Raises:
        SteeringError: the model, SAE or text cannot be read, or the folder holds other facts.
    """
    arguments = _parser().parse_args(argv)
    wants_shortlist = arguments.causal or arguments.inject
    if (arguments.features or arguments.scores) and not wants_shortlist:
        raise SpecError(
            "--features and --scores choose what --causal and --inject measure; add one"
        )
    text, named = text_of(arguments), _named(arguments)
    subject = subject_of(arguments)
    if isinstance(named, list):
        subject.sae.check_features(named)
    elif named is not None and named.subject["sae_hash"] != subject.sae.content_hash:
        raise SpecError(
            f"{arguments.scores} ranks features of {named.subject['sae_label']}, not of"
            f" {subject.sae_ref.label}; give a ranking of the same SAE"
        )

    from interventions.features.causal import CausalSettings, measure_effects
    from interventions.features.facts import collect
    from interventions.features.injection import InjectionSettings, check_injections
    from interventions.features.running import FactSettings

    settings = FactSettings(
        top=arguments.contexts,
        quantiles=arguments.quantiles,
        window=arguments.window,
        lens=arguments.lens,
        seed=arguments.seed,
    )
    store = collect(subject, text, arguments.out, settings, batch_tokens=arguments.batch_tokens)
    report: dict[str, Any] = {
        "out": str(arguments.out),
        **{
            k: store.info[k]
            for k in ("tokens", "read", "sinks", "rows", "d_sae", "alive", "contexts")
        },
        "mean_l0": sum(store.column("density")),
    }
    if wants_shortlist:
        chosen = _shortlist(arguments, named, store)
        if arguments.causal:
            how = CausalSettings(
                contexts=arguments.passages, strength=arguments.strength, seed=arguments.seed
            )
            report["causal"] = measure_effects(subject, text, store, chosen, how)
        if arguments.inject:
            how = InjectionSettings(seed=arguments.seed)
            report["injection"] = check_injections(subject, text, store, chosen, how)
    _print(report, arguments.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-steered facts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the facts"
    )
    add_subject(parser)
    add_text(parser, tokens=200_000)
    kept = parser.add_argument_group("what is kept of every feature")
    kept.add_argument(
        "--contexts", type=count, default=10, metavar="N", help="top ones (default: 10)"
    )
    kept.add_argument(
        "--quantiles",
        type=count,
        default=5,
        metavar="N",
        help="groups of firings by strength, two contexts each (default: 5)",
    )
    kept.add_argument(
        "--window", type=count, default=16, metavar="N", help="tokens to each side (default: 16)"
    )
    kept.add_argument(
        "--lens", type=_lens, default=20, metavar="N", help="tokens each way; 0: none (default: 20)"
    )
    kept.add_argument("--seed", type=int, default=0, help="of samples (default: 0)")
    short = parser.add_argument_group("what is measured of a shortlist")
    short.add_argument("--causal", action="store_true", help="effect on the next token")
    short.add_argument("--inject", action="store_true", help="is it just a word detector?")
    short.add_argument("--features", metavar="N,N,...", help="these features")
    short.add_argument("--scores", type=Path, metavar="FILE", help="the best of this ranking")
    short.add_argument("--top", type=count, default=50, metavar="N", help="(default: 50)")
    short.add_argument(
        "--strength", type=finite, default=1.0, help="of --causal, in max_act (default: 1)"
    )
    short.add_argument(
        "--passages", type=count, default=32, metavar="N", help="of --causal (default: 32)"
    )
    parser.add_argument(
        "--batch-tokens", type=count, default=4096, metavar="N", help="(default: 4096)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def _named(arguments: argparse.Namespace) -> list[int] | Scored | None:
    """Return what --features or --scores name, read before the long pass."""
    if arguments.features and arguments.scores:
        raise SpecError("give --features or --scores, not both")
    if arguments.scores:
        return read_scored(arguments.scores)
    if not arguments.features:
        return None
    try:
        return [int(part) for part in arguments.features.split(",")]
    except ValueError:
        raise SpecError(
            f"--features '{arguments.features}' is no list of numbers such as 12,345"
        ) from None


def _shortlist(
    arguments: argparse.Namespace, named: list[int] | Scored | None, store: Any
) -> list[int]:
    if isinstance(named, list):
        return named
    density = store.column("density")
    if named is not None:
        features = [int(row["feature"]) for row in named.features]
        chosen = [feature for feature in features if density[feature] > 0][: arguments.top]
    else:
        some = [f for f, share in enumerate(density) if 0 < share < _DENSE]
        chosen = sorted(some, key=lambda f: -density[f])[: arguments.top]
    if not chosen:
        which = arguments.scores or f"features with a density below {_DENSE:.0%}"
        raise SpecError(f"no live feature among {which} to measure; name some with --features")
    return chosen


def _lens(text: str) -> int:
    return 0 if text == "0" else count(text)


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                print(f"{name + ' ' + key:<30} {_figure(inner)}")
        else:
            print(f"{name:<30} {_figure(value)}")


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
