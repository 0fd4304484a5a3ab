"""Digests that are the same in every process and change with anything that changes a result."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1
"""Raised whenever the maths of an edit changes, so that old results are not taken for new ones."""

_SAMPLES_PER_TENSOR = 64


def digest(data: Any) -> str:
    """Return 16 hex digits of the SHA-256 of plain data, keys sorted, floats in full."""
    text = json.dumps({"schema": SCHEMA, "data": data}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_digest(model: "nn.Module") -> str:
    """Return 16 hex digits that name a model by its parameters.

    Name, shape, dtype and 64 evenly spaced values of every parameter count, so a fine-tune, an
    adapter, another quantisation or another dtype gives another digest, and it takes
    milliseconds.
    """
    sha = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
        sha.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        sha.update(flat[::step][:_SAMPLES_PER_TENSOR].float().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]
