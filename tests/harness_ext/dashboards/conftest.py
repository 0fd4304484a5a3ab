from pathlib import Path

import pytest

from interventions.features.facts_store import FactStore
from tests.browser import browser as browser
from tests.harness_ext.dashboards.facts_folder import make_facts


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts of 12 features; number 3 never fired. Tokens are hostile."""
    return make_facts(tmp_path_factory.mktemp("facts"), silent=3)


@pytest.fixture
def store(facts: Path) -> FactStore:
    return FactStore.open(facts)
