"""What vLLM's own config says of a declared engine, by who will send it requests."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.vllm_server.server import ENVIRONMENT

PROGRAM = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext
from interventions.default_model import resolve_pretrained

path, found = resolve_pretrained().path, {}
for context in [None, *UsageContext]:
    for name, saes in (("silent", None), ("any", "any"), ("listed", [{"path": "/x"}])):
        declared = {"hook_points": ["blocks.15.hook_resid_post"]}
        declared |= {} if saes is None else {"saes": saes}
        args = EngineArgs(model=path, additional_config={"sae_steered": declared})
        config = args.create_engine_config(context).additional_config["sae_steered"]
        told = config["saes"]
        label = told if isinstance(told, str | None) else [ref["path"] for ref in told]
        found[f"{getattr(context, 'value', None)} {name}"] = label
sys.stdout.write(json.dumps(found))
"""


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (docs/vllm.md)"
)
def test_a_server_reads_no_files_that_it_was_not_told_to(repo_root):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=repo_root, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    own = ("None", "LLM_CLASS", "ENGINE_CONTEXT")
    for key, saes in found.items():
        context, name = key.split()
        expected = {"any": "any", "listed": ["/x"], "silent": None if context in own else []}
        assert saes == expected[name], key
    assert {"OPENAI_API_SERVER silent", "OPENAI_BATCH_RUNNER silent"} <= set(found)
