"""Print what discovery costs an interpreter start, with the hook and without it.

    python benchmarks/discovery_cost.py --starts 200 --json

Makes two bare virtual environments, puts the three files of the hook into one of them, and
starts both interpreters in turn. Nothing is downloaded; about 20 ms a start.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOOK = ("_sae_steered_autoload.py", "sae_steered_autoload.pth", "sae_steered_autoload.start")
SOURCE = Path(__file__).resolve().parent.parent / "harness_ext"


def environment(folder: Path, hook: bool) -> Path:
    """Return the interpreter of a new environment in `folder`, with the hook's files or without."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    for name in HOOK if hook else ():
        shutil.copy(SOURCE / name, site_packages)
    return folder / "bin" / "python"


def seconds(python: Path) -> float:
    """Return the seconds that one start and end of `python` take."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    start = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True, env=env)
    return time.perf_counter() - start


def measure(starts: int) -> dict[str, float | int | str]:
    """Return medians, their difference and ratio; seconds. The two take turns, against drift."""
    with tempfile.TemporaryDirectory() as scratch:
        without = environment(Path(scratch) / "without", hook=False)
        with_hook = environment(Path(scratch) / "with", hook=True)
        check = "import sys; print('_sae_steered_autoload' in sys.modules)"
        for python, expected in ((without, "False"), (with_hook, "True")):
            run = subprocess.run([python, "-c", check], check=True, text=True, capture_output=True)
            if run.stdout.strip() != expected:
                raise RuntimeError(f"{python}: hook active is {run.stdout!r}, not {expected}")
        pairs = [(seconds(without), seconds(with_hook)) for _ in range(starts)]
    base, hooked = (statistics.median(column) for column in zip(*pairs, strict=True))
    differences = sorted(after - before for before, after in pairs)
    return {
        "python": sys.version.split()[0],
        "starts": starts,
        "median_seconds_without": base,
        "median_seconds_with": hooked,
        "ratio": hooked / base,
        "median_difference_seconds": statistics.median(differences),
        "difference_p10_seconds": differences[len(differences) // 10],
        "difference_p90_seconds": differences[-1 - len(differences) // 10],
    }


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=200, help="pairs of starts (default 200)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    result = measure(arguments.starts)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:28} {value:.5f}" if isinstance(value, float) else f"{name:28} {value}")


if __name__ == "__main__":
    main()
