"""What every test can count on: no network, and the root of the checkout."""

import os
from pathlib import Path

import pytest

# Before any test imports a hub client: a test that would download fails instead.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT
