"""A tiny model with an SAE on disk, and lm-eval without the index of its own 14,000 tasks."""

import functools
from typing import Any

import pytest

from harness_ext.autoload import install
from tests.tiny_models import save_model, save_sae


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the folders of a model and of an SAE at its layer 1."""
    folder = tmp_path_factory.mktemp("tiny")
    model = save_model(folder / "model", max_position_embeddings=512)
    sae = save_sae(folder / "sae", max_act=6.0, median_norm=8.0)
    return str(model), str(sae.path)


@pytest.fixture(scope="session")
def only_our_tasks() -> Any:
    """Let lm-eval know our tasks alone, which saves each board some seconds."""
    install()
    from lm_eval.tasks import TaskManager

    whole = TaskManager.__init__
    TaskManager.__init__ = functools.partialmethod(whole, include_defaults=False)  # type: ignore[assignment]
    yield
    TaskManager.__init__ = whole  # type: ignore[method-assign]
