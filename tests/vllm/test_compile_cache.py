"""Graphs of plain vLLM, of the plugin and of other layers are kept apart in one cache.

The order is plain, plugin, other layers, plain; `conftest.ORDER` sees to it that the first two
have run. A graph that was compiled without the operator would leave everything unsteered.
"""

from pathlib import Path

import pytest

from tests.vllm.conftest import ALL_LAYERS, arguments, ask_plain, steered
from tests.vllm.engine import PLAIN
from tests.vllm.receipts import check_receipt
from tests.vllm.reference import CLOSE

pytestmark = pytest.mark.real


def graphs(cache: Path) -> set[str]:
    """Return the folders of the cache, one for each key."""
    return {str(p.relative_to(cache)) for p in cache.glob("torch*/*") if p.is_dir()}


def effect(engine, world, ask, name, points):
    """Hold a steered output against the reference and against the unsteered one."""
    spec, prompt = world.specs[name], world.prompts[2]
    request = ask(prompt, spec, max_tokens=24)
    (answer,) = engine.generate([request])
    (plain,) = engine.generate([ask(prompt, max_tokens=24)])
    (output,), (unsteered,) = answer["outputs"], plain["outputs"]
    assert output != unsteered
    assert world.reference.misfit(prompt, output, spec) < CLOSE
    assert world.reference.misfit(prompt, unsteered, None) < CLOSE
    check_receipt(engine, world.reference, [request], [answer], points=points)


def test_plain_then_plugin_then_other_layers_then_plain(
    plain_answers, engines, world, ask, compiled, say
):
    _, before = plain_answers
    effect(compiled, world, ask, "clamp", ALL_LAYERS)
    first = graphs(engines.cache)
    other = engines.start("other", arguments(world, additional_config=steered(20)))
    effect(other, world, ask, "gated units", [20])
    refused = other.call("refusal", ask(world.prompts[0], world.specs["clamp"]))
    assert "not at blocks.15.hook_resid_post" in refused
    second = graphs(engines.cache)
    plain = engines.start("plain", arguments(world), **PLAIN)
    assert ask_plain(plain, world) == before
    third = graphs(engines.cache)
    say(f"3 effects checked; keys in the cache: {len(first)}, {len(second)}, {len(third)}")
    if first:  # where this build of vLLM keeps graphs at all
        assert second > first
        assert third == second
