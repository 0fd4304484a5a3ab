"""One engine at a time, in this process; the same model in transformers; programs that run both.

An engine takes half a minute to start: what uses the same one runs together, in the order below.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
ORDER = [
    "test_same_as_hf",
    "test_scores",
    "test_stops",
    "test_sampled",
    "test_one_engine",
    "test_server",
    "test_command_line",
    "test_evaluate",
    "test_parallel",
]

ARGUMENTS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "enforce_eager": True,
    "gpu_memory_utilization": 0.2,
}
DECLARED = "blocks.5.hook_resid_post+blocks.15.hook_resid_post"

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # More threads than quiet cores spin against each other.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.parent == FOLDER]
    known = {name: place for place, name in enumerate(ORDER)}
    places = iter(sorted(ours, key=lambda item: known.get(item.path.stem, -1)))
    items[:] = [next(places) if item.path.parent == FOLDER else item for item in items]
    for item in ours:
        for mark in (pytest.mark.vllm, pytest.mark.slow, pytest.mark.real):
            item.add_marker(mark)
        # vLLM's own imports warn; what it warns about is not ours.
        item.add_marker(pytest.mark.filterwarnings("default"))
        if importlib.util.find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed (docs/vllm.md)"))


class Engines:
    """Hands out models on an engine, of which one runs at a time."""

    def __init__(self) -> None:
        self._name = ""
        self._lm: Any = None

    def get(self, name: str, **arguments: Any) -> Any:
        """Return the model called `name`; a new one, unless it is the one that runs."""
        from harness_ext.model import SAESteeredLM

        if name != self._name:
            self.close()
            self._lm = SAESteeredLM(backend="vllm", **ARGUMENTS, **arguments)
            self._name = name
        return self._lm

    def close(self) -> None:
        """End the engine that runs, so that another process can have one."""
        if self._lm is not None:
            self._lm.close()
        self._name, self._lm = "", None


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    from harness_ext.autoload import install

    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    install()
    made = Engines()
    yield made
    made.close()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture
def lm(engines) -> Iterator[Any]:
    """The model on the engine of most tests, unsteered."""
    made = engines.get("main", hook_points=DECLARED)
    made.set_intervention(None)
    yield made
    made.batch_size_per_gpu = "auto"


@pytest.fixture(scope="session")
def hf_model() -> Any:
    from harness_ext.model_hf import SteeredHF

    return SteeredHF(dtype="float32", device="cpu", batch_size=4)


@pytest.fixture
def hf(hf_model) -> Any:
    """The model in transformers, unsteered."""
    hf_model.set_intervention(None)
    return hf_model


@pytest.fixture
def say(request) -> Callable[[str], None]:
    """Return a function that prints a line whatever is captured: what a test measured."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    terminal = request.config.pluginmanager.getplugin("terminalreporter")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(f"\n{request.node.name}: {text}")

    return line
