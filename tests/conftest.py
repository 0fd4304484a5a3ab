"""What every test can count on: no network, the root of the checkout, vLLM where it is needed."""

import importlib.util
import os
from pathlib import Path

import pytest

# Before any test imports a hub client: a test that would download fails instead.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent

HAS_VLLM = importlib.util.find_spec("vllm") is not None
INSTALL = "SAE_STEERED_VENV=.venv-vllm SAE_STEERED_VLLM=1 ./scripts/test.sh -m vllm"
WITHOUT = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("SAE_STEERED_VLLM") == "1" and not HAS_VLLM:
        raise pytest.UsageError("SAE_STEERED_VLLM=1 and vLLM is not installed: " + INSTALL)


# Last, for the markers that a folder's conftest.py sets.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if HAS_VLLM:
        return
    engines = [item for item in items if item.get_closest_marker("vllm")]
    config.stash[WITHOUT] = len(engines)
    for item in engines:
        item.add_marker(pytest.mark.skip(reason="vLLM is not installed (docs/vllm.md)"))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    skipped = config.stash.get(WITHOUT, 0)
    if skipped:
        terminalreporter.section("vLLM is not installed", sep="!", yellow=True)
        terminalreporter.write_line(f"{skipped} tests of its engines did not run. To run them:")
        terminalreporter.write_line(f"  {INSTALL}")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT
