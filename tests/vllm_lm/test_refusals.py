"""What is wrong with arguments is said in one line, before an engine starts."""

import os
import re
import subprocess

import pytest

from tests.vllm_lm.conftest import ENVIRONMENT
from tests.vllm_lm.programs import LM_EVAL


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ("nonsense=1", {}, "vLLM takes no such argument: .*nonsense"),
        ("sae_feature_idx=3036,sae_strength=1.0", {"VLLM_PLUGINS": ""}, "did not load the plugin"),
        ("tensor_parallel_size=2", {}, r"heads \(9\) must be divisible by tensor parallel size"),
        ("sae_feature_idx=99999,sae_strength=1.0", {}, "99999"),
        ("hook_points=blocks.77.hook_resid_post", {}, "77"),
    ],
)
def test_one_line(repo_root, tmp_path, arguments, environment, message):
    command = [*LM_EVAL, "--model", "sae_steered", "--tasks", "steer_arith"]
    command += ["--model_args", f"backend=vllm,max_model_len=512,{arguments}"]
    env = os.environ | ENVIRONMENT | {"PYTHONPATH": str(repo_root)} | environment
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sae_steered: error: ")
    assert re.search(message, last), last
