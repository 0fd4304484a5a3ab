"""Leaderboards whose rows share a vLLM engine; each test starts programs of its own."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != FOLDER:
            continue
        for mark in (pytest.mark.vllm, pytest.mark.slow):
            item.add_marker(mark)
        # vLLM's own imports warn; what it warns about is not ours.
        item.add_marker(pytest.mark.filterwarnings("default"))
        if importlib.util.find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed (docs/vllm.md)"))
