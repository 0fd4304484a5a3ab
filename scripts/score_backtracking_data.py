r"""A data set of sentences in which a model backtracks, and of like ones in which it does not.

    sae-steered score backtracking-data results/evaluate-... --out backtracking.jsonl
    sae-steered score contrast --labelled backtracking.jsonl

One JSON object a line: text, label (1: backtracking), phrase, and where it came from. Each positive
has a negative of the same question and of like length.
"""

import argparse
import json
from pathlib import Path

from harness_ext.feature_arguments import count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the mode."""
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="PATH", help="folders of runs, samples_*.jsonl or"
        " records.jsonl")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FILE.jsonl", help="where to write")
    add("--phrases", type=Path, metavar="YAML", help="phrases of your own")
    add("--per-question", type=count, metavar="N", help="positives of a question at most")
    add("--limit", type=count, metavar="N", help="pairs at most")
    add("--seed", type=int, default=0, help="of the order and the choice (default: 0)")
    add("--json", action="store_true", help="print the counts as JSON")


def main(arguments: argparse.Namespace) -> int:
    """Return 0 after writing the data set and printing its counts.

    Raises:
        HarnessError: a file cannot be read, or holds no backtracking.
    """
    from harness_ext.asked import read_asked
    from harness_ext.backtracking import balance, find_sentences, load_phrases
    from harness_ext.errors import DataError
    from interventions.train.files import write_text

    phrases = load_phrases(arguments.phrases)
    asked = read_asked(arguments.runs)
    sentences = find_sentences([one.record for one in asked], phrases)
    found = balance(
        sentences,
        seed=arguments.seed,
        per_question=arguments.per_question,
        limit=arguments.limit,
    )
    rows = found.rows()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out, text)
    except OSError as error:
        raise DataError(f"{arguments.out} cannot be written: {error}; name another file") from None
    counts = {
        "responses": len(asked),
        "sentences": len(sentences),
        "pairs": len(found.pairs),
        "unmatched": found.unmatched,
        "over_per_question": found.over,
        "phrases": found.phrases,
    }
    if arguments.json:
        print(json.dumps(counts))
        return 0
    print(
        f"{arguments.out}: {len(rows)} rows, {counts['pairs']} positives with as many negatives,"
        f" from {counts['responses']} responses"
    )
    print("phrases: " + ", ".join(f"{name} {n}" for name, n in sorted(found.phrases.items())))
    print(f"left out: {found.unmatched} without a like sentence, {found.over} over --per-question")
    return 0
