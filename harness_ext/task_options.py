"""The keys of `metadata` that our tasks understand, checked."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness_ext.errors import TaskConfigError
from harness_ext.prompts import STYLES
from harness_ext.repeats import default_ks

THINK_END = "</think>"
MISSPELT = 0.85  # of difflib; lm-eval's own model argument `think_end_token` is at 0.75


class TaskOptions(BaseModel):
    """What a task reads from its `metadata`: the YAML's, then `--model_args`, then `--metadata`.

    Attributes:
        benchmark: id in `benchmarks.BENCHMARKS`, or a mapping that describes one.
        data_path: local file or folder.
        repeats: samples a prompt; lm-eval has no flag for it.
        at_k: the k of pass@k and maj@k, by default 2, 4, 8, ... and `repeats`.
        prompt_style: key of `prompts.STYLES`.
        choice_seed: seed of the order of options, where a benchmark shuffles them.
        hint_family: `type` or id of hint templates (hint tasks).
        hint_path: file of a user's own hint templates (hint tasks).
        hint_avoid: records of an earlier run, whose answers without a hint a wrong hint never
            gives (hint tasks).
        hint_seed: seed of the choice of template and wrong target (hint tasks).
        think_end: closing delimiter of reasoning, for models that return plain text.
    """

    # lm-eval mixes the arguments of the model into metadata, so unknown keys are expected.
    model_config = ConfigDict(extra="ignore", frozen=True)

    benchmark: str | dict[str, Any]
    data_path: str | None = None
    repeats: int = Field(default=1, ge=1)
    at_k: tuple[int, ...] | None = None
    prompt_style: str = "boxed"
    choice_seed: int = 0
    hint_family: str = "seed"
    hint_path: str | None = None
    hint_avoid: str | None = None
    hint_seed: int = 0
    think_end: str = THINK_END

    @field_validator("at_k", mode="before")
    @classmethod
    def _one_k(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    def ks(self) -> tuple[int, ...]:
        """Return the k of pass@k and maj@k."""
        return default_ks(self.repeats) if self.at_k is None else self.at_k


def read_options(cfg: Mapping[str, Any]) -> TaskOptions:
    """Return the options in the `metadata` of a task's configuration.

    Raises:
        TaskConfigError: A value is of the wrong type or out of range, a style is unknown, or a key
            is a misspelt one of ours. (Other unknown keys are the model's: lm-eval mixes them in.)
    """
    for key in cfg.get("metadata") or {}:
        close = get_close_matches(str(key), TaskOptions.model_fields, n=1, cutoff=MISSPELT)
        if close and key not in TaskOptions.model_fields:
            raise TaskConfigError(
                f"{cfg.get('task')}: metadata key {key!r} is unknown; did you mean {close[0]!r}?"
            )
    try:
        options = TaskOptions.model_validate(cfg.get("metadata") or {})
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise TaskConfigError(
            f"{cfg.get('task')}: metadata key {key!r} is {first.get('input')!r}: {first['msg']}"
        ) from None
    wrong_k = [k for k in options.at_k or () if not 1 <= k <= options.repeats]
    if wrong_k:
        raise TaskConfigError(
            f"{cfg.get('task')}: metadata key 'at_k' holds {wrong_k[0]}, repeats is "
            f"{options.repeats}; pass@k and maj@k need 1 <= k <= repeats"
        )
    if options.prompt_style not in STYLES:
        raise TaskConfigError(
            f"{cfg.get('task')}: metadata key 'prompt_style' is {options.prompt_style!r}; "
            f"known are {', '.join(sorted(STYLES))}"
        )
    return options
