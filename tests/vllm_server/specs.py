"""Specs of many kinds for the default model and its SAE, and what is wrong with others."""

from typing import Any

GERMAN = 3036


def edit(op: str = "clamp", feature: int = GERMAN, **keys: Any) -> dict[str, Any]:
    return {"op": op, "feature": feature, **keys}


def spec(*edits: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"sae": "default", "edits": list(edits), **keys}


CLAMP = spec(edit(strength=1.0))
"""Every token, of the prompt too."""

MIXED: dict[str, dict[str, Any] | None] = {
    "none": None,
    "baseline": spec(),
    "clamp": CLAMP,
    "clamp harder": spec(edit(strength=2.0)),
    "add": spec(edit("add", value=60.0)),
    "add generated": spec(edit("add", value=80.0), positions="generated"),
    "add prompt": spec(edit("add", value=80.0), positions="prompt"),
    "last prompt": spec(edit("add", value=200.0), positions="last_prompt"),
    "another feature": spec(edit("add", 17, value=60.0)),
    "ablate": spec(edit("ablate", 5)),
    "scale": spec(edit("scale", value=6.0)),
    "project": spec(edit("project", value=40.0)),
    "residual": spec(edit("add", 99, value=60.0, unit="residual")),
    "two": spec(edit("add", 7, value=50.0), edit("clamp", 8, strength=1.0)),
    "active": spec(edit("add", 11, value=90.0, when="active")),
    "no guard": spec(edit("add", 400, value=70.0), norm_guard=None),
}

BAD: dict[str, tuple[Any, str]] = {
    "feature": (spec(edit(feature=99999, value=1.0)), "feature 99999 is outside 0..4607"),
    "layer": (
        spec(edit("add", value=1.0), hook_point="blocks.40.hook_resid_post"),
        "layer 40 is outside 0..29",
    ),
    "not declared": (
        spec(edit("add", value=1.0), hook_point="blocks.3.hook_resid_post"),
        "and not at blocks.3.hook_resid_post",
    ),
    "op": (spec(edit("multiply", value=1.0)), "`edits.1.op`"),
    "nan": (spec(edit(value=float("nan"))), "finite number"),
    "infinity": (spec(edit(value=float("inf"))), "finite number"),
    "too many": (
        spec(*(edit("add", feature, value=1.0) for feature in range(5))),
        "5 edits at blocks.15.hook_resid_post and the engine takes 4",
    ),
    "key": (spec(edit(value=1.0), stength=2), "unknown key"),
    "path": ({**CLAMP, "sae": {"path": "/etc/hostname"}}, "does not read the SAE"),
    "repo": ({**CLAMP, "sae": {"repo": "owner/name"}}, "does not read the SAE"),
    "text": ("clamp it", "mapping"),
    "list": ([CLAMP], "mapping"),
    "thinking": (
        spec(edit("add", value=1.0), positions="thinking", think_start="a long text"),
        "`think_start`",
    ),
}
