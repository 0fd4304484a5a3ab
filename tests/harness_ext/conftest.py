"""Tiny models and SAEs on disk, made once a session."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_models
from tests.lm_requests import generate_requests


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Callable[..., str]:
    """Return a function from family and options to a folder with model and tokenizer."""
    made: dict[str, Path] = {}

    def folder(family: str = "llama", **options: Any) -> str:
        key = f"{family}-{sorted(options.items())}"
        if key not in made:
            made[key] = tiny_models.save_model(
                tmp_path_factory.mktemp("model") / family, family, **options
            )
        return str(made[key])

    return folder


@pytest.fixture(scope="session")
def sae_folder(tmp_path_factory) -> Callable[..., str]:
    """Return a function from options to the folder of a synthetic SAE."""
    made: dict[str, str] = {}

    def folder(**options: Any) -> str:
        key = str(sorted(options.items()))
        if key not in made:
            made[key] = str(tiny_models.save_sae(tmp_path_factory.mktemp("sae"), **options).path)
        return made[key]

    return folder


@pytest.fixture
def steered(model_folder, sae_folder):
    """Return a function that loads a steered tiny model; its edits use an SAE at layer 1."""
    from harness_ext.model_hf import SteeredHF

    def load(
        edits: Any = (), *, family: str = "llama", model: dict | None = None, **options: Any
    ) -> SteeredHF:
        spec = {"norm_guard": None, "sae": {"path": sae_folder()}, "edits": list(edits)}
        spec |= options.pop("spec", {})
        arguments = {"dtype": "float32", "device": "cpu", "batch_size": 8} | options
        return SteeredHF(model_folder(family, **(model or {})), spec=spec, **arguments)

    return load


@pytest.fixture
def generate():
    """Return a function that generates for some prompts in one call of lm-eval's interface."""

    def run(lm: Any, prompts: list[str], gen_kwargs: dict | None = None, doc: dict | None = None):
        return lm.generate_until(generate_requests(prompts, gen_kwargs, doc), disable_tqdm=True)

    return run


@pytest.fixture(autouse=True)
def _quiet_transformers():
    logging.getLogger("transformers").setLevel(logging.ERROR)
