"""Specs from files and from inline arguments.

Reads JSON and YAML specs, the CSV and `.pt` files of lm-eval's own `steered` model, and the
argument names of the AIRI fork of lm-eval (`sae_release`, `sae_id`, `sae_feature_idx`,
`sae_strength`, `sae_max_activation`, `sae_intervention_path`).
"""

import csv
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interventions.cache import cache_dir
from interventions.errors import SpecError
from interventions.spec import InterventionSpec, parse_spec

_SUFFIXES = (".json", ".yaml", ".yml", ".csv", ".pt", ".pth")

_INLINE_SAE = {"sae_release": "release", "sae_id": "id", "sae_path": "path", "sae_repo": "repo"}
_INLINE_EDIT = {
    "sae_op": "op",
    "sae_value": "value",
    "sae_strength": "strength",
    "sae_max_activation": "max_act",
    "sae_unit": "unit",
    "sae_when": "when",
}
_INLINE_SPEC = {
    "sae_positions": "positions",
    "sae_skip_bos": "skip_bos",
    "sae_norm_guard": "norm_guard",
    "sae_median_norm": "median_norm",
    "sae_hook_point": "hook_point",
    "sae_name": "name",
}
_INLINE_OTHER = ("sae_feature_idx", "sae_intervention_path", "sae_scale")
INLINE_KEYS = (*_INLINE_SAE, *_INLINE_EDIT, *_INLINE_SPEC, *_INLINE_OTHER)


def load_spec(source: str | Path | Mapping[str, Any] | InterventionSpec) -> InterventionSpec:
    """Return the spec of a file, of a JSON text, or of a mapping.

    Args:
        source: a spec, returned as it is; a mapping; a JSON object as text; or the path of a
            `.json`, `.yaml`, `.csv` or `.pt` file.

    Raises:
        SpecError: the file is missing, of an unknown kind, or its content is not a spec.
    """
    if isinstance(source, InterventionSpec):
        return source
    if isinstance(source, Mapping):
        return parse_spec(source)
    text = str(source)
    if text.lstrip().startswith("{"):
        return parse_spec(_json(text, "inline spec"), source="inline spec")
    path = Path(text).expanduser()
    if path.suffix not in _SUFFIXES:
        raise SpecError(f"spec '{text}' is none of {', '.join(_SUFFIXES)}, nor a JSON object")
    if not path.is_file():
        raise SpecError(f"spec file '{text}' does not exist; give the path of an existing file")
    if path.suffix == ".csv":
        return parse_spec(_from_csv(path), source=text)
    if path.suffix in (".pt", ".pth"):
        return parse_spec(_from_pt(path), source=text)
    content = _text(path)
    data = _json(content, text) if path.suffix == ".json" else _yaml(content, text)
    if not isinstance(data, Mapping):
        raise SpecError(f"{text}: a spec is a mapping of keys, not {type(data).__name__}")
    return parse_spec({"name": path.stem, **data}, source=text)


def spec_from_args(args: Mapping[str, Any]) -> InterventionSpec | None:
    """Return the spec of inline model arguments, or None if they name no intervention.

    Args:
        args: `spec` (whatever `load_spec` takes), or `edits` (a list of mappings) with `sae_*`
            defaults, or the `sae_*` names alone. `sae_feature_idx` may be a list.

    Raises:
        SpecError: an unknown `sae_*` name, `spec` mixed with inline names, or no SAE named.
    """
    inline = {key: value for key, value in args.items() if key.startswith("sae_")}
    unknown = sorted(set(inline) - set(INLINE_KEYS))
    if unknown:
        raise SpecError(f"unknown argument '{unknown[0]}'; known: {', '.join(INLINE_KEYS)}")
    spec, edits = args.get("spec"), args.get("edits")
    if spec is not None:
        if inline or edits is not None:
            other = next(iter(inline), "edits")
            raise SpecError(f"'spec' and '{other}' are both given; use one of them")
        return load_spec(spec)
    if edits is None and not inline:
        return None
    data: dict[str, Any] = {
        ours: inline[theirs] for theirs, ours in _INLINE_SPEC.items() if theirs in inline
    }
    for key in ("norm_guard", "median_norm"):
        if key in data and str(data[key]).lower() in ("none", "off", "false"):
            data[key] = None
    sae = {ours: inline[theirs] for theirs, ours in _INLINE_SAE.items() if theirs in inline}
    if "sae_scale" in inline:
        sae["scale"] = inline["sae_scale"]
    # No source named: the embedded SAE, as `pretrained` without a value is the embedded model.
    data["sae"] = sae or "default"
    if edits is not None:
        data["edits"] = _json(edits, "model_args `edits`") if isinstance(edits, str) else edits
    elif "sae_intervention_path" in inline:
        data["edits"] = _airi_edits(Path(str(inline["sae_intervention_path"])))
    else:
        data["edits"] = _inline_edits(inline)
    return parse_spec(data, source="model_args")


def _inline_edits(inline: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "sae_feature_idx" not in inline:
        raise SpecError("`sae_feature_idx` is missing; name the feature, or a list of them")
    edit = {ours: inline[theirs] for theirs, ours in _INLINE_EDIT.items() if theirs in inline}
    features = inline["sae_feature_idx"]
    if isinstance(features, str):
        features = [part for part in features.replace("[", "").replace("]", "").split("/") if part]
    many = features if isinstance(features, list | tuple) else [features]
    return [{"feature": feature, **edit} for feature in many]


def _airi_edits(path: Path) -> list[dict[str, Any]]:
    """Return the edits of the AIRI fork's file: feature -> max_activation and strength.

    With such a file the fork sets the projection on unit W_dec, hence `project`.
    Source: AIRI-Institute/SAE-Reasoning, lm_eval/sae_utils.py `get_clamp_hook`.
    """
    data = _torch_dict(path)
    try:
        return [
            {
                "op": "project",
                "feature": int(feature),
                "strength": float(row["strength"]),
                "max_act": float(row["max_activation"]),
            }
            for feature, row in data.items()
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"{path}: not a map of feature to max_activation, strength: {error!r}"
        ) from None


def _from_csv(path: Path) -> dict[str, Any]:
    """Return the spec of a CSV of lm-eval's `steered` model (its columns and loaders).

    `add` adds `steering_coefficient · W_dec[f]`; its `clamp` is our `project`.
    Source: lm_eval/models/hf_steered.py `derive_steer_config`.
    """
    edits = []
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    for number, row in enumerate(rows, 1):
        where = f"{path} row {number}"
        if (row.get("head_index") or "").strip():
            raise SpecError(f"{where}: head_index is not supported; edits are on the residual")
        try:
            coefficient, feature = float(row["steering_coefficient"]), int(row["feature_index"])
            source, loader = row["sparse_model"], row.get("loader") or "sparsify"
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"{where}: {error!r}; columns are those of lm-eval's steered") from None
        if not math.isfinite(coefficient):
            raise SpecError(f"{where}: steering_coefficient must be finite, not {coefficient}")
        hook_point = (row.get("hookpoint") or "").strip() or None
        op = _steered_action(row.get("action") or "add", where)
        edits.append(
            {
                "op": op,
                "origin": "b_dec" if op == "project" else "zero",
                "feature": feature,
                "value": coefficient,
                "hook_point": hook_point,
                "sae": _csv_sae(loader, source, row.get("sae_id") or None, hook_point, where),
            }
        )
    if not edits:
        raise SpecError(f"{path}: no row below the header, so nothing to steer; add one")
    # `steered` edits every position and knows no guard.
    return {"name": path.stem, "edits": edits, "norm_guard": None}


def _csv_sae(
    loader: str, source: str, sae_id: str | None, hook_point: str | None, where: str
) -> dict[str, Any]:
    if loader == "sae_lens":
        return {"release": source, "id": sae_id}
    if loader != "sparsify":
        raise SpecError(f"{where}: unknown loader '{loader}'; use sparsify or sae_lens")
    kind = "path" if Path(source).exists() else "repo"
    return {kind: source, "id": hook_point}


def _from_pt(path: Path) -> dict[str, Any]:
    """Return the spec of a `.pt` file of lm-eval's `steered` model.

    The spec holds no tensor, so each vector is kept in the cache under its own hash.
    """
    from safetensors.torch import save

    edits = []
    for hook_point, info in _torch_dict(path).items():
        where = f"{path} '{hook_point}'"
        try:
            vector, action = info["steering_vector"], info["action"]
            head, bias = info.get("head_index"), info.get("bias")
            vector = vector.detach().float().flatten().contiguous()
            value = float(info.get("steering_coefficient", 1.0))
            bias = None if bias is None else bias.detach().float().flatten()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SpecError(f"{where}: {error!r}; see lm-eval's steered model") from None
        if head is not None:
            raise SpecError(f"{where}: head_index is not supported; edits are on the residual")
        op = _steered_action(action, where)
        length = float(vector.norm())
        if not 0 < length < math.inf:
            raise SpecError(f"{where}: steering_vector has length {length}; it must be positive")
        if bias is not None:
            if op != "project":
                raise SpecError(f"{where}: a bias goes with clamp, not with {action}")
            if bias.shape != vector.shape:
                raise SpecError(
                    f"{where}: bias has {bias.numel()} values, steering_vector {vector.numel()}"
                )
            value += float(bias @ vector) / length
        target = _keep_vector(save({"direction": vector}))
        edits.append(
            {
                "op": op,
                "value": value,
                "hook_point": hook_point,
                "sae": {"path": str(target)},
            }
        )
    if not edits:
        raise SpecError(f"{path}: an empty dictionary, so nothing to steer; see lm-eval's steered")
    return {"name": path.stem, "edits": edits, "norm_guard": None}


def _keep_vector(content: bytes) -> Path:
    """Return the file in the cache that holds `content`; several processes may write it."""
    target = cache_dir("vectors") / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    handle, temporary = tempfile.mkstemp(dir=target.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(temporary, target)
    return target


def _steered_action(action: str, where: str) -> str:
    try:
        return {"add": "add", "clamp": "project"}[action]
    except KeyError:
        raise SpecError(f"{where}: unknown action '{action}'; use add or clamp") from None


def _torch_dict(path: Path) -> dict[Any, Any]:
    import torch

    if not path.is_file():
        raise SpecError(f"file '{path}' does not exist; give the path of an existing file")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).splitlines()[0]
        raise SpecError(
            f"{path}: not a plain tensor file (pickles are never run): {first}"
        ) from None
    if not isinstance(data, dict):
        raise SpecError(f"{path}: holds a {type(data).__name__}, not a dictionary")
    return data


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"{source}: not JSON: {error}") from None


def _yaml(text: str, source: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
