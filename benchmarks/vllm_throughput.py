r"""Generated tokens a second of steered vLLM, as ratios to plain vLLM and to its peers.

    python benchmarks/vllm_throughput.py --out benchmarks/results

Every engine is a process of its own; a process that waits is idle (how much it burnt is in the
results). In each round all arms of a group run once, plain vLLM twice, in another order each
round; a ratio is taken within its round. Every arm makes the same number of tokens from the same
prompts, greedy, ends of text ignored, prefix caching off. The time of a steered arm includes its
receipt. Beside wall time, the ratio of CPU time: it is the steadier one on a busy machine.

Groups: `specs` (idle, 1 to 256 interventions in one batch), `prefill` (long prompts, few tokens),
`full-sae` (eager vLLM with a hook that encodes and decodes the whole SAE), `vllm-lens`, `hotwire`
(both from `--peer-path`) and `hf` (transformers' generate). vLLM itself is needed; the peers:

    pip install --target PEERS --no-deps --ignore-requires-python \
        vllm-lens==1.3.0 hotwire-vllm==0.1.2 zstandard
"""

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from throughput_report import machine, row, table, write

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = {"ours": "sae_steered", "vllm-lens": "activations", "hotwire": "hotwire"}
SENTENCE = "Tell me about the number {}, and about the river that runs through the old town."


@dataclass(frozen=True)
class Arm:
    """One way to run a batch: by which engine, with how many interventions of how many edits."""

    name: str
    engine: str
    specs: int = 0
    edits: int = 1


@dataclass(frozen=True)
class Group:
    """Arms that run the same prompts; `requests`, `tokens` are those of the options at the most."""

    arms: tuple[Arm, ...]
    requests: int = 32
    tokens: int = 64
    sentences: int = 1
    plain_twice: bool = True


def _ours(specs: int, edits: int = 1) -> Arm:
    what = f"{specs} intervention{'s' * (specs > 1)}" + (f" of {edits} edits" if edits > 1 else "")
    return Arm(what, "ours", specs, edits)


GROUPS = {
    "specs": Group(
        (Arm("idle plugin", "ours"), *(_ours(n) for n in (1, 8, 32, 64, 128, 256)), _ours(256, 8)),
        requests=256,
    ),
    "prefill": Group(
        (Arm("idle plugin", "ours"), _ours(1), _ours(32), _ours(32, 8)), tokens=4, sentences=24
    ),
    "full-sae": Group(
        (
            _ours(1),
            Arm("eager, hook off", "full-sae"),
            Arm("eager, hook encodes and decodes the SAE, 1 feature for all", "full-sae", 1),
        )
    ),
    "vllm-lens": Group(
        (
            _ours(32),
            Arm("vllm-lens, no vector", "vllm-lens"),
            Arm("vllm-lens, 1 vector for all", "vllm-lens", 1),
            Arm("vllm-lens, 32 vectors", "vllm-lens", 32),
        )
    ),
    "hotwire": Group((_ours(1), Arm("hotwire-vllm, 1 vector for all", "hotwire", 1))),
    "hf": Group(
        (
            Arm("lm-eval's hf", "hf"),
            Arm("backend=hf, 1 intervention", "hf", 1),
        ),
        plain_twice=False,
    ),
}


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


def measure(name: str, engines: dict[str, Engine], args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one group."""
    group = GROUPS[name]
    n, tokens = min(group.requests, args.requests), min(group.tokens, args.tokens)
    prompts = [
        " ".join(SENTENCE.format(1000 * j + 100 + i) for j in range(group.sentences))
        for i in range(n)
    ]
    plain = Arm("plain vLLM", "plain")
    plains = [plain, Arm("plain vLLM, again", "plain")][: 1 + group.plain_twice]
    arms = [*plains, *(arm for arm in group.arms if arm.specs <= n)]
    # A warm-up of each arm, and what each engine makes of the prompts when it steers nothing.
    outputs = {arm: engines[arm.engine].run(prompts, tokens, arm)["digests"] for arm in arms}
    unsteered = {arm.engine: outputs[arm] for arm in arms if not arm.specs}
    for kind in {arm.engine for arm in arms} - set(unsteered):
        unsteered[kind] = engines[kind].run(prompts, tokens, Arm("", kind))["digests"]
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
        base = unsteered[arm.engine] if arm.specs else outputs[plain]
        changed = sum(a != b for a, b in zip(outputs[arm], base, strict=True))
        against = [plain] if arm in plains else plains
        per_round = [list(of) for of in zip(*(runs[p] for p in against), strict=True)]
        rows.append(row({**asdict(arm), "changed_outputs": changed}, runs[arm], per_round))
    return {
        "requests": n,
        "prompt_tokens_each": runs[plain][0]["prompt_tokens"] / n,
        "tokens_each": tokens,
        "rounds": args.rounds,
        "cpu_share_of_waiting_engines": round(burnt / max(waited, 1e-9), 4),
        "rows": rows,
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
    parser.add_argument("--arms", default=",".join(GROUPS), help="groups, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=256, help="in one batch, at the most")
    parser.add_argument("--tokens", type=int, default=64, help="of each request, at the most")
    parser.add_argument("--threads", type=int, default=1, help="of OpenMP, of each engine")
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true", help="every engine: for a quick try")
    parser.add_argument("--peer-path", help="folder with vllm-lens and hotwire-vllm")
    parser.add_argument("--out", type=Path, help="folder for vllm_throughput-DATE.json and .md")
    args = parser.parse_args()
    names = args.arms.split(",")
    unknown = sorted(set(names) - set(GROUPS))
    if unknown:
        parser.error(f"unknown group '{unknown[0]}'; known: {', '.join(GROUPS)}")
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
            for name in names:
                try:
                    _start(engines, name, args, Path(folder))
                    answer["groups"][name] = measure(name, engines, args)
                    print(f"\n{table(name, answer['groups'][name])}", flush=True)
                except Missing as error:
                    answer["skipped"][name] = str(error)
                    print(f"\n### {name}: skipped: {error}\n", flush=True)
                answer["minutes"] = round((time.perf_counter() - begun) / 60, 1)
                if args.out is not None:
                    write(answer, args.out)
        finally:
            for engine in engines.values():
                engine.close()


def _start(engines: dict[str, Engine], name: str, args: argparse.Namespace, folder: Path) -> None:
    """Have the engines of a group run, and of those of others only plain vLLM and ours."""
    needed = {"plain", *(arm.engine for arm in GROUPS[name].arms)}
    for kind in set(engines) - needed - {"ours"}:
        engines.pop(kind).close()
    if needed & {"vllm-lens", "hotwire"} and args.peer_path is None:
        raise Missing("give --peer-path")
    new = [kind for kind in sorted(needed) if kind not in engines]
    engines.update({kind: Engine(kind, args, folder) for kind in new})
    for kind in new:
        try:
            print(f"{kind}: started in {engines[kind].ready()['start_seconds']:.0f} s", flush=True)
        except RuntimeError as error:
            engines.pop(kind).close()
            if kind in ("plain", "ours"):
                raise
            raise Missing(str(error)) from None


def _shown(arguments: list[str]) -> list[str]:
    """Return the command line without the folders of this machine."""
    return [os.path.basename(a) if os.path.isabs(a) else a for a in arguments]


if __name__ == "__main__":
    main()
