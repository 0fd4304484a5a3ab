"""The cache-poison matrix, for engines with the key and without it."""

from collections.abc import Sequence
from typing import Any

from tests.vllm.cases import THINK
from tests.vllm.reference import CLOSE

SHARED = ("unsteered", "generated", "last_prompt")
"""Conditions that leave the full blocks of the prompt as unsteered requests write them."""


def conditions(world: Any) -> dict[str, Any]:
    """Return what can come before and after: no intervention, two of them, and one by positions."""
    edit = {"op": "add", "feature": 3036, "value": 150.0}
    other = {"op": "add", "feature": world.features["real"].some[0], "value": 150.0}
    found: dict[str, Any] = {
        "unsteered": None,
        "all": {"sae": "default", "edits": [edit]},
        "another": {"sae": "default", "edits": [other]},
    }
    for kind in ("generated", "prompt", "last_prompt", "thinking"):
        more = THINK if kind == "thinking" else {}
        found[kind] = {"sae": "default", "positions": kind, "edits": [edit], **more}
    return found


def long_prompt(world: Any) -> list[int]:
    """Return a prompt of 131 tokens: four blocks of 32 and three tokens."""
    text = world.chat(
        "Here is a story. A fisherman lived by a lake with a dog and a cat. Every morning he rowed"
        " out before sunrise. One day in autumn a storm came up, and his boat was carried to an"
        " island where nobody lived. He built a hut of branches, and he sang to keep warm. After a"
        " week, a ship with white sails passed, and a sailor heard the song. What would you tell"
        " him? Answer in one sentence, and start with the weather of that day, please."
    )
    assert len(text) >= 131, len(text)
    return text[: 131 - 5] + text[-5:]


def run_matrix(
    engine: Any, world: Any, ask: Any, names: Sequence[str] = ()
) -> tuple[list[str], str]:
    """Return what was wrong, and a summary.

    The second request of each pair must say what the reference says, and read exactly the cached
    blocks that hold what it would have written itself.

    Args:
        engine: to ask.
        world: the model and the reference.
        ask: makes requests.
        names: of the conditions; all, if none is named.
    """
    specs, prompt = conditions(world), long_prompt(world)
    specs = {name: specs[name] for name in names or specs}
    wrong, outputs = [], {}
    for first in specs:
        for second in specs:
            assert engine.call("reset")
            engine.generate([ask(prompt, specs[first], max_tokens=1)])
            (answer,) = engine.generate([ask(prompt, specs[second], max_tokens=4)])
            (output,) = answer["outputs"]
            shared = first == second or (first in SHARED and second in SHARED)
            expected = 128 if shared else 0
            if answer["cached"] != expected:
                wrong.append(f"{second} after {first}: {answer['cached']} cached, not {expected}")
            gap = world.reference.misfit(prompt, output, specs[second])
            if gap >= CLOSE:
                wrong.append(f"{second} after {first}: {gap:.2f} below the reference's best token")
            if first == second:
                outputs[first] = output
    differ = sum(output != outputs["unsteered"] for output in outputs.values())
    return wrong, (
        f"{len(specs) ** 2} pairs; {differ} of {len(specs) - 1} steered outputs differ from"
        f" unsteered ones; wrong: {len(wrong)}"
    )
