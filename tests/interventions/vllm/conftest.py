"""SAEs of every kind, made once."""

import pytest

from tests import vllm_plans


@pytest.fixture(scope="session")
def saes(tmp_path_factory):
    return vllm_plans.save_saes(tmp_path_factory.mktemp("saes"))
