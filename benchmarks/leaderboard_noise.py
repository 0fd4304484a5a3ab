"""Do the statistics of a leaderboard find nothing in noise, and what is there?

    python benchmarks/leaderboard_noise.py --boards 200 --out leaderboard_noise.json

Simulated leaderboards of records (`harness_ext.leaderboard.simulate`) go through `analyse`:

- noise: no row has an effect; the share of families with any discovery must stay at the level,
  and the p-values be uniform, or above it where outcomes are few and discrete;
- planted: a few rows have effects; the share of false discoveries must stay at the level;
- pushes: every row has an effect of its own, candidates and random rows alike; q does not keep
  them out, and what stands outside of the random rows does so by chance;
- power: the share of planted effects that are seen at p .05, beside the power of the formula;
- coverage: how often the intervals hold the true effect.
"""

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import statsmodels
from scipy.stats import beta

from harness_ext.leaderboard.counting import count_side, keys_of
from harness_ext.leaderboard.power import power_of_accuracy, power_of_mean
from harness_ext.leaderboard.simulate import Simulation, simulate_board
from harness_ext.leaderboard.statistics import Options, analyse
from harness_ext.metric_table import METRICS as METRICS_BY_NAME

METRICS = ("acc_none", "influence", "silent_use_lexicon", "verbalization_lexicon", "mean_tokens")


NOISE = {
    "one sample, 50 questions": {"questions": 50, "repeats": 1},
    "three samples, 25 questions": {"questions": 25, "repeats": 3},
    "16 questions": {"questions": 16, "repeats": 1},
    "any push costs 10 points": {"questions": 50, "null_effect": -0.1},
}
"""Boards take turns; in the last kind random rows lose as much as candidates do."""


def noise(boards: int, level: float) -> dict[str, Any]:
    """Return discoveries and p-values of leaderboards without any effect of their own."""
    found: dict[str, list[bool]] = defaultdict(list)
    by_q: dict[str, list[bool]] = defaultdict(list)
    p_values: dict[str, list[float]] = defaultdict(list)
    for seed in range(boards):
        kind = list(NOISE)[seed % len(NOISE)]
        board = simulate_board(Simulation(features=16, nulls=7, seed=seed, **NOISE[kind]))  # type: ignore[arg-type]
        results = analyse(board, Options(metrics=METRICS, level=level, seed=seed, draws=500))
        for family in results.families:
            own = [c for c in results.cells if c.metric == family.metric]
            pushed = kind == "any push costs 10 points"
            for name in (family.metric, f"all metrics; {kind}"):
                found[name].append(bool(family.discoveries))
                if not pushed:  # where any push does harm, the null and not q keeps it out
                    by_q[name].append(any(c.q is not None and c.q <= level for c in own))
            if not pushed:
                p_values[family.metric] += [c.p for c in own if c.p is not None]
    return {
        name: {
            "families": len(shares),
            "with_a_discovery": sum(shares),
            "share": float(np.mean(shares)),
            "share_95": clopper(sum(shares), len(shares)),
            "share_by_q_alone": float(np.mean(by_q[name])) if by_q[name] else None,
            **(_spread_of(p_values[name]) if name in p_values else {}),
        }
        for name, shares in found.items()
    }


def _spread_of(p_values: list[float]) -> dict[str, Any]:
    values = np.array(p_values)
    return {
        "p_values": len(values),
        "p_at_most_.05": round(float(np.mean(values <= 0.05)), 4),
        "p_at_most_.01": round(float(np.mean(values <= 0.01)), 4),
        "p_by_tenths": np.histogram(values, bins=10, range=(0, 1))[0].tolist(),
    }


def planted(boards: int, level: float) -> dict[str, Any]:
    """Return the share of false discoveries where 5 of 25 rows have effects."""
    real = {f"f{i}" for i in range(5)}
    false_share: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, list[float]] = defaultdict(list)
    for seed in range(boards):
        board = simulate_board(
            Simulation(
                features=25,
                nulls=19,
                questions=200,
                hinted=False,
                accuracy=0.4,
                seed=1000 + seed,
                accuracy_effects=dict.fromkeys(range(5), 0.35),
            )
        )
        results = analyse(board, Options(metrics=("acc_none",), level=level, draws=500))
        for family in results.families:
            wrong = [row for row in family.discoveries if row not in real]
            false_share[family.metric].append(len(wrong) / max(len(family.discoveries), 1))
            seen[family.metric].append(len(real & set(family.discoveries)) / len(real))
    return {
        metric: {
            "boards": len(false_share[metric]),
            "false_discovery_rate": float(np.mean(false_share[metric])),
            "share_of_real_ones_found": float(np.mean(seen[metric])),
        }
        for metric in false_share
    }


def pushes(boards: int, level: float) -> dict[str, Any]:
    """Return what is found where candidates do no more, and no less, than random rows do."""
    differ, found = [], []
    for seed in range(boards):
        plan = Simulation(
            features=32, nulls=30, questions=200, hinted=False, null_spread=0.15, seed=3000 + seed
        )
        results = analyse(simulate_board(plan), Options(metrics=("acc_none",), level=level))
        cells = [c for c in results.cells if c.q is not None]
        differ.append(sum((c.q or 0.0) <= level for c in cells))
        found.append(sum(c.discovery for c in cells))
    return {
        "boards": boards,
        "candidates": 32,
        "differ_from_the_baseline": float(np.mean(differ)),
        "discoveries": float(np.mean(found)),
        "boards_with_a_discovery": float(np.mean(np.array(found) > 0)),
    }


def power(boards: int) -> list[dict[str, Any]]:
    """Return how often planted effects are seen at p .05, and how often the formula says."""
    out = []
    for questions, repeats, effect in ((100, 1, 0.15), (200, 1, 0.15), (100, 4, 0.15)):
        hits, shares, sizes, sds = [], [], [], []
        for seed in range(boards):
            plan = Simulation(
                features=1, nulls=0, questions=questions, repeats=repeats, hinted=False,
                accuracy=0.4, missing=0.0, spread=0.5, copied=0.0, seed=5000 + seed,
                accuracy_effects={0: effect},
            )  # fmt: skip
            results = analyse(
                simulate_board(plan), Options(metrics=("acc_none",), dev_share=0.0, draws=500)
            )
            cell = results.cells[0]
            hits.append(cell.p is not None and cell.p <= 0.05)
            sizes.append(cell.effect.value)
            board_sd = _sd(plan)
            sds.append(board_sd)
            if cell.fixed is not None and cell.broken is not None:
                shares.append((cell.fixed + cell.broken) / questions)
        size = float(np.mean(sizes))
        formula = (
            power_of_accuracy(questions, float(np.mean(shares)), size)
            if shares
            else power_of_mean(questions, float(np.mean(sds)), size)
        )
        out.append(
            {
                "questions": questions,
                "samples": repeats,
                "effect": size,
                "seen": float(np.mean(hits)),
                "seen_95": clopper(sum(hits), len(hits)),
                "formula": formula,
            }
        )
    return out


def _sd(plan: Simulation) -> float:
    board = simulate_board(plan)
    by: dict[str, dict[str, list[bool]]] = {"baseline": defaultdict(list), "f0": defaultdict(list)}
    for row, records in board.records.items():
        for record in records:
            by[row][record.qid].append(record.correct)
    return float(
        np.std([np.mean(by["f0"][q]) - np.mean(by["baseline"][q]) for q in by["f0"]], ddof=1)
    )


def coverage(boards: int) -> dict[str, Any]:
    """Return how often the 95 % intervals of noise rows hold 0, their true effect."""
    out = {}
    for questions in (20, 50, 200):
        held: dict[str, list[bool]] = defaultdict(list)
        for seed in range(boards):
            plan = Simulation(
                features=10, nulls=0, questions=questions, seed=9000 + seed, copied=0.0
            )
            results = analyse(simulate_board(plan), Options(metrics=METRICS, dev_share=0.0))
            for cell in results.cells:
                if cell.effect.lo is not None and cell.effect.hi is not None:
                    held[cell.metric].append(cell.effect.lo <= 0 <= cell.effect.hi)
        out[f"{questions} questions"] = {m: round(float(np.mean(v)), 4) for m, v in held.items()}
    return out


def clopper(hits: int, n: int) -> list[float]:
    """Return the exact 95 % interval of a share."""
    lo = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    hi = 1.0 if hits == n else float(beta.ppf(0.975, hits + 1, n - hits))
    return [round(lo, 4), round(hi, 4)]


def speed(rows: int, tasks: int, questions: int) -> dict[str, Any]:
    """Return how long a large board takes."""
    plan = Simulation(
        features=rows - 50,
        nulls=50,
        questions=questions,
        tasks=tuple(f"t{i}" for i in range(tasks)),
    )
    board = simulate_board(plan)
    started = time.process_time()
    keys = keys_of([METRICS_BY_NAME[name] for name in METRICS])
    for row in board.rows:
        for task in plan.tasks:
            count_side(board.of(row.id, task), keys)
    counting = time.process_time() - started
    started = time.process_time()
    results = analyse(board, Options(metrics=METRICS))
    return {
        "rows": rows,
        "tasks": tasks,
        "metrics": len(METRICS),
        "questions": questions,
        "responses": sum(map(len, board.records.values())),
        "cells": len(results.cells),
        "cpu_seconds": round(time.process_time() - started, 1),
        "of_these_counting": round(counting, 1),
    }


PARTS: dict[str, Callable[[int, float], Any]] = {
    "noise": noise,
    "planted": lambda boards, level: planted(boards // 4, level),
    "pushes": lambda boards, level: pushes(boards // 4, level),
    "power": lambda boards, level: power(boards),
    "coverage": lambda boards, level: coverage(boards // 4),
    "speed": lambda boards, level: speed(500, 5, 200),
}


def main() -> None:
    """Print what was found, and write it to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boards", type=int, default=200, help="of noise (default: 200)")
    parser.add_argument("--level", type=float, default=0.05, help="of the q-values (default: .05)")
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    found: dict[str, Any] = {
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "statsmodels": statsmodels.__version__,
        },
        "level": args.level,
    }
    for name, run in PARTS.items():
        if args.only in (None, name):
            started = time.perf_counter()
            found[name] = run(args.boards, args.level)
            found.setdefault("seconds", {})[name] = round(time.perf_counter() - started, 1)
            print(json.dumps({name: found[name]}), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
