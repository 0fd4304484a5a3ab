"""The interventions of `sae-steered evaluate`: from flags, or the default SAE's named features."""

import json
from collections.abc import Mapping
from typing import Any

from interventions.default_model import default_sae_path
from interventions.errors import SAENotFoundError, SpecError
from interventions.spec import InterventionSpec, parse_spec

_SAE_FLAGS = {
    "sae_release": "release",
    "sae_id": "id",
    "sae_path": "path",
    "sae_repo": "repo",
}
SHOWN = ("music", "digits")
"""Named features of the run without arguments."""

SHARE = 0.5
"""Of the named features' own size: at full size a small model does little but obey them."""

_EDIT_FLAGS = ("op", "strength", "value", "max_act")


def feature_specs(features: str, flags: Mapping[str, Any]) -> list[InterventionSpec]:
    """Return one spec for each feature of a comma-separated list.

    Args:
        features: such as `12,345`.
        flags: `op`, `strength`, `value`, `max_act`, `positions`, `hook_point`, and `sae_release`,
            `sae_id`, `sae_path`, `sae_repo`; those that are None count as not given.

    Raises:
        SpecError: a feature is not a number, or the flags do not make a spec.
    """
    sae = {key: flags[flag] for flag, key in _SAE_FLAGS.items() if flags.get(flag) is not None}
    edit = {key: flags[key] for key in _EDIT_FLAGS if flags.get(key) is not None}
    shared = {key: flags[key] for key in ("positions", "hook_point") if flags.get(key)}
    specs = []
    for text in features.split(","):
        if not text.strip().isdigit():
            raise SpecError(f"feature '{text}' is not a number; --features takes e.g. 12,345")
        feature = int(text)
        size = edit.get("strength", edit.get("value"))
        name = f"{edit['op']} f{feature}" + ("" if size is None else f" at {size:g}")
        spec = {"name": name, "sae": sae or "default", "edits": [{"feature": feature, **edit}]}
        specs.append(parse_spec({**spec, **shared}, source="arguments"))
    return specs


def named_specs(model: str) -> list[InterventionSpec]:
    """Return two named features of the default SAE, and a random one of the same size.

    The random feature is a null: what any push of that length does to this model.

    Raises:
        SpecError: another model was asked for: features belong to one SAE.
        SAENotFoundError: the installation lacks the file.
    """
    if model != "default":
        raise SpecError(
            f"no intervention given for '{model}'; name features with --features and an SAE with"
            f" --sae-release, --sae-repo or --sae-path, or give --spec"
        )
    path = default_sae_path() / "named_features.json"
    if not path.is_file():
        raise SAENotFoundError(f"'{path}' is missing; reinstall sae-steered")
    rows = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    specs = [
        _spec(f"{name} (f{rows[name]['feature']})", rows[name]["feature"], rows[name])
        for name in SHOWN
    ]
    control = rows[SHOWN[0]]["random_control"]["features"][0]
    return [*specs, _spec(f"random (f{control})", control, rows[SHOWN[0]])]


def _spec(name: str, feature: int, row: Mapping[str, Any]) -> InterventionSpec:
    value = SHARE * row["measured"]["value"]
    edit = {"feature": feature, "op": row["op"], "value": value}
    name = f"{name}, {row['op']} at {value:.0f}"
    return parse_spec({"name": name, "sae": "default", "edits": [edit]}, source="named features")
