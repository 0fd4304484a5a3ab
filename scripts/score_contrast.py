r"""Features that are more active in one set of prompts or responses than in another.

    sae-steered score contrast --contrast aqua-vs-trivia --limit 40 --spec-out best.yaml
    sae-steered score contrast --contrast faithful-vs-unfaithful --run results/evaluate-...
    sae-steered score contrast --base plain.jsonl --exp puzzles.jsonl --column question
    sae-steered score contrast --labelled backtracking.jsonl

Sets: --contrast NAME, or --base and --exp, or one --labelled file. With
DeepSeek-R1-Distill-Llama-8B and a published SAE:

    sae-steered score contrast --model deepseek-ai/DeepSeek-R1-Distill-Llama-8B \
        --sae-release llama_scope_r1_distill --sae-id l25r_400m_slimpajama_400m_openr1_math \
        --contrast aqua-vs-trivia --limit 250 --out runs/aqua.json --spec-out best.yaml

A pass that was killed goes on where it had been when the same command is given again.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness_ext.feature_arguments import (
    add_ranking,
    add_subject,
    count,
    finite,
    subject_of,
    ways_on,
    write_ranking,
)

NAMES = (
    "aqua-vs-trivia",
    "cot-vs-plain",
    "faithful-vs-unfaithful",
    "backtracking-vs-not",
    "fixed-vs-needed",
)
_FILES = "--base and --exp"
_RUNS = ("faithful-vs-unfaithful", "backtracking-vs-not")
ONLY_WITH: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("column", "prompt_column", "response_column", "group_column"), (_FILES,)),
    "split": (_FILES,),
    **dict.fromkeys(("run", "prompt_style"), _RUNS),
    **dict.fromkeys(("detector", "sign", "mentions"), _RUNS[:1]),
    **dict.fromkeys(("before", "phrases"), _RUNS[1:]),
    "benchmark": ("cot-vs-plain", "fixed-vs-needed"),
    **dict.fromkeys(("max_new_tokens", "sample", "journal"), ("fixed-vs-needed",)),
}
"""Arguments that mean something for some sets only; for any others they are refused."""
NOT_IN_PARITY = (
    *("trim", "min_base", "min_exp", "max_q", "permutations", "list", "part", "count_template"),
    *("special", "first", "context", "batch_tokens"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the mode."""
    add_subject(parser)
    sets = parser.add_argument_group("the two sets")
    add = sets.add_argument
    add("--contrast", choices=NAMES, help="a ready-made pair of sets")
    add("--base", action="append", default=[], metavar="SOURCE", help="baseline: a .jsonl, .json,"
        " .parquet file, a .txt file with a text a line, or hub:ID; may be repeated")  # fmt: skip
    add("--exp", action="append", default=[], metavar="SOURCE", help="experiment, likewise")
    add("--labelled", type=Path, metavar="FILE", help="JSONL with `text` and `label`: 1 is the"
        " experiment, 0 the baseline")  # fmt: skip
    add("--column", default="text", metavar="NAME", help="column of the text (default: text)")
    add("--prompt-column", metavar="NAME", help="column of the user's message")
    add("--response-column", metavar="NAME", help="column of the response to it")
    add("--group-column", metavar="NAME", help="column of the question's id: same ids are paired")
    add("--split", default="train", help="of hub data sets (default: train)")
    add("--prompt-format", metavar="FORMAT", help="put prompts into this, with {prompt}, in place"
        " of the model's chat template")  # fmt: skip
    add("--limit", type=int, metavar="N", help="texts of a set at most")
    add("--run", action="append", default=[], type=Path, metavar="PATH", help="folder or file of a"
        " run of a _hint task, for contrasts of responses; may be repeated")  # fmt: skip
    add("--detector", default="lexicon", help="faithful-vs-unfaithful: lexicon, regex or judge")
    add("--sign", choices=("correct", "wrong", "both"), default="both", help="of the hints")
    add(
        "--mentions",
        choices=("words", "sentence", "keep"),
        default="words",
        help="faithful-vs-unfaithful: leave out the words that name the hint, their sentence, or"
        " nothing (default: words)",
    )
    add("--before", action="store_true", help="backtracking-vs-not: the sentence in front of it")
    add("--phrases", type=Path, metavar="YAML", help="phrases of backtracking of your own")
    add("--prompt-style", default="boxed", help="of records.jsonl files (default: boxed)")
    add("--benchmark", default="aqua", help="cot-vs-plain, fixed-vs-needed (default: aqua)")
    add("--max-new-tokens", type=count, default=512, metavar="N", help="fixed-vs-needed: tokens of"
        " a chain of thought (default: 512)")  # fmt: skip
    add("--sample", action="store_true", help="fixed-vs-needed: temperature 0.6, top-p 0.95")
    add("--journal", type=Path, metavar="DIR", help="fixed-vs-needed: keeps chains of thought"
        " (default: in the cache)")  # fmt: skip
    what = parser.add_argument_group("what counts")
    add = what.add_argument
    add("--part", choices=("prompt", "response", "reasoning", "final", "all"), help="of a text")
    add("--count-template", action="store_true", help="the chat template's own words count, too")
    add("--special", action="store_true", help="BOS and other special tokens count, too")
    add("--first", type=int, metavar="N", help="only the first N tokens that count")
    add("--context", type=int, default=4096, metavar="N", help="tokens of a text at most")
    add("--think-end", default="</think>", help="what closes the reasoning (default: </think>)")
    add("--batch-tokens", type=count, default=4096, metavar="N", help="(default: 4096)")
    score = parser.add_argument_group("score")
    add = score.add_argument
    add("--aggregate", choices=("mean", "last", "max", "active"), help="over the tokens of a text"
        " (default: mean); active: share of tokens at which the feature fires")  # fmt: skip
    add("--trim", type=finite, default=0.0, metavar="X", help="share of texts left out at each end")
    add("--min-base", type=finite, default=0.01, metavar="X", help="(default: 0.01)")
    add("--min-exp", type=finite, default=0.1, metavar="X", help="(default: 0.1)")
    add("--max-q", type=finite, default=0.05, metavar="X", help="1 keeps all (default: 0.05)")
    add("--permutations", type=int, default=10_000, metavar="N", help="(default: 10000)")
    add("--seed", type=int, default=0, help="(default: 0)")
    add("--list", choices=("both", "increase", "absent"), default="both", help="increase: the"
        " baseline has the feature, too; absent: it does not (default: both)")  # fmt: skip
    add("--parity", choices=("faithfulness", "reasoning"), help="compute as notebook 000 or 001")
    add("--parity-padding", choices=("batch", "set"), default="batch", help="pad to the longest of"
        " eight prompts, or of all")  # fmt: skip
    add = add_ranking(parser, top=10).add_argument
    add("--keep", type=count, default=1000, metavar="N", help="features of each list in --out")
    add("--table", type=Path, metavar="FILE", help="Parquet of all features")


def main(arguments: argparse.Namespace) -> int:
    """Return the exit status after printing the ranking; 1 if no feature passes.

    Raises:
        SteeringError: model, SAE or texts cannot be used.
        HarnessError: the files of a run cannot be used.
    """
    from harness_ext import contrast_run

    contrast_run.check(arguments)
    _check_used(arguments)
    subject = subject_of(arguments)
    found = contrast_run.run(arguments, subject)
    scored = found.scored
    command = write_ranking(arguments, scored)
    if arguments.table:
        found.write_table(arguments.table)
    if arguments.json:
        plain = scored.as_dict()
        print(json.dumps({**plain, "features": plain["features"][: arguments.top]}))
    else:
        _print(scored, arguments.top)
        for line in ways_on(arguments, command):
            print(line)
    found.finish()
    return 0 if scored.features else 1


def _check_used(arguments: argparse.Namespace) -> None:
    """Return nothing if every argument that was given does something.

    Raises:
        SpecError: one does not.
    """
    from interventions.errors import SpecError

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = {
        name
        for name in (*ONLY_WITH, *NOT_IN_PARITY, "parity_padding")
        if getattr(arguments, name) != parser.get_default(name)
    }
    sets = arguments.contrast or (_FILES if arguments.base else "--labelled")
    for name in sorted(given):
        flag = f"--{name.replace('_', '-')}"
        if sets not in ONLY_WITH.get(name, (sets,)):
            raise SpecError(
                f"{flag} does nothing with {sets}; it goes with {' or '.join(ONLY_WITH[name])}"
            )
        if arguments.parity and name in NOT_IN_PARITY:
            raise SpecError(f"{flag} does nothing with --parity, which is as the notebook is")
        if name == "parity_padding" and arguments.parity != "reasoning":
            raise SpecError(f"{flag} goes with --parity reasoning, where padding counts")


def _print(scored: Any, top: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = scored.features[:top]
    if rows:
        table = Table(
            title=f"{scored.settings['name']}: {scored.subject['sae_label']} at"
            f" {scored.subject['hook_point']}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        tested = "q" in rows[0]
        names = ["feature", "list", "base", "exp", "% more", "active in"]
        names += ["difference [95 %]", "p", "q", "length r"] if tested else []
        names += ["max act"] if "max_act" in rows[0] else []
        for name in names:
            table.add_column(name, justify="left" if name == "list" else "right", no_wrap=True)
        for row in rows:
            table.add_row(*_cells(row, tested))
        Console(width=None if sys.stdout.isatty() else 128).print(table)
    facts = scored.facts
    for name, label in (("base", "baseline"), ("exp", "experiment")):
        side = facts[name]
        print(f"{label}: " + ", ".join(f"{key} {_short(value)}" for key, value in side.items()))
    removed = ", ".join(f"{count} by {why}" for why, count in facts["removed"].items() if count)
    print(f"removed: {removed or 'none'}")
    for note in scored.notes:
        print(f"note: {note}")


def _cells(row: Mapping[str, Any], tested: bool) -> list[str]:
    def show(name: str) -> str:
        return "-" if row[name] is None else f"{row[name]:.2g}"

    increase = f"{row['increase']:.0f}" if row["list"] == "increase" else "-"
    cells = [str(row["feature"]), row["list"], show("base"), show("exp"), increase]
    cells.append(f"{row['share_base']:.2f}, {row['share_exp']:.2f}")
    if tested:
        between = f"{show('difference')} [{show('low')}, {show('high')}]"
        cells += [between, show("p"), show("q"), f"{row['length_r']:+.2f}"]
    return [*cells, show("max_act")] if "max_act" in row else cells


def _short(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
