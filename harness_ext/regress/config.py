"""What `regress run` generates and how it checks it, from one YAML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness_ext.errors import TaskConfigError
from harness_ext.regress.check import DEFAULT_MARGINS, Rule, Settings
from interventions.spec import InterventionSpec, parse_spec
from interventions.spec_io import load_spec


class Config(BaseModel):
    """A regression check, whole.

    Attributes:
        baseline: the file, relative to the config's folder.
        model: arguments of `sae_steered`; the embedded model by default.
        specs: interventions beside the unedited model, each a file relative to the config's
            folder or written out.
        tasks: lm-eval tasks.
        limit: questions a task, the first ones; None for all.
        gen_kwargs: overrides of the tasks' decoding.
        metadata: for the tasks.
        chat_template: whether prompts go through the model's chat template.
        margins, level, rule, changed: as in `Settings`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str
    model: dict[str, Any] = Field(default_factory=lambda: {"pretrained": "default"})
    specs: tuple[str | dict[str, Any], ...] = ()
    tasks: tuple[str, ...] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)
    gen_kwargs: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    chat_template: bool = True
    margins: dict[str, float] = Field(default_factory=lambda: dict(DEFAULT_MARGINS))
    level: float = Field(default=0.05, gt=0, lt=0.5)
    rule: Rule = "regression"
    changed: tuple[str, ...] = ()

    @field_validator("margins")
    @classmethod
    def _not_negative(cls, margins: Mapping[str, float]) -> Mapping[str, float]:
        for name, margin in margins.items():
            if not 0 <= margin < float("inf"):
                raise ValueError(f"margin of {name} is {margin}; it must be at least 0")
        return margins

    @property
    def settings(self) -> Settings:
        """How the run is checked."""
        return Settings(
            margins=self.margins, level=self.level, rule=self.rule, changed=self.changed
        )


def load_config(path: Path) -> Config:
    """Return the checked config in a file.

    Raises:
        TaskConfigError: it is missing, no YAML, or holds an unknown key or a wrong value.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise TaskConfigError(f"{path}: cannot be read ({reason}); give a YAML file") from error
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise TaskConfigError(f"{path}: {where}: {first['msg']}") from None


def load_specs(config: Config, folder: Path) -> list[InterventionSpec]:
    """Return the config's interventions.

    Args:
        config: the config.
        folder: the config's own, from which its paths are counted.

    Raises:
        SpecError: one is missing or malformed.
    """
    return [
        load_spec(folder / spec)
        if isinstance(spec, str)
        else parse_spec(spec, source=f"spec {i} of the config")
        for i, spec in enumerate(config.specs)
    ]
