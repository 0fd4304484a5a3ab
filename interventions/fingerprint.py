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


# Says where a model was found, by what it was loaded, or how fast it runs: not what it computes.
_NOT_OF_THE_MODEL = frozenset(
    {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
)


def weights_digest(model: "nn.Module") -> str:
    """Return 16 hex digits that name a model by its config and its parameters.

    Name, shape, dtype and 64 evenly spaced values of every parameter count, so a fine-tune, an
    adapter, another quantisation or another dtype gives another digest, and it takes
    milliseconds. Of the config everything counts that a forward pass may read.
    """
    config = getattr(model, "config", None)
    facts = config.to_dict() if config is not None else {}
    kept = {k: v for k, v in facts.items() if k not in _NOT_OF_THE_MODEL and k[:1] != "_"}
    sha = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
        sha.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        sha.update(flat[::step][:_SAMPLES_PER_TENSOR].float().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]
