"""SAEs and directions in a single file, told apart by the names of their tensors."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from interventions.errors import SAEError
from interventions.sae.build import RawSAE, vector_sae
from interventions.sae.core import SAE
from interventions.sae.formats.files import (
    read_pt,
    read_safetensors,
    safetensors_metadata,
)

_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
_GOODFIRE = {name.replace(".", "_linear.", 1) for name in _LINEAR}
_QWEN = {"W_enc", "W_dec", "b_enc", "b_dec"}


def read_pt_file(path: Path, source: str) -> RawSAE:
    """Return the SAE of a `.pt` or `.pth` file: qresearch, Goodfire or Qwen Scope.

    Args:
        path: the file; layer, model and `k` are read from its name and its repo's.
        source: for messages, and searched for the repo's name.

    Raises:
        SAEError: its tensors are none of the known layouts, or it needs pickle.

    Source: `deepseek_r1`, `goodfire` and `qwen_scope` loaders of sae_lens 6.54.
    """
    weights: dict[str, Any] = read_pt(path)
    names = set(weights)
    text = f"{source}/{path.as_posix()}"
    if names >= _LINEAR or names >= _GOODFIRE:
        dot = "." if names >= _LINEAR else "_linear."
        layer = re.search(r"-l(\d+)\.pth?$", path.name)
        model = path.name.split("-SAE-")[0] if "-SAE-" in path.name else None
        return RawSAE(
            "standard",
            weights[f"decoder{dot}weight"].T,
            source,
            W_enc=weights[f"encoder{dot}weight"].T,
            b_enc=weights[f"encoder{dot}bias"],
            b_dec=weights[f"decoder{dot}bias"],
            hook_name=f"blocks.{layer.group(1)}.hook_resid_post" if layer else None,
            model_name=model,
        )
    repo = re.search(r"SAE-Res-(.+?)-W(\d+)K-L0_(\d+)", text)
    if names >= _QWEN and repo:
        layer = re.search(r"layer(\d+)\.sae\.pt$", path.name)
        return RawSAE(
            "topk",
            weights["W_dec"].T,
            source,
            W_enc=weights["W_enc"].T,
            b_enc=weights["b_enc"],
            b_dec=weights["b_dec"],
            k=int(repo.group(3)),
            hook_name=f"blocks.{layer.group(1)}.hook_resid_post" if layer else None,
            model_name=f"Qwen/{repo.group(1)}",
        )
    raise SAEError(
        f"{source}: tensors {', '.join(sorted(names)[:6])} are no known single-file SAE; known:"
        f" qresearch, Goodfire, Qwen Scope (whose k stands in the name of its repo)"
    )


def read_vectors(path: Path, source: str, tensor: str | None) -> SAE:
    """Return the directions of a `.safetensors` file.

    Args:
        path: holds one tensor `(d_model,)` or `(n, d_model)`, or several of which `tensor` names
            one. Its header may name `hook_point` and `model_name`.
        source: for messages.
        tensor: name of the tensor.

    Raises:
        SAEError: several tensors and none named, or an unknown name.
    """
    tensors = read_safetensors(path)
    meta = safetensors_metadata(path)
    names = ", ".join(sorted(tensors)[:8])
    if tensor is not None and tensor not in tensors:
        raise SAEError(f"{path} has no tensor '{tensor}'; it has {names}")
    if tensor is None and len(tensors) != 1:
        raise SAEError(f"{path} holds {len(tensors)} tensors ({names}); name one as `id` of `sae`")
    chosen: Tensor = tensors[tensor] if tensor is not None else next(iter(tensors.values()))
    return vector_sae(
        chosen,
        source=source,
        hook_point=meta.get("hook_point"),
        model_name=meta.get("model_name"),
    )
