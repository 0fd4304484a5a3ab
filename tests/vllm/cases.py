"""Prompts and specifications that the tests of the engine share."""

from dataclasses import dataclass
from typing import Any

QUESTIONS = (
    "Tell me about your weekend.",
    "What is 12 times 13?",
    "Write one sentence about a river.",
    "Why is the sky blue?",
    "Name three animals that live in a forest.",
    "How do I cook rice?",
    "Give me a rhyme about winter.",
    "Who wrote the first novel?",
    "Explain what a magnet does.",
    "List two reasons to learn music.",
    "What should I pack for a trip to the sea?",
    "Describe a small village in the mountains.",
    "How many legs does a spider have?",
    "Say hello to my grandmother.",
    "What is a good name for a cat?",
    "Plan a birthday party for a child.",
)

THINK = {"think_start": " a", "think_end": "."}
"""Single tokens of the default model's tokenizer, which occur in its prompts and its answers."""


def chat_ids(tokenizer: Any, question: str, **options: Any) -> list[int]:
    """Return the token ids of a chat prompt."""
    messages = [{"role": "user", "content": question}]
    return list(
        tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **options
        )
    )


@dataclass(frozen=True)
class Features:
    """Features of an SAE that fire on the prompts: `many` at most tokens, `some` at a few."""

    many: list[int]
    some: list[int]


def specs(paths: dict[str, str], features: dict[str, Features], medians: dict[str, float]) -> Any:
    """Return specifications by name: every operator, position, gate, unit and guard.

    Args:
        paths: `real`, `early`, `gated`, `layer_norm`, `rescaled` to what `sae` says.
        features: of the same SAEs.
        medians: median norm by hook point.
    """
    real, early, gated = ({"sae": paths[name]} for name in ("real", "early", "gated"))
    normed, rescaled = {"sae": paths["layer_norm"]}, {"sae": paths["rescaled"]}
    music = 3036
    r, e, g = features["real"], features["early"], features["gated"]
    n, c = features["layer_norm"], features["rescaled"]
    median = {"median_norm": medians}
    add = {"op": "add", "feature": music, "value": 90.0}
    big = {"op": "clamp", "feature": music, "value": 150.0}
    found: dict[str, dict[str, Any]] = {
        "clamp": {**real, "edits": [{"op": "clamp", "feature": music, "strength": 2.0}]},
        "add": {**real, "edits": [add]},
        "add generated": {**real, "positions": "generated", "edits": [add]},
        "clamp prompt": {**real, "positions": "prompt", "edits": [big]},
        "clamp last prompt": {**real, "positions": "last_prompt", "edits": [big]},
        "clamp thinking": {**real, **THINK, "positions": "thinking", "edits": [big]},
        "ablate": {**real, "edits": [{"op": "ablate", "feature": f} for f in r.many[:4]]},
        "scale generated": {
            **real,
            "positions": "generated",
            "edits": [{"op": "scale", "feature": f, "value": 6.0} for f in r.many[:3]],
        },
        "project": {**real, "edits": [{"op": "project", "feature": music, "value": 70.0}]},
        "project from b_dec": {
            **real,
            "edits": [{"op": "project", "feature": r.some[0], "value": 60.0, "origin": "b_dec"}],
        },
        "residual units": {
            **real,
            "positions": "generated",
            "edits": [{"op": "add", "feature": r.some[1], "value": 80.0, "unit": "residual"}],
        },
        "clamp in residual units": {
            **real,
            "edits": [{"op": "clamp", "feature": r.many[0], "value": 90.0, "unit": "residual"}],
        },
        "only active": {
            **real,
            "edits": [
                {"op": "clamp", "feature": f, "value": 120.0, "when": "active"} for f in r.some[:2]
            ],
        },
        "no guard": {**real, "norm_guard": None, "edits": [add]},
        "tight guard": {**real, "norm_guard": 1.0, "edits": [add]},
        "no guard, not the BOS": {**real, "norm_guard": None, "skip_bos": True, "edits": [big]},
        "two positions": {
            **real,
            "edits": [
                {"op": "clamp", "feature": music, "value": 60.0, "positions": "prompt"},
                {"op": "clamp", "feature": music, "value": 110.0, "positions": "generated"},
            ],
        },
        "eight features": {
            **real,
            "edits": [{"op": "clamp", "feature": f, "value": 25.0} for f in (r.many + r.some)[:8]],
        },
        "early layer": {
            **early,
            **median,
            "edits": [{"op": "clamp", "feature": f, "value": 60.0} for f in e.many[:5]],
        },
        "gated units": {
            **gated,
            **median,
            "edits": [
                {"op": "scale", "feature": g.many[0], "value": 8.0},
                {"op": "ablate", "feature": g.many[1]},
                {"op": "clamp", "feature": g.some[0], "value": 70.0, "when": "active"},
            ],
        },
        "layer norm": {
            **normed,
            **median,
            "edits": [{"op": "clamp", "feature": f, "value": 9.0} for f in n.many[:2]],
        },
        "rescaled": {
            **rescaled,
            **median,
            "positions": "generated",
            "edits": [{"op": "scale", "feature": f, "value": 12.0} for f in c.many[:2]],
        },
        "three layers": {
            **median,
            "edits": [
                {**early, "op": "scale", "feature": e.many[1], "value": 5.0},
                {**real, "op": "add", "feature": music, "value": 60.0, "positions": "generated"},
                {**gated, "op": "add", "feature": g.many[2], "value": 40.0},
            ],
        },
        "two saes at one place": {
            **gated,
            **median,
            "positions": "generated",
            "edits": [
                {"op": "add", "feature": g.some[0], "value": 30.0},
                {**normed, "op": "add", "feature": n.some[0], "value": 3.0},
                {"op": "scale", "feature": g.many[0], "value": 3.0},
            ],
        },
        "thinking and generated": {
            **real,
            **THINK,
            "edits": [
                {"op": "add", "feature": music, "value": 60.0, "positions": "thinking"},
                {"op": "add", "feature": r.some[2], "value": 40.0, "positions": "generated"},
            ],
        },
    }
    return found
