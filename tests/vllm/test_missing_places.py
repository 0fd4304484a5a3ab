"""A vLLM in which a place is missing goes on as it is, and refuses to be steered."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROGRAM = """
import logging
from vllm.v1.engine.core import EngineCore

del EngineCore.preprocess_add_request
from interventions.backends.vllm.plugin import register

register()
from vllm.engine.arg_utils import EngineArgs
from interventions.default_model import resolve_pretrained

path = resolve_pretrained().path
EngineArgs(path).create_engine_config()
print("unsteered: made")
declared = {"sae_steered": {"hook_points": ["blocks.15.hook_resid_post"]}}
try:
    EngineArgs(path, additional_config=declared).create_engine_config()
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_a_missing_place_stops_steered_engines_only():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "VLLM_LOGGING_STREAM": "ext://sys.stderr"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    unsteered, steered = run.stdout.strip().splitlines()[-2:]
    assert unsteered == "unsteered: made"
    assert steered.startswith(
        "SpecError: this engine cannot be steered: this version of vLLM has no"
        " EngineCore.preprocess_add_request"
    )
    assert "cannot steer this version of vLLM" in run.stderr
