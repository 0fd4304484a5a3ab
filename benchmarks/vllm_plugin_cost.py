"""Print what the vLLM plugin costs a process of vLLM in which nothing is steered.

    python benchmarks/vllm_plugin_cost.py --starts 5 --json

Starts interpreters that import what `LLM(...)`, or the HTTP server, imports, and then load the
plugin as vLLM does. No engine, no model; needs vLLM, some 15 s a start.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

PROCESSES = {
    "LLM": "from vllm import LLM\nimport vllm.entrypoints.llm\n",
    "server": "import vllm.entrypoints.openai.api_server\n",
    "worker": "import vllm.v1.worker.gpu_worker\n",
}
CODE = """
import json, sys, time
start = time.process_time()
{imports}
import vllm.engine.arg_utils
loaded, imported = len(sys.modules), time.process_time()
from interventions.backends.vllm.plugin import register
ready = time.process_time()
register()
end = time.process_time()
print(json.dumps([imported - start, ready - imported, end - ready, len(sys.modules) - loaded]))
"""


def measure(starts: int) -> dict[str, dict[str, float]]:
    """Return medians by kind of process: CPU seconds, and modules."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = {}
    for name, imports in PROCESSES.items():
        rows = []
        for _ in range(starts):
            command = [sys.executable, "-c", CODE.format(imports=imports)]
            run = subprocess.run(command, check=True, text=True, capture_output=True, env=env)
            rows.append(json.loads(run.stdout.splitlines()[-1]))
        vllm, plugin, register, modules = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        found[name] = {
            "vllm_import_cpu_seconds": vllm,
            "plugin_import_cpu_seconds": plugin,
            "register_cpu_seconds": register,
            "modules": modules,
        }
    return found


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5, help="of each process (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    result = measure(arguments.starts)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'process':8} {'vLLM, s':>8} {'plugin, ms':>11} {'register, ms':>13} {'modules':>8}")
    for name, row in result.items():
        vllm, plugin, register, modules = row.values()
        print(f"{name:8} {vllm:8.2f} {1e3 * plugin:11.1f} {1e3 * register:13.1f} {modules:8.0f}")


if __name__ == "__main__":
    main()
