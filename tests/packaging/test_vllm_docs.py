"""The quick start of docs/vllm.md prints what the page says."""

import os
import re
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.real, pytest.mark.slow]

CPU = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


def test_the_quick_start_prints_what_the_page_says(repo_root, tmp_path):
    page = (repo_root / "docs/vllm.md").read_text(encoding="utf-8")
    ((code, shown),) = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", page, re.M | re.S)
    script = tmp_path / "quick.py"
    script.write_text(code)
    run = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**CPU, **os.environ, "PYTHONPATH": str(repo_root)},
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout == shown
