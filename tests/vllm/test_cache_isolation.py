"""No request reads KV blocks that another intervention wrote; what is the same is shared."""

import pytest

from tests.vllm.matrix import conditions, long_prompt, run_matrix
from tests.vllm.reference import CLOSE

pytestmark = pytest.mark.real
BLOCK = 32


def test_the_poison_matrix(compiled, world, ask, say):
    """Every condition after every other, the same prompt of four blocks and three tokens."""
    assert compiled.call("inside", "blocks")[0] == BLOCK
    wrong, text = run_matrix(compiled, world, ask)
    say(text)
    assert wrong == []


def test_a_conversation_goes_on(compiled, world, ask, say):
    """The next prompt holds the steered answer: as prompt now, steered in its own way."""
    prompt = long_prompt(world)
    specs = conditions(world)
    (plain,) = compiled.generate([ask(prompt, max_tokens=40)])
    changed = 0
    for first, second, cached in [
        ("all", "unsteered", 0),
        ("all", "all", 160),
        ("generated", "unsteered", 128),
        # What was generated is prompt now, so its block is not the block that was written.
        ("generated", "generated", 128),
        ("prompt", "prompt", 128),
        ("unsteered", "generated", 160),
        ("thinking", "thinking", 160),
    ]:
        assert compiled.call("reset")
        (answer,) = compiled.generate([ask(prompt, specs[first], max_tokens=40)])
        changed += answer["outputs"] != plain["outputs"]
        longer = prompt + answer["outputs"][0]
        (reply,) = compiled.generate([ask(longer, specs[second], max_tokens=6)])
        assert reply["cached"] == cached, (first, second)
        gap = world.reference.misfit(longer, reply["outputs"][0], specs[second])
        assert gap < CLOSE, (first, second)
    say(f"{changed} of 6 steered first answers differ from unsteered ones")
    assert changed >= 4


def test_where_the_prompt_ends_is_part_of_the_key(compiled, world, ask):
    """Scoring requests say where their prompt ends: the same tokens, steered from elsewhere on."""
    prompt, spec = long_prompt(world), conditions(world)["generated"]
    assert compiled.call("reset")
    cached = []
    for prompt_len in (70, 70, 100, None):
        request = ask(prompt, spec, max_tokens=6, prompt_len=prompt_len)
        (answer,) = compiled.generate([request])
        cached.append(answer["cached"])
        gap = world.reference.misfit(prompt, answer["outputs"][0], spec, prompt_len)
        assert gap < CLOSE, prompt_len
    # The third finds no unsteered block from 64 to 96; the last one finds the one that it made.
    assert cached == [0, 128, 64, 96]
