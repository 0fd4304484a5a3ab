"""Which model a checkpoint holds, without loading it as a whole.

The digest equals `fingerprint.weights_digest` of the same checkpoint loaded by transformers, so
that a spec has one fingerprint on every backend.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interventions.errors import ModelMismatchError
from interventions.fingerprint import weights_digest

logger = logging.getLogger(__name__)


def checkpoint_digest(path: str | Path, dtype: torch.dtype) -> str:
    """Return 16 hex digits that name the model in a folder of safetensors files.

    Args:
        path: folder with `config.json` and `*.safetensors`.
        dtype: that the model is run in.

    Raises:
        ModelMismatchError: there are no such files; the config alone does not name a model.
    """
    import transformers

    folder = Path(path)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    stored = _Stored(folder, model)
    holder = _Holder(model.config)
    for name, parameter in model.named_parameters():
        value = stored.get(name, dtype)
        if value is None or value.shape != parameter.shape:
            logger.info("%s: '%s' is stored in another form; digest of the files", folder, name)
            return weights_digest(stored.as_holder(model.config, dtype))
        holder.values[name] = value
    return weights_digest(holder)


def variant(vllm_config: Any) -> dict[str, str]:
    """Return what changes the outputs of an engine beside its weights; {} where nothing does.

    Args:
        vllm_config: the engine's `VllmConfig`.
    """
    model = vllm_config.model_config
    cache_dtype = str(vllm_config.cache_config.cache_dtype)
    found = {
        "quantization": model.quantization,
        "kv_cache_dtype": None if cache_dtype == "auto" else cache_dtype,
        "hf_overrides": getattr(model, "hf_overrides", None) or None,
    }
    return {key: str(value) for key, value in found.items() if value is not None}


class _Holder(nn.Module):
    """What `weights_digest` reads of a model: its config and its named parameters."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.values: dict[str, Tensor] = {}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.values.items()


class _Stored:
    """The tensors of a folder, mapped into memory: what is not looked at is not read."""

    def __init__(self, folder: Path, model: Any) -> None:
        from safetensors import safe_open

        self._files: dict[str, Any] = {}
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        else:
            names = {file.name for file in folder.glob("*.safetensors")}
        for name in sorted(names):
            handle = safe_open(folder / name, framework="pt")
            for key in handle.keys():  # noqa: SIM118 - not a dictionary
                self._files[key] = handle
        if not self._files:
            raise ModelMismatchError(
                f"{folder} holds no *.safetensors, by which a model is told from others; save it"
                f" in that format (save_pretrained of transformers does)"
            )
        self._stored_as = _parameters_by_key(model, self._files)

    def get(self, name: str, dtype: torch.dtype) -> Tensor | None:
        key = self._stored_as.get(name)
        return None if key is None else self._read(key, dtype)

    def _read(self, key: str, dtype: torch.dtype) -> Tensor:
        tensor = self._files[key].get_tensor(key)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def as_holder(self, config: Any, dtype: torch.dtype) -> _Holder:
        holder = _Holder(config)
        for key in self._files:
            holder.values[key] = self._read(key, dtype)
        return holder


def _parameters_by_key(model: Any, keys: Iterable[str]) -> dict[str, str]:
    """Return the stored name of each parameter that is stored as it is.

    Files may use the names of an older transformers, or lack the model's own prefix.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    parameters = dict(model.named_parameters())
    found = {}
    for key in keys:
        name, converted = rename_source_key(
            key, renamings, converters, model.base_model_prefix, parameters
        )
        if converted is None:
            found[name] = key
    return found
