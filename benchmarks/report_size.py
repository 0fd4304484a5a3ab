"""How large a leaderboard's report is, and how long it takes to write, open and use.

    python benchmarks/report_size.py --out benchmarks/results/report_size.json
    python benchmarks/report_size.py --features 12 --questions 48 --keep report

A simulated leaderboard (what is an effect is known, see harness_ext.leaderboard.simulate) whose
responses are put together from hand-labelled traces, of `--characters` each. Opened from files in a
headless Chromium, where there is one.
"""

import argparse
import json
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness_ext.leaderboard.board import BASELINE, Board, Info, Row, TaskInfo
from harness_ext.leaderboard.report import PAGE, write_report
from harness_ext.leaderboard.simulate import Simulation, simulate_board
from harness_ext.leaderboard.statistics import Options, analyse
from harness_ext.paths import data_dir
from harness_ext.records import Record, read_records

TASKS = tuple(f"steer_{name}_hint" for name in ("arith", "gsm8k", "math500", "aqua", "gpqa"))
STRENGTHS = (0.5, 1.0, 2.0)


def dressed_board(
    *, features: int, tasks: int, questions: int, characters: int, seed: int = 0
) -> Board:
    """Return a simulated board with strengths, nulls, prompts, an SAE, and long texts.

    Args:
        features: candidate rows; three strengths of each feature, so a third as many features.
        tasks: 1 to 5.
        questions: of each task.
        characters: of a response.
        seed: of all of it.
    """
    n_nulls, n_prompts = 40, 2
    plan = Simulation(
        features=features + n_prompts,
        nulls=n_nulls,
        questions=questions,
        tasks=TASKS[:tasks],
        accuracy_effects={4: 0.25, 5: 0.3},
        follow_effects={7: -0.3, 8: -0.35, features: -0.25},
        seed=seed,
    )
    board = simulate_board(plan)
    rows = [
        _row(row, number - 1, features) if number else row for number, row in enumerate(board.rows)
    ]
    writer = _Writer(characters, seed)
    records = {
        row.id: tuple(writer.dress(record) for record in board.records[row.id])
        for row in board.rows
    }
    info = Info(
        name="Simulated leaderboard",
        model="simulated (no model)",
        model_identity="0" * 16,
        backend="hf",
        dtype="float32",
        engine={"device": "cpu", "data_parallel": 1},
        versions={"python": platform.python_version()},
        tasks=tuple(
            TaskInfo(name=name, n_questions=questions, gen_kwargs={"max_gen_toks": 512})
            for name in TASKS[:tasks]
        ),
        config={"simulation": plan.seed},
        created="2026-11-22T00:00:00Z",
    )
    return replace(board, info=info, rows=tuple(rows), records=records)


def _row(row: Row, number: int, features: int) -> Row:
    if row.kind == "feature" and number >= features:
        text = ("Say so if you use a hint.", "Ignore hints.")[number - features]
        return Row(id=row.id, kind="prompt", label=f"prompt: {text}", prompt=text)
    strength = STRENGTHS[number % len(STRENGTHS)]
    index = 101 + 37 * (number // len(STRENGTHS))
    null = row.kind != "feature"
    lexical = ("professor",) if number % 29 == 20 and not null else ()
    return row.model_copy(
        update={
            "label": f"{'random ' if null else ''}feature {index} \u00d7 {strength:g}",
            "sae": "sae-resid-l15-8k",
            "feature": index,
            "op": "clamp",
            "strength": strength,
            "value": 4.1 * strength,
            "hook_point": "blocks.15.hook_resid_post",
            "positions": "all",
            "mean_change": 3.2 * strength,
            "matches": "f1" if null else None,
            "promoted": (*lexical, " wait", " hmm", " actually", " check"),
            "lexical": lexical,
            "fingerprint": f"{number:016x}",
            "spec": {"sae": "sae-resid-l15-8k", "edits": [{"feature": index, "op": "clamp"}]},
        }
    )


class _Writer:
    """Puts real traces around what a simulated response says."""

    def __init__(self, characters: int, seed: int) -> None:
        traces = read_records(data_dir() / "labelled_traces.jsonl")
        self.plain = [t.reasoning for t in traces if t.label and not t.label.mentions]
        self.saying = [t.reasoning for t in traces if t.label and t.label.mentions]
        self.questions = sorted({t.question for t in traces if t.question})
        self.characters = characters
        self.random = random.Random(seed)

    def dress(self, record: Record) -> Record:
        """Return the record with texts of the length that was asked for."""
        parts = [self.random.choice(self.saying)] if "professor" in record.reasoning else []
        while sum(map(len, parts)) < self.characters:
            parts.append(self.random.choice(self.plain))
        self.random.shuffle(parts)
        number = int(record.qid.rsplit("-", 1)[1])
        target = record.hint_target
        return record.model_copy(
            update={
                "reasoning": "\n\n".join(parts),
                "final": f"The answer is \\boxed{{{record.answer}}}." if record.answer else "",
                "question": self.questions[number % len(self.questions)],
                "hint_text": target and f"An authoritative professor indicates it is {target}.",
            }
        )


def measure_browser(page: Path, rounds: int) -> dict[str, Any]:
    """Return medians in ms: until loaded, sorting, filtering, searching, a row's transcripts."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.browser import DESKTOP, programs, start

    if programs() is None:
        return {"skipped": "no Chromium here: apt-get install chromium chromium-driver"}
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = start(profile)
        try:
            for _ in range(rounds):
                browser.open(page, size=DESKTOP)
                for name, ms in _use(browser).items():
                    taken.setdefault(name, []).append(ms)
            version = browser.driver.capabilities["browserVersion"]
            said, asked = browser.console(), browser.outside()
            nodes = browser.js("return document.querySelectorAll('*').length")
        finally:
            browser.driver.quit()
    return {
        "chromium": version,
        "rounds": rounds,
        "ms": {name: round(statistics.median(ms), 1) for name, ms in taken.items()},
        "elements": nodes,
        "console": said,
        "requests_outside": asked,
    }


def _use(browser: Any) -> dict[str, float]:
    """Return the ms of each thing a reader does, laid out and painted."""
    loaded = browser.js(
        "const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd"
    )
    timed = """
        const done = arguments[arguments.length - 1], t = performance.now();
        {}
        requestAnimationFrame(() => setTimeout(() => done(performance.now() - t)));
    """
    asynchronous = browser.driver.execute_async_script
    found = {"load": loaded}
    for name, code in (
        ("sort by effect", "SaeTables.rows.sortBy('effect');"),
        ("show all tasks and metrics", "SaeTables.rows.choose('task', ''); "
         "SaeTables.rows.choose('metric', '');"),
        ("sort all by q", "SaeTables.rows.sortBy('q');"),
        ("search", "const s = document.querySelector('#rows [data-search]'); s.value = '138 2';"
         "s.dispatchEvent(new Event('input'));"),
    ):  # fmt: skip
        found[name] = asynchronous(timed.replace("{}", code))
    found["open transcripts"] = asynchronous("""
        const done = arguments[arguments.length - 1], t = performance.now();
        const look = () => document.querySelector('.pair article:nth-child(2) .text')
          ? done(performance.now() - t) : setTimeout(look, 2);
        location.hash = '#row/f1/0';
        look();
    """)
    return found


def main() -> None:
    """Write one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=int, default=500, help="candidate rows (default 500)")
    parser.add_argument("--tasks", type=int, default=5, choices=range(1, 6))
    parser.add_argument("--questions", type=int, default=40, help="of each task (default 40)")
    parser.add_argument("--characters", type=int, default=1500, help="of a response")
    parser.add_argument("--draws", type=int, default=500, help="bootstrap draws")
    parser.add_argument("--rounds", type=int, default=5, help="of the browser")
    parser.add_argument("--keep", type=Path, help="folder for the report; else it is deleted")
    parser.add_argument("--out", type=Path, help="file for the result; else stdout")
    args = parser.parse_args()
    start = time.process_time()
    board = dressed_board(
        features=args.features,
        tasks=args.tasks,
        questions=args.questions,
        characters=args.characters,
    )
    made = time.process_time()
    results = analyse(board, Options(draws=args.draws))
    analysed = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        paths = write_report(board, results, folder)
        written = time.process_time()
        sizes = {path.name: path.stat().st_size for path in paths if path.parent == folder}
        rows = sorted(path.stat().st_size for path in paths if path.parent != folder)
        found = {
            "rows": len(board.rows),
            "tasks": args.tasks,
            "questions": args.questions,
            "responses": sum(map(len, board.records.values())),
            "characters": args.characters,
            "cells": len(results.cells),
            "cpu_seconds": {
                "simulate": round(made - start, 1),
                "statistics": round(analysed - made, 1),
                "report": round(written - analysed, 1),
            },
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "bytes": sizes,
            "row_files": len(rows),
            "row_file_bytes": {"median": rows[len(rows) // 2], "largest": rows[-1]},
            "row_bytes_total": sum(rows),
            "baseline": BASELINE in board.records,
            "browser": measure_browser(folder / PAGE, args.rounds),
        }
    text = json.dumps(found, indent=1) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
