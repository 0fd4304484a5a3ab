"""What a response journal costs: seconds a response to keep, to open and to read.

    python benchmarks/journal_speed.py

Responses of 4,000 characters, kept one by one as an engine finishes them, in a temporary folder.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from harness_ext.generation import Generation
from harness_ext.journal import Entry, Journal, response_key


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=50_000)
    parser.add_argument("--characters", type=int, default=4_000)
    args = parser.parse_args()
    text = ("A sack of wheat weighs 40 kg. " * (args.characters // 30 + 1))[: args.characters]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prompt = list(range(500))
        keys = [
            response_key(
                backend="none", model="m", intervention="none", prompt=prompt, decoding={}, seed=i
            )
            for i in range(args.responses)
        ]
        keyed = time.perf_counter()
        with Journal.open(folder) as journal:
            for number, key in enumerate(keys):
                response = Generation(
                    text,
                    n_tokens=1000,
                    n_reasoning_tokens=0,
                    finish_reason="stop",
                    seed=number,
                    reasoning="",
                    final=text,
                    intervention="none",
                )
                journal.put(key, Entry(response))
        kept = time.perf_counter()
        opening = time.perf_counter()
        with Journal.open(folder) as journal:
            opened = time.perf_counter()
            assert all(journal.get(key) is not None for key in keys)
        read = time.perf_counter()
        size = sum(file.stat().st_size for file in Path(folder).glob("*.jsonl"))
    n = args.responses
    result = {
        "responses": n,
        "megabytes": round(size / 1e6, 1),
        "key_us": round((keyed - start) / n * 1e6, 1),
        "put_us": round((kept - keyed) / n * 1e6, 1),
        "open_s": round(opened - opening, 2),
        "get_us": round((read - opened) / n * 1e6, 1),
        "python": sys.version.split()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
