"""Compare our answer checking with lm-eval's scorers, math_verify and the AIRI rule.

    PYTHONPATH=DIR SAE_STEERED_DATA=… python benchmarks/scorer_parity.py --out benchmarks/results

where DIR holds antlr4-python3-runtime 4.11 for lm-eval's minerva_math (see --help). Every scorer
reads the same responses, whose verdicts are known (`scorer_responses.py`). Writes the counts and
every difference as JSON lines, and prints the counts as a table.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

from peer_scorers import Scorer, missing, ours, peers
from scorer_responses import Response, reference, table

PACKAGES = ("lm-eval", "math-verify", "latex2sympy2-extended", "sympy", "antlr4-python3-runtime")
SECONDS = 30  # for one response; a peer that needs longer hangs
REASONS = {
    "lm-eval hendrycks_math500": "takes the text between the first and the last $, not the box",
    "lm-eval minerva_math exact_match": "wants 'The final answer is …. I hope it is correct.'",
    "lm-eval minerva_math math_verify": "math_verify on the whole response",
    "lm-eval aime": "compares strings after stripping LaTeX layout",
    "lm-eval gsm8k strict-match": "wants '#### N'",
    "lm-eval gsm8k flexible-extract": "the last number of the text, compared as a string",
    "lm-eval gpqa strict-match": "wants 'The answer is (X).'; cuts the last character",
    "lm-eval gpqa flexible-extract": "the last '(X)' anywhere, else a letter behind a colon",
    "AIRI": "compares strings; equivalence is left to a language model that is off",
    "math_verify": "reads any formula or number of the whole response; joins boxes of one line",
}


class Hang(Exception):
    """A scorer took longer than `SECONDS`."""


def verdict(scorer: Scorer, response: Response) -> str:
    """Return "right", "wrong", or how the scorer failed: the type of its error, or "hang"."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return "right" if scorer(response) else "wrong"
    except Hang:
        return "hang"
    except Exception as err:
        return type(err).__name__
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def rows(responses: list[Response]) -> Iterator[dict]:
    """Yield one row a response: the verdict that is right, ours and those of the peers."""
    own = ours()
    scorers = {like: peers(like) for like in sorted({r.like for r in responses})}
    for i, response in enumerate(responses):
        if sys.stderr.isatty() and i % 50 == 0:
            sys.stderr.write(f"\r{i} of {len(responses)}")
        yield {
            "set": response.set,
            "id": response.id,
            "like": response.like,
            "gold": response.gold,
            "text": response.text if response.set == "table" else None,
            "expected": "right" if response.right else "wrong",
            "ours": verdict(own, response),
            "peers": {n: verdict(s, response) for n, s in scorers[response.like].items()},
            "why": response.why,
        }


def differences(found: list[dict]) -> list[dict]:
    """Return every pair of our verdict and a peer's that differ, with who is right and why."""
    listed = []
    for row in found:
        for peer, said in row["peers"].items():
            if said == row["ours"]:
                continue
            listed.append(
                {
                    **{k: row[k] for k in ("set", "id", "gold", "text", "expected", "ours")},
                    "peer": peer,
                    "said": said,
                    "right": "ours" if row["ours"] == row["expected"] else "peer",
                    "why": f"{row['why']}; {REASONS[peer]}" if row["why"] else REASONS[peer],
                }
            )
    return listed


def grouped(listed: list[dict]) -> list[dict]:
    """Return the table's differences as they are, those of the data sets as one line a kind."""
    kept, groups = [], {}
    for item in listed:
        if item["text"] is not None:
            kept.append(item)
            continue
        kind = {k: v for k, v in item.items() if k not in ("id", "gold", "text")}
        groups.setdefault(json.dumps(kind), []).append(item["id"])
    return kept + [{**json.loads(kind), "ids": ids} for kind, ids in groups.items()]


def counts(found: list[dict], listed: list[dict]) -> list[dict]:
    """Return one line a set and scorer: errors of each and who is right where they differ."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in found):
        mine = [row for row in found if row["set"] == name]
        for peer in dict.fromkeys(p for row in mine for p in row["peers"]):
            judged = [row for row in mine if peer in row["peers"]]
            said = Counter((row["expected"], row["peers"][peer]) for row in judged)
            own = Counter((row["expected"], row["ours"]) for row in judged)
            who = Counter(d["right"] for d in listed if d["set"] == name and d["peer"] == peer)
            lines.append(
                {
                    "set": name,
                    "peer": peer,
                    "responses": len(judged),
                    "peer_false_wrong": said["right", "wrong"],
                    "peer_false_right": said["wrong", "right"],
                    "peer_failed": sum(n for (_, s), n in said.items() if s not in VERDICTS),
                    "ours_false_wrong": own["right", "wrong"],
                    "ours_false_right": own["wrong", "right"],
                    "differ": who["ours"] + who["peer"],
                    "ours_right": who["ours"],
                    "peer_right": who["peer"],
                }
            )
    return lines


VERDICTS = ("right", "wrong")
HEAD = "| set | scorer | responses | differ | ours right | theirs right | its errors: false wrong / false right / failed | ours |"  # noqa: E501


def markdown(lines: list[dict]) -> str:
    """Return the counts as a table."""
    body = [
        f"| {n['set']} | {n['peer']} | {n['responses']} | {n['differ']} | {n['ours_right']} | "
        f"{n['peer_right']} | {n['peer_false_wrong']} / {n['peer_false_right']} / "
        f"{n['peer_failed']} | {n['ours_false_wrong']} / {n['ours_false_right']} |"
        for n in lines
    ]
    return "\n".join([HEAD, "| --- | --- |" + " ---: |" * 6, *body])


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("SAE_STEERED_DATA"), help="folder")
    parser.add_argument("--out", type=Path, help="folder for scorer_parity-DATE.jsonl")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    args = parser.parse_args()
    responses = table() + (reference(Path(args.data)) if args.data else [])
    for line in [] if args.data else ["no --data: the table of pitfalls only"]:
        sys.stderr.write(line + "\n")
    for line in missing():
        sys.stderr.write(f"left out: {line}\n")
    start = time.monotonic()
    found = list(rows(responses))
    listed = differences(found)
    lines = counts(found, listed)
    head = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "left_out": missing(),
        "responses": len(responses),
        "seconds": round(time.monotonic() - start, 1),
    }
    if args.out:
        path = args.out / f"scorer_parity-{head['date']}.jsonl"
        parts = [
            head,
            *({"count": n} for n in lines),
            *({"difference": d} for d in grouped(listed)),
        ]
        text = "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in parts)
        path.write_text(text, encoding="utf-8")
    print(json.dumps({**head, "counts": lines}) if args.json else markdown(lines))


if __name__ == "__main__":
    main()
