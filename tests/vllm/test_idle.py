"""Where no engine declares an intervention, nothing of the plugin is in it."""

import pytest

from tests.vllm.conftest import arguments
from tests.vllm.engine import IN_PROCESS

pytestmark = pytest.mark.real


def test_an_engine_without_a_declaration_has_no_plugin_in_it(engines, world):
    """The plugin is loaded, and the engine's config and its layers are those of plain vLLM."""
    engine = engines.start("idle", arguments(world, enforce_eager=True), **IN_PROCESS)
    assert engine.call("inside", "traces") == []
    refused = engine.call("refusal", {"prompt": [1, 2], "spec": world.specs["add"], "params": {}})
    assert "not started to be steered" in refused
    assert engine.generate([{"prompt": [1, 2], "params": {"max_tokens": 2}}])
