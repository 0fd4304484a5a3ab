r"""ReasonScore: features that are active near words of reasoning, evenly over the words.

    sae-steered score reason --text records.jsonl --template '{reasoning}' --spec-out best.yaml
    sae-steered score reason --text docs:stdlib --tokens 20000 --top 5

One pass of the model for all features. With DeepSeek-R1-Distill-Llama-8B and a published SAE:

    sae-steered score reason --model deepseek-ai/DeepSeek-R1-Distill-Llama-8B \
        --sae-release llama_scope_r1_distill --sae-id l18r_400m_slimpajama_400m_openr1_math \
        --text hub:open-thoughts/OpenThoughts-114k:metadata --column deepseek_reasoning \
        --tokens 4000000 --context 1024 --out runs/reason.json --table runs/reason.parquet

A pass that was killed goes on where it had been when the same command is given again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from harness_ext.feature_arguments import (
    add_ranking,
    add_subject,
    add_text,
    at_least_0,
    count,
    subject_of,
    text_of,
    ways_on,
    write_ranking,
)
from interventions.errors import SpecError
from interventions.features.words import REASON_WORDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the mode."""
    add_subject(parser)
    add_text(parser, tokens=200_000)
    group = parser.add_argument_group("score")
    group.add_argument(
        "--words",
        type=Path,
        default=REASON_WORDS,
        metavar="FILE",
        help="YAML or JSON: {group: [string, ...]} or a list (default: the paper's 34 strings)",
    )
    group.add_argument(
        "--window",
        type=int,
        nargs=2,
        default=(1, 2),
        metavar=("BEFORE", "AFTER"),
        help="tokens around each token of a word that count with it (default: 1 2)",
    )
    group.add_argument(
        "--alpha", type=at_least_0, default=0.7, help="power of the entropy; 0: none (default: 0.7)"
    )
    group.add_argument(
        "--ignore",
        metavar="IDS",
        help="token ids that do not count, such as 128000,128001 (default: all special tokens)",
    )
    group.add_argument(
        "--units",
        choices=("residual", "sae"),
        default="residual",
        help="residual: activation times decoder norm, as published; sae: as the SAE gives it"
        " (default: %(default)s)",
    )
    group.add_argument(
        "--drop-missing", action="store_true", help="leave words that never occur out of entropies"
    )
    group.add_argument(
        "--blocks",
        type=int,
        default=20,
        metavar="N",
        help="parts of the documents, for standard errors; 1: none (default: %(default)s)",
    )
    group.add_argument(
        "--parity",
        action="store_true",
        help="as the published script: documents joined, windows across them, sinks kept",
    )
    group.add_argument(
        "--batch-tokens", type=count, default=4096, metavar="N", help="(default: %(default)s)"
    )
    out = add_ranking(parser, top=20)
    out.add_argument("--keep", type=count, default=1000, metavar="N", help="features in --out")
    out.add_argument("--table", type=Path, metavar="FILE", help="Parquet of all features")


def main(arguments: argparse.Namespace) -> int:
    """Return the exit status after printing the ranking.

    Raises:
        SteeringError: model, SAE, text or word list cannot be used.
    """
    import dataclasses

    from interventions.cache import cache_dir
    from interventions.features import reason, reason_scores, words
    from interventions.features.checkpoint import Checkpoint
    from interventions.features.scored import Scored, write_table

    text = text_of(arguments)
    strings = words.read_words(arguments.words)
    ignore = _ids(arguments.ignore)
    subject = subject_of(arguments)
    if arguments.parity:
        subject = dataclasses.replace(subject, guard=None)
        text = text.model_copy(update={"pack": "concat", "eos": True, "bos": True})
    groups = words.word_groups(strings, subject.tokenizer)
    settings = reason.ReasonSettings(
        window=tuple(arguments.window),
        ignore=subject.special_ids if ignore is None else ignore,
        cross_documents=arguments.parity,
        blocks=arguments.blocks,
    )
    key = reason.pass_key(subject, text, groups, settings, arguments.batch_tokens, None)
    folder = (
        arguments.out.with_name(f".{arguments.out.name}.run-{key}")
        if arguments.out
        else cache_dir("runs") / f"reason-{key}"
    )
    sums = reason.collect(
        subject, text, groups, settings, folder=folder, batch_tokens=arguments.batch_tokens
    )
    folded = arguments.units == "residual"
    found = reason_scores.score(
        sums,
        groups,
        alpha=arguments.alpha,
        weights=subject.sae.W_dec.norm(dim=-1) if folded else None,
        drop_missing=arguments.drop_missing,
    )
    count = sums.counts.sum(0).tolist()
    scored = Scored.of(
        "reason",
        subject,
        text=text.model_dump(mode="json"),
        settings={
            **dataclasses.asdict(settings),
            "alpha": arguments.alpha,
            "units": arguments.units,
            "words": {name: list(found) for name, found in strings.items()},
            "drop_missing": arguments.drop_missing,
        },
        features=_with_max(
            reason_scores.as_rows(found, sums, groups, most=arguments.keep), subject
        ),
        notes=reason_scores.notes(sums, groups),
        facts={
            "tokens": int(sums.tokens),
            "tokens_near": count[-2],
            "tokens_elsewhere": count[-1],
            "tokens_left_out": int(sums.skipped),
            "blocks": found.blocks,
            "near": dict(zip(groups.names, count, strict=False)),
            "hits": dict(zip(groups.names, sums.hits.tolist(), strict=True)),
        },
    )
    command = write_ranking(arguments, scored)
    if arguments.table:
        columns = {
            "feature": list(range(subject.sae.d_sae)),
            "score": found.score,
            **({} if found.error is None else {"error": found.error}),
            "near": found.near,
            "rest": found.rest,
            "entropy": found.entropy,
            "active_tokens": sums.active,
            "max_here": sums.largest,
            **{f"mean {name}": found.by_group[:, place] for place, name in enumerate(groups.names)},
        }
        write_table(
            arguments.table, columns, {k: v for k, v in scored.as_dict().items() if k != "features"}
        )
    if arguments.json:
        print(json.dumps({**scored.as_dict(), "features": _head(scored, arguments.top)}))
    else:
        _print(scored, arguments.top)
        for line in ways_on(arguments, command):
            print(line)
    # Everything is written: the sums have done their work.
    Checkpoint(folder, key).clear()
    return 0


def _ids(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise SpecError(f"--ignore '{text}' is no list of ids; write 128000,128001") from None


def _with_max(rows: list[dict[str, Any]], subject: Any) -> list[dict[str, Any]]:
    """Return rows with the largest activation of this text, where the SAE stores none."""
    if subject.sae.max_act is not None:
        return rows
    return [{**row, "max_act": row["max_here"]} for row in rows]


def _head(scored: Any, top: int) -> list[dict[str, Any]]:
    return scored.as_dict()["features"][:top]


def _print(scored: Any, top: int) -> None:
    from rich.console import Console
    from rich.table import Table

    facts, rows = scored.facts, scored.features[:top]
    table = Table(
        title=f"ReasonScore of {scored.subject['sae_label']} at {scored.subject['hook_point']}"
    )
    error = bool(rows) and "error" in rows[0]
    for name in ("feature", "score %", *(["± se"] if error else []), "entropy", "density %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("max_act", justify="right", no_wrap=True)
    table.add_column("mean near", overflow="fold")
    for row in rows:
        words = {k.removeprefix("mean "): v for k, v in row.items() if k.startswith("mean ")}
        best = [name for name in sorted(words, key=words.__getitem__, reverse=True) if words[name]]
        table.add_row(
            str(row["feature"]),
            f"{100 * row['score']:.4f}",
            *([f"{100 * row['error']:.4f}"] if error else []),
            f"{row['entropy']:.2f}",
            f"{100 * row['density']:.2f}",
            f"{row['max_act']:.1f}",
            ", ".join(f"{name} {words[name]:.3g}" for name in best[:3]) or "-",
        )
    Console().print(table)
    print(
        f"{facts['tokens']} tokens: {facts['tokens_near']} near words,"
        f" {facts['tokens_elsewhere']} elsewhere, {facts['tokens_left_out']} left out;"
        f" means and max_act in SAE units, scores in {scored.settings['units']} units"
    )
    for note in scored.notes:
        print(f"note: {note}")
