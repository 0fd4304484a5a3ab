"""What is known of a Hugging Face model from its config, before its weights are loaded."""

import contextlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import transformers

from interventions.errors import ModelMismatchError, ModelNotFoundError
from interventions.plan import ModelFacts


def load_config(path: str, kwargs: Mapping[str, Any]) -> Any:
    """Return the config of a model.

    Args:
        path: hub name or local folder.
        kwargs: lm-eval's model arguments; `revision`, `subfolder`, `gguf_file` and
            `trust_remote_code` are read.

    Raises:
        ModelNotFoundError: there is no such model, or it cannot be reached.
        ModelMismatchError: its config is of a kind that is not known.
    """
    more = {key: kwargs[key] for key in ("gguf_file", "subfolder") if kwargs.get(key)}
    try:
        return transformers.AutoConfig.from_pretrained(
            path,
            revision=kwargs.get("revision") or "main",
            trust_remote_code=bool(kwargs.get("trust_remote_code")),
            **more,
        )
    except (OSError, ValueError) as error:
        kind = ModelNotFoundError if isinstance(error, OSError) else ModelMismatchError
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise kind(
            f"model '{path}' cannot be read: {first}; give a hub name that can be reached, a local"
            f" folder, or 'default'"
        ) from None


def has_rotary_positions(model: Any) -> bool:
    """Return whether positions are rotary, so that they may grow past the model's length."""
    return any("Rotary" in type(module).__name__ for module in model.modules())


def model_facts(label: str, config: Any) -> ModelFacts:
    """Return what a plan must know of the model called `label`."""
    text = config.get_text_config()
    return ModelFacts(name=label, d_model=text.hidden_size, n_layers=text.num_hidden_layers)


def eos_ids(config: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end a text, by the generation config or by the tokenizer."""
    ids = config.eos_token_id
    many = ids if isinstance(ids, list) else [ids]
    return sorted({i for i in (*many, tokenizer.eos_token_id) if i is not None})


def versions(*more: str) -> dict[str, str]:
    """Return the versions of the packages that a result depends on, and of `more` if installed."""
    found = {}
    for name in more:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    for name in ("sae-steered", "lm-eval", "torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
