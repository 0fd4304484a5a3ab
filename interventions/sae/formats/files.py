"""Reading the containers: JSON, safetensors, npz and pickle-free `.pt`."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.errors import SAEError, SAENotFoundError


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises:
        SAENotFoundError: the file is not there.
        SAEError: it is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SAENotFoundError(f"{path} does not exist; the SAE's folder is incomplete") from None
    except ValueError as error:
        raise SAEError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise SAEError(f"{path} holds a {type(data).__name__}, not a JSON object")
    return data


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        SAENotFoundError: the file is not there.
        SAEError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_exists(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise SAEError(
            f"{path} is not a whole safetensors file ({error}); fetch it again"
        ) from None


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the text metadata in the header of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the arrays of an npz file as tensors; pickled objects are refused.

    Raises:
        SAENotFoundError: the file is not there.
        SAEError: it is damaged or holds pickled objects.
    """
    import numpy as np

    _check_exists(path)
    try:
        with np.load(path, allow_pickle=False) as data:
            return {key: torch.from_numpy(data[key]) for key in data.files}
    except (ValueError, OSError, TypeError, EOFError) as error:
        raise SAEError(f"{path} is not an npz of plain arrays ({error})") from None


def read_pt(path: Path) -> dict[str, Any]:
    """Return the dictionary in a torch file, tensors and plain values only.

    Raises:
        SAENotFoundError: the file is not there.
        SAEError: it is damaged, or it needs pickle, which is never run.
    """
    _check_exists(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise SAEError(
            f"{path} holds pickled objects, which are never loaded; save its tensors with"
            f" safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise SAEError(f"{path} is not a torch file ({first}); fetch it again") from None
    if not isinstance(data, dict):
        raise SAEError(f"{path} holds a {type(data).__name__}, not a dictionary of tensors")
    return data


def take(tensors: dict[str, Any], path: Path, *names: str) -> Tensor:
    """Return the first of `names` that is in `tensors`.

    Raises:
        SAEError: none is there; names those that are.
    """
    for name in names:
        if isinstance(tensors.get(name), Tensor):
            return tensors[name]
    raise SAEError(
        f"{path} has no tensor '{names[0]}' (it has {', '.join(sorted(tensors)[:8])}); the file is"
        f" incomplete or of another format"
    )


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise SAENotFoundError(f"{path} does not exist; check the path, or the SAE's folder")
