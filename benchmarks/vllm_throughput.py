r"""Generated tokens a second of steered vLLM, as ratios to plain vLLM and to its peers.

    python benchmarks/vllm_throughput.py --out benchmarks/results

Every engine is a process of its own; a process that waits is idle (how much it burnt is in the
results). In each round all arms of a group run once, in another order each round, among them two
processes of plain vLLM: how far they are apart is what the machine can tell apart. A ratio is taken
within its round, to the mean of the two. Every arm makes the same number of tokens from the same
prompts, greedy, ends of text ignored, prefix caching off. The time of a steered arm includes its
receipt. Beside wall time, the ratio of CPU time: it is the steadier one on a busy machine.

Arms: `specs` (idle, 1 to 256 interventions in one batch), `prefill` (long prompts, few tokens), and
the peers, side by side: `full-sae` (eager vLLM with a hook that encodes and decodes the whole SAE),
`vllm-lens`, `hotwire` (both from `--peer-path`) and `hf` (transformers' generate). vLLM itself is
needed; the peers:

    pip install --target PEERS --no-deps --ignore-requires-python \
        vllm-lens==1.3.0 hotwire-vllm==0.1.2 zstandard
"""

import argparse
import dataclasses
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from throughput_arms import GROUPS, PEERS, PLAIN, Arm, Group, ours
from throughput_report import machine, row, table, write

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = {"ours": "sae_steered", "vllm-lens": "activations", "hotwire": "hotwire"}
SENTENCE = "Tell me about the number {}."


class Missing(Exception):
    """A peer that does not run here."""


class Engine:
    """A process that answers; see `throughput_engines`."""

    def __init__(self, kind: str, options: argparse.Namespace, folder: Path) -> None:
        """Start it, and ask it to load its model; `ready` waits for that."""
        env = {
            **os.environ,
            "OMP_NUM_THREADS": str(options.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_PLUGINS": PLUGINS.get(kind, ""),
            "HOTWIRE_SLOTS": "32",
            "HOTWIRE_VECTORS": str(folder),
        }
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        if kind in ("vllm-lens", "hotwire"):
            paths.append(options.peer_path)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self.kind, self.log = kind, folder / f"{kind}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "benchmarks" / "throughput_engines.py"), kind],
                env=env,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        self._usage = psutil.Process(self.process.pid)
        names = ("model", "dtype", "requests", "eager")
        self._ask({name: getattr(options, name) for name in names})

    def _ask(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")

    def ready(self) -> dict[str, Any]:
        """Return its answer.

        Raises:
            RuntimeError: it failed; with the end of its log.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process died"}
        if "error" in answer:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            raise RuntimeError(f"{self.kind}: {answer['error']}\n{tail}")
        return answer["value"]

    def run(self, prompts: list[str], tokens: int, arm: Arm) -> dict[str, Any]:
        """Return what one batch took."""
        steer = {"specs": arm.specs, "edits": arm.edits}
        self._ask({"prompts": prompts, "tokens": tokens, "steer": steer})
        return self.ready()

    def cpu(self) -> float:
        """Return the CPU seconds that it has used."""
        times = self._usage.cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def measure(
    name: str, group: Group, engines: dict[str, Engine], args: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of one group."""
    n = min(group.requests, args.requests)
    tokens = args.tokens if args.tokens and name != "prefill" else group.tokens
    prompts = [
        " ".join(SENTENCE.format(1000 * j + 100 + i) for j in range(group.sentences))
        for i in range(n)
    ]
    arms = [*PLAIN, *(arm for arm in group.arms if arm.specs <= n)]
    # A warm-up of each arm, and what each engine makes of the prompts when it steers nothing.
    outputs = {arm: engines[arm.engine].run(prompts, tokens, arm)["digests"] for arm in arms}
    unsteered = {arm.engine: outputs[arm] for arm in arms if not arm.specs}
    for kind in {arm.engine for arm in arms} - set(unsteered):
        unsteered[kind] = engines[kind].run(prompts, tokens, Arm("", kind))["digests"]
    changed = {
        arm: sum(
            a != b
            for a, b in zip(
                outputs[arm], unsteered[arm.engine if arm.specs else "plain"], strict=True
            )
        )
        for arm in arms
    }
    idle = [a for a in arms if a.specs and not changed[a] and a.engine in PEERS]
    arms = [arm for arm in arms if arm not in idle]
    runs: dict[Arm, list[dict[str, Any]]] = {arm: [] for arm in arms}
    burnt = waited = 0.0
    for turn in range(args.rounds):
        for arm in random.Random(turn).sample(arms, len(arms)):
            others = [engine for kind, engine in engines.items() if kind != arm.engine]
            before, begun = sum(engine.cpu() for engine in others), time.perf_counter()
            run = engines[arm.engine].run(prompts, tokens, arm)
            burnt += sum(engine.cpu() for engine in others) - before
            waited += (time.perf_counter() - begun) * len(others)
            _check(run, arm, n, tokens)
            runs[arm].append(run)
            print(f"{name} {turn + 1}/{args.rounds} {arm.name}: {run['seconds']:.2f} s", flush=True)
    rows = []
    for arm in arms:
        base = PLAIN[:1] if arm in PLAIN else PLAIN
        per_round = [list(of) for of in zip(*(runs[plain] for plain in base), strict=True)]
        rows.append(row({**asdict(arm), "changed_outputs": changed[arm]}, runs[arm], per_round))
    return {
        "requests": n,
        "prompt_tokens_each": runs[PLAIN[0]][0]["prompt_tokens"] / n,
        "tokens_each": tokens,
        "rounds": args.rounds,
        "cpu_share_of_waiting_engines": round(burnt / max(waited, 1e-9), 4),
        "rows": rows,
        "steers_nothing_here": [arm.name for arm in idle],
    }


def _check(run: dict[str, Any], arm: Arm, n: int, tokens: int) -> None:
    if run["tokens"] != n * tokens:
        raise RuntimeError(f"{arm.name} made {run['tokens']} tokens, not {n * tokens}")
    # The last token of a request is sampled and never run.
    ran = run["prompt_tokens"] + run["tokens"] - n
    if run["steered"] is not None and run["steered"] != ran * arm.edits:
        raise RuntimeError(f"{arm.name}: {run['steered']} edits counted, not {ran * arm.edits}")


def main() -> None:
    """Run the groups, print a table of each, write the results."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", default=",".join((*GROUPS, *PEERS)), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=256, help="in one batch, at the most")
    parser.add_argument("--tokens", type=int, help="of each request; not in `prefill`")
    parser.add_argument("--threads", type=int, default=1, help="of OpenMP, of each engine")
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="every engine: for a quick try")
    parser.add_argument("--peer-path", help="folder with vllm-lens and hotwire-vllm")
    parser.add_argument("--out", type=Path, help="folder for vllm_throughput-DATE.json and .md")
    args = parser.parse_args()
    names = args.arms.split(",")
    unknown = sorted(set(names) - set(GROUPS) - set(PEERS))
    if unknown:
        parser.error(f"unknown arms '{unknown[0]}'; known: {', '.join((*GROUPS, *PEERS))}")
    answer: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/vllm_throughput.py", *_shown(sys.argv[1:])]),
        **machine(args.peer_path),
        "threads": args.threads,
        "dtype": args.dtype,
        "groups": {},
        "skipped": {},
    }
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        engines: dict[str, Engine] = {}
        try:
            start(engines, [arm.engine for arm in PLAIN] + ["ours"], args, Path(folder))
            groups = {name: GROUPS[name] for name in names if name in GROUPS}
            if len(groups) < len(names):
                groups["peers"] = Group((ours(1), ours(32)))
            for name, group in groups.items():
                if name == "peers":
                    for peer in (peer for peer in PEERS if peer in names):
                        try:
                            start(engines, [peer], args, Path(folder))
                            group = dataclasses.replace(group, arms=group.arms + PEERS[peer])
                        except Missing as error:
                            answer["skipped"][peer] = str(error)
                            print(f"{peer}: skipped: {error}", flush=True)
                answer["groups"][name] = measure(name, group, engines, args)
                print(f"\n{table(name, answer['groups'][name])}", flush=True)
                answer["minutes"] = round((time.perf_counter() - begun) / 60, 1)
                if args.out is not None:
                    write(answer, args.out)
        finally:
            for engine in engines.values():
                engine.close()


def start(
    engines: dict[str, Engine], kinds: list[str], args: argparse.Namespace, folder: Path
) -> None:
    """Start engines beside each other, and wait until they are ready.

    Raises:
        Missing: a peer does not run here.
    """
    if {"vllm-lens", "hotwire"} & set(kinds) and args.peer_path is None:
        raise Missing("give --peer-path")
    engines.update({kind: Engine(kind, args, folder) for kind in kinds})
    for kind in kinds:
        try:
            print(f"{kind}: started in {engines[kind].ready()['start_seconds']:.0f} s", flush=True)
        except RuntimeError as error:
            if kind in PEERS:
                engines.pop(kind).close()
                raise Missing(str(error)) from None
            raise


def _shown(arguments: list[str]) -> list[str]:
    """Return the command line without the folders of this machine."""
    return [os.path.basename(a) if os.path.isabs(a) else a for a in arguments]


if __name__ == "__main__":
    main()
