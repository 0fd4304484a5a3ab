"""`sae-steered evaluate --backend vllm`: one engine for the baseline and every intervention."""

import json
import os
import subprocess
import sys

import yaml

from tests.vllm_lm.asked import SPECS
from tests.vllm_lm.conftest import ARGUMENTS, ENVIRONMENT


def test_specs_at_different_places_share_an_engine(engines, tmp_path, repo_root):
    engines.close()
    program = "from harness_ext.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, "evaluate", "--backend", "vllm", "--json"]
    for name in ("all", "two layers"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"name": name, **SPECS[name]}))
        command += ["--spec", str(file)]
    command += ["--model-args", ",".join(f"{key}={value}" for key, value in ARGUMENTS.items())]
    command += ["--limit", "2", "--gen-kwargs", "max_gen_toks=24", "--output", str(tmp_path / "o")]
    env = os.environ | ENVIRONMENT | {"PYTHONPATH": str(repo_root), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    runs = json.loads(done.stdout)["runs"]  # nothing of vLLM's own log is in it
    assert [run["name"] for run in runs] == ["baseline", "all", "two layers"]
    assert len({run["intervention"] for run in runs}) == 3
    for run in runs[1:]:
        (results,) = (tmp_path / "o").glob(f"{run['name'].replace(' ', '_')}/results_*.json")
        told = json.loads(results.read_text())["config"]["sae_steered"]
        assert told["receipt"]["rows"] > 0
        assert told["intervention"] == run["intervention"]
