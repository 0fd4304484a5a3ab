"""One steered server for the whole folder: it takes half a minute to start."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.vllm_server.server import POINTS, Server, serve

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.parent == FOLDER]
    # Servers of their own come first, so that no two run at a time.
    places = iter(sorted(ours, key=_uses_server))
    items[:] = [next(places) if item.path.parent == FOLDER else item for item in items]
    for item in filter(_uses_server, ours):
        for mark in (pytest.mark.vllm, pytest.mark.slow, pytest.mark.real):
            item.add_marker(mark)
        if importlib.util.find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed (docs/vllm.md)"))


def _uses_server(item: pytest.Item) -> bool:
    return "server" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def saes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a direction without statistics, which the server reads, and one beside it."""
    folder = tmp_path_factory.mktemp("saes")
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(576, generator=generator)
    for name in ("listed/direction.safetensors", "other.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        save_file({"direction": direction / direction.norm()}, folder / name)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, saes: Path) -> Iterator[Server]:
    config = {"hook_points": POINTS, "max_edits": 4, "saes": [{"path": str(saes / "listed")}]}
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serve(log, config) as running:
        yield running
