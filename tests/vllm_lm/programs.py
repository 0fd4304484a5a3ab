"""lm-eval's own program in a process of its own, and what it leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.vllm_lm.conftest import ARGUMENTS, ENVIRONMENT

ROOT = Path(__file__).parents[2]

LM_EVAL = (sys.executable, str(Path(__file__).with_name("lm-eval.py")))


def model_args(**arguments: Any) -> str:
    both = {"backend": "vllm", **ARGUMENTS, **arguments}
    return ",".join(f"{key}={value}" for key, value in both.items())


def start(out: Path, arguments: str, *options: str, chat: bool = True) -> "subprocess.Popen[bytes]":
    """Start lm-eval on `steer_arith`; its errors are in `out.err`."""
    command = [*LM_EVAL, "--model", "sae_steered", "--tasks", "steer_arith", "--log_samples"]
    command += ["--model_args", arguments, "--output_path", str(out)]
    command += ["--apply_chat_template"] if chat else []
    env = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with out.with_suffix(".err").open("wb") as errors:
        return subprocess.Popen(
            [*command, *options],
            cwd=out.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )


def errors(out: Path) -> str:
    return out.with_suffix(".err").read_text(errors="replace")


def finish(process: "subprocess.Popen[bytes]", out: Path, timeout: float = 400) -> Any:
    """Return results and samples, the latter by document, of a program that ends well."""
    assert process.wait(timeout=timeout) == 0, errors(out)[-4000:]
    (results,) = out.rglob("results_*.json")
    (samples,) = out.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    told = json.loads(results.read_text())
    return {
        "results": told["results"],
        "steered": told["config"]["sae_steered"],
        "responses": {row["doc_id"]: row["resps"] for row in rows},
    }
