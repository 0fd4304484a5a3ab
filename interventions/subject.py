"""What features are studied on: a model, its tokenizer, an SAE and where it reads."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interventions.backends.hf import decoder_layers, measure_median_norms
from interventions.default_model import DEFAULT_NAME, resolve_pretrained
from interventions.errors import ModelMismatchError, ModelNotFoundError, SpecError
from interventions.hook_points import HookPoint
from interventions.plan import same_model
from interventions.sae.core import SAE
from interventions.sae.io import load_sae
from interventions.spec import DEFAULT_NORM_GUARD, SAERef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and an SAE on one device.

    Attributes:
        model: decoder model in evaluation mode.
        tokenizer: of the model.
        label: name of the model.
        sae: on the model's device, fp32.
        sae_ref: where the SAE came from.
        hook_point: where it reads.
        median_norm: median residual norm there, stored with the SAE or measured.
        guard: tokens above `guard` times the median are sinks; None for no guard.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    label: str
    sae: SAE
    sae_ref: SAERef
    hook_point: HookPoint
    median_norm: float
    guard: float | None

    @property
    def limit(self) -> float | None:
        """The residual norm above which a token is a sink; None without a guard."""
        return None if self.guard is None else self.guard * self.median_norm

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the tokenizer's special tokens."""
        return tuple(sorted(self.tokenizer.all_special_ids))

    def describe(self) -> dict[str, Any]:
        """Return plain data that says what was studied."""
        return {
            "model": self.label,
            "sae": self.sae_ref.model_dump(mode="json", exclude_none=True),
            "sae_label": self.sae_ref.label,
            "sae_hash": self.sae.content_hash,
            "hook_point": str(self.hook_point),
            "median_norm": self.median_norm,
            "norm_guard": self.guard,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
        }


def load_subject(
    pretrained: str = DEFAULT_NAME,
    sae: SAERef | str = "default",
    *,
    hook_point: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    guard: float | None = DEFAULT_NORM_GUARD,
    check_model: bool = True,
    revision: str | None = None,
) -> Subject:
    """Return a model and an SAE, loaded and checked against each other.

    Args:
        pretrained: `default`, a folder, or a hub repository.
        sae: where the SAE is; a string is a path, or `default`.
        hook_point: overrides the SAE's own.
        device: `auto` is the GPU where there is one.
        dtype: of the model; `auto` is the one it is stored in. The SAE computes in fp32.
        guard: multiple of the median norm above which a token is a sink; None for no guard.
        check_model: refuse an SAE that names another model.
        revision: of the hub repository.

    Raises:
        ModelNotFoundError: there is no such model, or it cannot be reached.
        ModelMismatchError: the SAE was made for another model or width.
        SAEError: the SAE cannot be read, or has no activations at a single token.
        HookPointError: the layer is outside the model.
    """
    ref = SAERef.model_validate(sae) if isinstance(sae, str) else sae
    loaded = load_sae(ref)
    loaded.require_activations()
    point = loaded.resolve_hook_point(hook_point)
    model, tokenizer, label = load_model(pretrained, device=device, dtype=dtype, revision=revision)
    if check_model and not same_model(loaded.model_name, label):
        raise ModelMismatchError(
            f"SAE '{ref.label}' was trained on '{loaded.model_name}', not on '{label}'; switch the"
            f" check off to use it all the same"
        )
    config: Any = model.config.get_text_config()
    loaded.check_width(config.hidden_size, label)
    point.check(len(decoder_layers(model)), label)
    stored = loaded.median_norm if loaded.hook_point == point else None
    median = stored or measure_median_norms(model, tokenizer, [point])[point]
    place = next(model.parameters()).device
    return Subject(model, tokenizer, label, loaded.to(place), ref, point, median, guard)


def load_model(
    pretrained: str = DEFAULT_NAME,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, str]":
    """Return a model in evaluation mode, its tokenizer and its label.

    Raises:
        ModelNotFoundError: there is no such model, or it cannot be reached.
        SpecError: the device is not there, or the dtype unknown.
    """
    import transformers

    place = torch.device(_device(device))
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise SpecError(f"unknown dtype '{dtype}'; give auto, bfloat16, float16 or float32")
    resolved = resolve_pretrained(pretrained)
    more: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(resolved.path, **more)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            resolved.path, dtype=dtype, **more
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelNotFoundError(
            f"cannot load the model '{pretrained}': {first}; name a folder, a hub repository or"
            f" 'default'"
        ) from error
    return model.to(place).eval(), tokenizer, resolved.label


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SpecError(f"device '{name}' is not there; give cpu")
    return name
