"""Which model a checkpoint holds, without loading it as a whole.

The digest equals `fingerprint.weights_digest` of the same checkpoint loaded by transformers, so
that a spec has one fingerprint on every backend.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interventions.fingerprint import weights_digest

logger = logging.getLogger(__name__)


def checkpoint_digest(path: str | Path, dtype: torch.dtype) -> str:
    """Return 16 hex digits that name the model in a folder of safetensors files.

    Args:
        path: folder with `config.json` and `*.safetensors`.
        dtype: that the model is run in.
    """
    import transformers

    folder = Path(path)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    stored = _Stored(folder)
    holder = _Holder(model.config)
    for name, parameter in model.named_parameters():
        value = stored.get(name, dtype)
        if value is None or value.shape != parameter.shape:
            logger.info("%s: '%s' is stored in another form; digest of the files", folder, name)
            return weights_digest(stored.as_holder(model.config, dtype))
        holder.values[name] = value
    return weights_digest(holder)


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

    def __init__(self, folder: Path) -> None:
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

    def get(self, name: str, dtype: torch.dtype) -> Tensor | None:
        # A model's own prefix may be missing in the files of its base model.
        for key in (name, name.partition(".")[2]):
            if key in self._files:
                tensor = self._files[key].get_tensor(key)
                return tensor.to(dtype) if tensor.is_floating_point() else tensor
        return None

    def as_holder(self, config: Any, dtype: torch.dtype) -> _Holder:
        holder = _Holder(config)
        for key in self._files:
            value = self.get(key, dtype)
            assert value is not None
            holder.values[key] = value
        return holder
