"""The CUDA kernel: interpreted beside the torch operator, compiled for GPUs, run on one if any."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from interventions.backends.vllm import op
from interventions.errors import HookPointError
from tests.conftest import ROOT

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
LAST_BITS = {"fp32": 2e-5, "bf16": 2**-7, "fp16": 2**-10}


def run(arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    run(["-m", "tests.vllm_triton_cases", str(folder)], TRITON_INTERPRET="1")
    return json.loads((folder / "cases.json").read_text())


@needs_triton
@pytest.mark.slow
def test_the_kernel_does_what_the_operator_does(interpreted):
    cases = interpreted["cases"]
    assert len(cases) == 18
    for case in cases:
        assert case["error"] <= LAST_BITS[case["dtype"]], case
        assert case["norm_error"] < 1e-5, case
        assert case["same_counts"], case
        assert case["nobody_same"], case
        assert case["alone_same"], case
        assert case["changed"] > 5, case
        assert case["nobody"] > 0, case
    assert min(sum(case["counted"][n] for case in cases) for n in range(3)) > 60


@needs_triton
@pytest.mark.slow
def test_the_kernel_where_few_would_look(interpreted):
    special = interpreted["special"]
    assert special["sinks_alone"], "rows of infinite length are left to the guard"
    assert special["strided_same"]
    assert not special["strided_between"], "nothing is written beside a row"
    assert not special["empty_changes"]
    assert special["empty_norms"] >= special["steered"] - 2  # two are not finite
    described, strided = special["refused"]
    assert "30 rows and 20 can be described" in described
    assert "apart in memory" in strided


@needs_triton
@pytest.mark.slow
def test_the_script_for_people_with_a_gpu_compares_as_well(interpreted):
    """Its comparison, with the interpreter in place of the GPU; on random tables, not on plans."""
    parity = interpreted["script"]
    assert parity["cases"] == 6
    assert parity["changed_rows"] > 100
    assert parity["failed"] == []


COMPILE = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from interventions.backends.vllm import triton_op
kernel, found = triton_op._edit_token, []
for dtype, d_model, capability in (("bf16", 576, 90), ("fp32", 4096, 80), ("bf16", 16384, 90)):
    types = dict.fromkeys(("hidden", "residual"), "*" + dtype)
    types |= dict.fromkeys(("tokens", "owners", "n_edits"), "*i32")
    types |= dict.fromkeys(("limit", "scalars", "e", "w", "norms"), "*fp32") | {"counts": "*i64"}
    types |= dict.fromkeys(("hidden_stride", "residual_stride"), "i32")
    fixed = {"d_model": d_model, "max_edits": 8, "PAIR": True}
    fixed["BLOCK"] = triton.next_power_of_2(d_model)
    types |= dict.fromkeys(fixed, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    made = compile(
        ASTSource(kernel, signature, constexprs=fixed),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": triton_op.n_warps(d_model)},
    )
    found.append([len(made.asm["cubin"]), made.metadata.shared, made.asm["ptx"].count(".add.u64")])
print(json.dumps(found))
"""


@needs_triton
def test_the_kernel_compiles_for_gpus_that_are_not_here():
    """Down to machine code of two generations, through NVIDIA's own assembler."""
    for cubin, shared, counters in json.loads(
        run(["-W", "ignore", "-c", COMPILE]).splitlines()[-1]
    ):
        assert cubin > 1000
        assert shared < 48 * 1024
        assert counters >= 3, "selected, guarded and fired rows are counted in 64 bits"


def test_without_triton_the_error_says_what_to_do(monkeypatch):
    """No fall-back: what runs on the CPU would break a CUDA graph."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "interventions.backends.vllm.triton_op", raising=False)
    op._kernel.cache_clear()
    with pytest.raises(HookPointError, match=r"needs triton.*install the version that torch"):
        op._edit_cuda()


def test_nothing_imports_triton_where_there_is_no_gpu():
    code = "import sys, interventions.backends.vllm.worker as w; print('triton' in sys.modules)"
    assert run(["-c", code]).split() == ["False"]


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu():
    answer = json.loads(run(["benchmarks/vllm_gpu_checks.py", "--checks-only"]))
    assert answer["parity"]["failed"] == []
    assert answer["graph"]["failed"] == []
