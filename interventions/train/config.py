"""The settings of one training run, read from YAML and checked before anything is computed."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from interventions.errors import SpecError
from interventions.hook_points import HookPoint, parse_hook_point


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerateConfig(_Section):
    """Text that the model writes itself, as answers to prompts made from templates."""

    tokens: int = Field(ge=0, description="tokens of user turns and answers together")
    batch_size: int = Field(default=128, ge=1)
    max_new_tokens: int = Field(default=192, ge=1)
    temperature: float = Field(default=0.8, gt=0)
    top_k: int = Field(default=50, ge=1)


class DocsConfig(_Section):
    """Text taken from the documentation of packages that are installed."""

    tokens: int = Field(default=0, ge=0)
    packages: tuple[str, ...] = Field(default=(), description="import names; `stdlib` is Python's")


class HarvestConfig(_Section):
    """How text becomes activations."""

    context: int = Field(default=256, ge=8)
    batch_tokens: int = Field(default=4096, ge=8)
    chunk_rows: int = Field(default=512, ge=1)
    guard: float = Field(default=10.0, gt=1, description="drop tokens above guard x median norm")
    holdout_every: int = Field(
        default=16, ge=4, description="of n documents one is measured on, one sets the threshold"
    )


class TrainerConfig(_Section):
    """The dictionary and its optimiser."""

    d_sae: int = Field(ge=2)
    k: int = Field(ge=1)
    tokens_seen: int = Field(ge=1)
    batch_size: int = Field(default=2048, ge=2)
    lr: float = Field(default=6e-4, gt=0)
    warmup_steps: int = Field(default=10, ge=0)
    decay_share: float = Field(default=0.3, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    aux_coefficient: float = Field(default=1 / 32, ge=0)
    aux_rows: int = Field(default=256, ge=1)
    dead_after_steps: int = Field(default=30, ge=1)
    threshold_rows: int = Field(default=128, ge=1)
    checkpoint_steps: int = Field(default=100, ge=1)
    gemm: Literal["bfloat16", "float32"] = "bfloat16"

    @model_validator(mode="after")
    def _k_fits(self) -> "TrainerConfig":
        if self.k >= self.d_sae:
            raise ValueError(f"k={self.k} must be below d_sae={self.d_sae}")
        return self


class EvaluateConfig(_Section):
    """How the finished SAE is measured on text that it was not trained on."""

    tokens: int = Field(default=20_000, ge=1, description="held-out tokens for FVU, L0, dead")
    loss_tokens: int = Field(default=4_000, ge=1, description="held-out tokens for the loss")


class TrainConfig(_Section):
    """One training run: `seed`, the model and the hook point, and a section for each step."""

    name: str = Field(min_length=1)
    model: str = "default"
    hook_point: str = "blocks.15.hook_resid_post"
    seed: int = 0
    threads: int = Field(default=2, ge=1)
    generate: GenerateConfig
    docs: DocsConfig = DocsConfig()
    harvest: HarvestConfig = HarvestConfig()
    trainer: TrainerConfig
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def hook(self) -> HookPoint:
        """The hook point, parsed."""
        return parse_hook_point(self.hook_point)

    @model_validator(mode="after")
    def _has_text(self) -> "TrainConfig":
        if self.generate.tokens + self.docs.tokens == 0:
            raise ValueError("generate.tokens and docs.tokens are both 0; there is no text")
        if self.docs.tokens and not self.docs.packages:
            raise ValueError(f"docs.tokens={self.docs.tokens} needs docs.packages")
        return self


def load_config(path: Path) -> TrainConfig:
    """Return the settings in the YAML file at `path`.

    Raises:
        SpecError: the file is missing or no YAML, or a key is unknown, missing or out of range.
    """
    import yaml

    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}; name a YAML file") from error
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise SpecError(f"{path} is not YAML: {where}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path} holds a {type(raw).__name__}; a training config is a mapping")
    try:
        return TrainConfig.model_validate(raw)
    except ValidationError as error:
        raise SpecError(f"{path}: {_one_line(error)}") from error


def _one_line(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "config"
        got = "" if item["type"] == "missing" else f" (got {item['input']!r})"
        if item["type"] == "value_error":
            got = ""
        parts.append(f"{where}: {item['msg']}{got}")
    return "; ".join(parts)


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON-like values; a step's files belong to one such hash."""
    plain = [
        part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts
    ]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
