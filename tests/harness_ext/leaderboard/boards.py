"""Leaderboards of a tiny random model, small enough to run in seconds."""

from typing import Any

GEN = {"max_gen_toks": 8}


def tiny_config(model: str, sae: str, **more: Any) -> dict[str, Any]:
    """Return a configuration: two features, two random rows of each kind, one prompt."""
    return {
        "name": "tiny",
        "model": {"backend": "hf", "pretrained": model, "device": "cpu", "dtype": "float32"},
        "chat_template": False,
        "sae": {"path": sae},
        "features": [0, 5],
        "edits": [{"op": "add", "value": 20.0}],
        "tasks": [{"name": "steer_arith_hint", "limit": 4, "gen_kwargs": GEN}],
        "nulls": {"random_features": 2, "random_directions": 2},
        "prompts": [{"id": "say", "text": "Mention any hint.", "place": "question"}],
        "statistics": {"draws": 200},
        **more,
    }
