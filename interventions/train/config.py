"""The settings of one training run, read from YAML and checked before anything is computed."""

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from interventions.errors import SpecError
from interventions.hook_points import HookPoint, parse_hook_point
from interventions.text.config import TextConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    # Settings that came later; at their defaults they are left out of fingerprints, so that the
    # runs and the SAE made before keep theirs.
    later: ClassVar[frozenset[str]] = frozenset()


class GenerateConfig(_Section):
    """Text that the model writes itself, as answers to prompts made from templates."""

    tokens: int = Field(default=0, ge=0, description="tokens of user turns and answers together")
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

    later = frozenset({"exclude", "store", "buffer_tokens", "holdout_tokens"})

    context: int = Field(default=256, ge=8, description="of `generate` and `docs`")
    batch_tokens: int = Field(default=4096, ge=8)
    chunk_rows: int = Field(default=512, ge=1)
    guard: float | None = Field(
        default=10.0, gt=1, description="drop tokens above guard x median norm; null keeps them"
    )
    holdout_every: int = Field(
        default=16, ge=4, description="of n documents one is measured on, one sets the threshold"
    )
    exclude: Literal["special"] | tuple[int, ...] = Field(
        default=(), description="ids that are not trained on; `special` is the tokenizer's own"
    )
    store: bool = Field(default=True, description="false: activations are made while training")
    buffer_tokens: int = Field(
        default=262_144, ge=2, description="shuffled together where nothing is stored"
    )
    holdout_tokens: int = Field(
        default=20_000,
        ge=16,
        description="first tokens of `text`: so many to measure on, so many for the threshold",
    )


Architecture = Literal[
    "standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka", "matryoshka_batchtopk"
]
_OF_OWN = ("clip", "aux_coefficient", "aux_rows", "threshold_rows")
_OF_SAELENS = ("b_dec", "normalize_activations", "options")
_WITH_K = {"topk", "batchtopk", "matryoshka", "matryoshka_batchtopk"}


class TrainerConfig(_Section):
    """The dictionary and its optimiser."""

    later = frozenset(
        {"architecture", "backend", "expansion", "b_dec", "normalize_activations", "options"}
    )

    d_sae: int | None = Field(default=None, ge=2)
    k: int | None = Field(default=None, ge=1, description="active features a token")
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
    architecture: Architecture = "batchtopk"
    backend: Literal["auto", "own", "saelens"] = Field(
        default="auto", description="auto: own for batchtopk, saelens for the others"
    )
    expansion: int | None = Field(default=None, ge=1, description="d_sae over d_model")
    b_dec: Literal["mean", "zeros"] = Field(default="mean", description="where the bias starts")
    normalize_activations: Literal["expected_average_only_in", "none"] = Field(
        default="expected_average_only_in", description="scale to E||x|| = sqrt(d_model), or not"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="of SAELens's config of this architecture"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainerConfig":
        if (self.d_sae is None) == (self.expansion is None):
            raise ValueError("give one of d_sae and expansion")
        if self.k is None and self.architecture in _WITH_K:
            raise ValueError(f"architecture {self.architecture} needs k, active features a token")
        if self.k is not None and self.d_sae is not None and self.k >= self.d_sae:
            raise ValueError(f"k={self.k} must be below d_sae={self.d_sae}")
        if self.k is not None and self.architecture in ("standard", "gated"):
            raise ValueError(
                f"architecture {self.architecture} has no k; its sparsity is options.l1_coefficient"
            )
        if self.uses_own:
            self._check_own()
        else:
            self._at_default(_OF_OWN, "own")
        return self

    def _check_own(self) -> None:
        if self.architecture != "batchtopk":
            raise ValueError(
                f"backend own trains batchtopk, not {self.architecture}; give backend saelens"
            )
        self._at_default(_OF_SAELENS, "saelens")

    def _at_default(self, names: tuple[str, ...], backend: str) -> None:
        fields = type(self).model_fields
        for name in names:
            if getattr(self, name) != fields[name].get_default(call_default_factory=True):
                raise ValueError(f"{name} is a setting of backend {backend}; give that backend")

    @property
    def uses_own(self) -> bool:
        """Whether the trainer of this project is used, and not SAELens's."""
        return self.backend == "own" or (
            self.backend == "auto" and self.architecture == "batchtopk"
        )

    @property
    def width(self) -> int:
        """`d_sae`; of `resolved` settings."""
        if self.d_sae is None:
            raise SpecError(f"trainer.expansion={self.expansion} is not resolved; name d_model")
        return self.d_sae

    def resolved(self, d_model: int) -> "TrainerConfig":
        """Return the settings with `d_sae` in place of `expansion`.

        Raises:
            SpecError: `k` is not below `d_sae`.
        """
        if self.expansion is None:
            return self
        width = self.expansion * d_model
        if self.k is not None and self.k >= width:
            raise SpecError(f"trainer.k={self.k} must be below d_sae={width} (expansion x d_model)")
        return self.model_copy(update={"d_sae": width, "expansion": None})


class LogConfig(_Section):
    """Where figures go while training runs, besides the progress bar."""

    to: Literal["wandb", "trackio"]
    project: str = Field(min_length=1)
    run: str | None = Field(default=None, description="name of the run; null: the config's name")
    every: int = Field(default=10, ge=1, description="steps")


class EvaluateConfig(_Section):
    """How the finished SAE is measured on text that it was not trained on."""

    later = frozenset({"stats_tokens"})

    tokens: int = Field(default=20_000, ge=1, description="held-out tokens for FVU, L0, dead")
    loss_tokens: int = Field(default=4_000, ge=1, description="held-out tokens for the loss")
    stats_tokens: int = Field(
        default=200_000, ge=1, description="training tokens for max_act, where nothing is stored"
    )


class TrainConfig(_Section):
    """One training run: `seed`, the model and the hook point, and a section for each step.

    Text comes from `generate`, from `docs`, from `text`, or from several of them.
    """

    later = frozenset({"text", "log", "device", "dtype", "revision"})

    name: str = Field(min_length=1)
    model: str = "default"
    revision: str | None = Field(default=None, description="of the model on the hub")
    hook_point: str = "blocks.15.hook_resid_post"
    seed: int = 0
    threads: int = Field(default=2, ge=1)
    device: str = Field(default="auto", description="auto: the GPU where there is one")
    dtype: str = Field(default="auto", description="of the model; auto: as it is stored")
    generate: GenerateConfig = GenerateConfig()
    docs: DocsConfig = DocsConfig()
    text: TextConfig | None = None
    harvest: HarvestConfig = HarvestConfig()
    trainer: TrainerConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    log: LogConfig | None = None

    @property
    def hook(self) -> HookPoint:
        """The hook point, parsed."""
        return parse_hook_point(self.hook_point)

    @model_validator(mode="after")
    def _has_text(self) -> "TrainConfig":
        own = self.generate.tokens + self.docs.tokens
        if own == 0 and self.text is None:
            raise ValueError(
                "no `text`, and generate.tokens and docs.tokens are 0; there is no text"
            )
        if self.docs.tokens and not self.docs.packages:
            raise ValueError(f"docs.tokens={self.docs.tokens} needs docs.packages")
        if self.harvest.store:
            return self
        if own or self.text is None:
            raise ValueError(
                "harvest.store: false reads `text` alone; set generate.tokens and docs.tokens to 0"
                " (documentation can be a source of `text`)"
            )
        if self.harvest.buffer_tokens < 2 * self.trainer.batch_size:
            raise ValueError(
                f"harvest.buffer_tokens={self.harvest.buffer_tokens} must be at least twice"
                f" trainer.batch_size={self.trainer.batch_size}"
            )
        return self

    @property
    def context(self) -> int:
        """Tokens of a row at most."""
        return self.harvest.context if self.text is None else self.text.context


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


def plain(part: Any) -> Any:
    """Return JSON-like values; settings that came later are left out at their defaults."""
    if isinstance(part, BaseModel):
        fields = type(part).model_fields
        later = getattr(type(part), "later", frozenset())
        return {
            name: plain(value)
            for name, value in part
            if name not in later or value != fields[name].get_default(call_default_factory=True)
        }
    if isinstance(part, list | tuple):
        return [plain(item) for item in part]
    return part


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON-like values; a step's files belong to one such hash."""
    text = json.dumps(plain(parts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
