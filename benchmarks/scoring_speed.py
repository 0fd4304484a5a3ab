"""Measure how fast answers are checked, and the share of a run that checking takes.

    SAE_STEERED_DATA=… python benchmarks/scoring_speed.py --out benchmarks/results
    python benchmarks/scoring_speed.py --run steer_arith --limit 8

The first compares samples/s with math_verify's own `verify(parse(gold), parse(response))` and
with lm-eval's scorer on the same responses in the same process, in turn, caches emptied before
each round. The second runs a task of the default model and times its scoring.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import random
import statistics
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from peer_scorers import BATCHED, Scorer, missing, ours, peers
from scorer_responses import Response, reference

LM_EVAL = {
    "math500": "lm-eval minerva_math math_verify",
    "aime": "lm-eval aime",
    "gsm8k": "lm-eval gsm8k flexible-extract",
    "aqua": "lm-eval gpqa flexible-extract",
}


def seconds(name: str, scorer: Scorer, responses: list[Response]) -> float:
    """Return the wall time of scoring all responses, from empty caches."""
    from math_verify import parser

    from harness_ext import verifier

    for cached in (verifier._compare, verifier._scalars, parser.parse_latex_cached,
                   parser.parse_expr_cached, parser.extract_latex):  # fmt: skip
        cached.cache_clear()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        if name in BATCHED:
            BATCHED[name](responses)
        else:
            for response in responses:
                scorer(response)
    return time.perf_counter() - start


def measure(responses: list[Response], rounds: int) -> list[dict]:
    """Return a line a benchmark: samples/s of ours and the ratio to each peer, medians."""
    lines = []
    for like in dict.fromkeys(r.like for r in responses):
        mine = [r for r in responses if r.like == like]
        scorers = {"ours": ours()}
        named = peers(like)
        scorers |= {n: named[n] for n in ("math_verify", LM_EVAL[like]) if n in named}
        for name, scorer in scorers.items():
            seconds(name, scorer, mine[:3])  # imports, the worker process, the grammar's tables
        taken = [{n: seconds(n, s, mine) for n, s in scorers.items()} for _ in range(rounds)]
        for name in scorers:
            ratios = [t[name] / t["ours"] for t in taken]
            lines.append(
                {
                    "benchmark": like,
                    "scorer": name,
                    "samples": len(mine),
                    "samples_per_s": len(mine) / statistics.median(t[name] for t in taken),
                    "ours_is_faster_by": statistics.median(ratios),
                    "least": min(ratios),
                    "most": max(ratios),
                }
            )
    return lines


def run(task: str, limit: int) -> dict:
    """Return wall times of a run of the default model and of the scoring in it."""
    from harness_ext import autoload

    autoload.install()
    import lm_eval

    from harness_ext.steer_task import SteerTask

    scoring = 0.0
    before = SteerTask.process_results

    def timed(self: SteerTask, doc: dict, results: list) -> dict:
        nonlocal scoring
        start = time.perf_counter()
        try:
            return before(self, doc, results)
        finally:
            scoring += time.perf_counter() - start

    SteerTask.process_results = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    lm_eval.simple_evaluate(
        model="sae_steered", tasks=[task], limit=limit, apply_chat_template=True,
        gen_kwargs="max_gen_toks=128", bootstrap_iters=0,
    )  # fmt: skip
    wall = time.perf_counter() - start
    return {"task": task, "limit": limit, "wall_s": wall, "scoring_s": scoring,
            "share": scoring / wall}  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("SAE_STEERED_DATA"), help="folder")
    parser.add_argument("--samples", type=int, default=200, help="responses a benchmark")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", metavar="TASK", help="time the scoring of a real run of this task")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--out", type=Path, help="folder for scoring_speed-DATE.jsonl (appended)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    head = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        **{name: version(name) for name in ("lm-eval", "math-verify", "sympy")},
        "left_out": missing(),
    }
    if args.run:
        lines = [run(args.run, args.limit)]
    elif args.data:
        every = reference(Path(args.data))
        random.Random(0).shuffle(every)
        chosen = [
            r for like in LM_EVAL for r in [r for r in every if r.like == like][: args.samples]
        ]
        lines = measure(chosen, args.rounds)
    else:
        parser.error("give --data (or SAE_STEERED_DATA) with the data sets, or --run TASK")
    if args.out:
        path = args.out / f"scoring_speed-{head['date']}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**head, **line}) + "\n" for line in lines)
    for line in lines:
        print(json.dumps(line) if args.json else "  ".join(
            f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()
        ))  # fmt: skip


if __name__ == "__main__":
    main()
