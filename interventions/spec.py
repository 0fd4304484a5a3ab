"""What is done to the residual stream: the spec a user writes, checked strictly.

A spec is data: it names SAEs, features and positions, and holds no tensor. `spec_io` reads it
from files and inline arguments; `plan` turns it into tensors for a given model.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from interventions.errors import SpecError
from interventions.hook_points import parse_hook_point

Op = Literal["add", "clamp", "ablate", "scale", "project"]
Positions = Literal["all", "prompt", "generated", "thinking", "last_prompt"]
Unit = Literal["sae", "residual"]
When = Literal["always", "active"]

GATED_OPS: frozenset[str] = frozenset({"clamp", "ablate", "scale"})
"""Operators that read the feature's own activation from the encoder."""

DEFAULT_NORM_GUARD = 10.0


_SWITCHES = frozenset({"default", "skip_bos", "check_model"})


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take `value: true` for 1.
        if isinstance(value, bool) and info.field_name not in _SWITCHES:
            raise ValueError("is no switch; give a value, or null for none")
        return value


class SAERef(_Strict):
    """Where an SAE, or a plain direction, comes from. Exactly one source is named.

    Attributes:
        default: the embedded SAE of the embedded model.
        release: SAELens release; `id` is its SAE id.
        path: local folder or `.safetensors` / `.npz` / `.pt` file; `id` a folder inside it.
        repo: Hugging Face repo `owner/name`; `id` a folder inside it, `revision` its commit.
        hook_point: where the SAE was trained, if its own files do not say.
        scale: `sqrt(d_model) / mean norm`, for an SAE that asks for `expected_average_only_in`
            and does not store it.
        threshold: turns a TopK SAE into one whose features are active above this activation,
            without a look at the others (`sae-steered threshold` finds it); for vLLM.
        facts: folder of `sae-steered facts`, which `max_act` of this SAE is taken from.
    """

    default: Literal[True] | None = None
    release: str | None = None
    path: str | None = None
    repo: str | None = None
    id: str | None = None
    revision: str | None = None
    hook_point: str | None = None
    scale: float | None = Field(default=None, gt=0)
    threshold: float | None = Field(default=None, ge=0)
    facts: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"default": True} if data == "default" else {"path": data}
        return data

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [self.default, self.release, self.path, self.repo]
        if sum(source is not None for source in sources) != 1:
            raise ValueError("name exactly one of `default`, `release`, `path`, `repo`")
        if self.release is not None and self.id is None:
            raise ValueError(f"release '{self.release}' needs the `id` of one of its SAEs")
        if self.hook_point is not None:
            parse_hook_point(self.hook_point)
        return self

    @property
    def label(self) -> str:
        """A short human-readable name of the source."""
        base = "default" if self.default else (self.release or self.repo or self.path or "")
        return f"{base}/{self.id}" if self.id else base


class EditSpec(_Strict):
    """One edit of one feature at one hook point.

    Attributes:
        op: `add` value·W_dec[f]; `clamp` (value - a_f)·W_dec[f]; `ablate` -a_f·W_dec[f];
            `scale` (value - 1)·a_f·W_dec[f]; `project` sets the component along unit W_dec[f].
        feature: index in `[0, d_sae)`; 0 for a file that holds a single vector.
        value: in `unit`; the multiplier for `scale`; absent for `ablate`.
        strength: multiplies `max_act`; instead of `value`.
        max_act: the feature's largest activation, SAE units; default: the one stored with the
            SAE's statistics.
        unit: `sae` (those of `sae.encode`) or `residual` (L2 length written to the stream).
        when: `active` edits only tokens where the feature fires.
        origin: for `project`, where the component is measured from: `zero`, or the SAE's `b_dec`
            (what the clamp of lm-eval's `steered` does).
        positions, skip_bos, sae, hook_point: override the spec's own.
    """

    op: Op = "clamp"
    feature: int = Field(default=0, ge=0)
    value: float | None = None
    strength: float | None = None
    max_act: float | None = Field(default=None, gt=0)
    unit: Unit = "sae"
    when: When = "always"
    origin: Literal["zero", "b_dec"] = "zero"
    positions: Positions | None = None
    skip_bos: bool | None = None
    sae: SAERef | None = None
    hook_point: str | None = None

    @field_validator("hook_point")
    @classmethod
    def _known_hook_point(cls, text: str | None) -> str | None:
        return None if text is None else str(parse_hook_point(text))

    @model_validator(mode="after")
    def _value_fits_op(self) -> Self:
        given = [name for name in ("value", "strength") if getattr(self, name) is not None]
        if self.origin != "zero" and self.op != "project":
            raise ValueError(f"`origin` goes with `project`, not `{self.op}`; remove it")
        if self.op == "ablate":
            if given or self.max_act is not None:
                raise ValueError("`ablate` takes no value, strength or max_act; remove it")
            return self
        if self.op == "scale":
            if self.value is None or self.strength is not None or self.max_act is not None:
                raise ValueError("`scale` needs `value`, its multiplier, and nothing else")
            if self.unit != "sae":
                raise ValueError("`scale` has no unit; remove `unit`")
            return self
        if len(given) != 1:
            got = "both" if given else "neither"
            raise ValueError(f"`{self.op}` needs either `value` or `strength` (got {got})")
        if self.max_act is not None and self.strength is None:
            raise ValueError("`max_act` goes with `strength`; remove it or use `strength`")
        if self.strength is not None and self.unit != "sae":
            raise ValueError("`strength` counts in max_act, in SAE units; remove `unit`")
        return self


class InterventionSpec(_Strict):
    """A named set of edits, and where they hold.

    Attributes:
        name: free label for tables.
        sae, hook_point: defaults of the edits. An edit without a hook point takes its SAE's.
        edits: may be empty: the unsteered baseline.
        positions: tokens that are edited. A token is `generated` when its position is at or
            past the prompt's length, so the last prompt token is prompt. `thinking` is strictly
            between the reasoning delimiters, wherever they stand.
        skip_bos: leave a leading BOS token alone.
        norm_guard: leave tokens alone whose residual norm is over this many times
            `median_norm` (attention sinks); None switches it off.
        median_norm: median residual norm at each hook point, overriding the one stored with the
            SAE; a number, or a map from hook point to number.
        check_model: refuse an SAE that names another model than the one it is used on.
        think_start, think_end: reasoning delimiters for `thinking`, each one token of the
            tokenizer.
    """

    name: str = "steered"
    sae: SAERef | None = None
    hook_point: str | None = None
    edits: tuple[EditSpec, ...] = ()
    positions: Positions = "all"
    skip_bos: bool = False
    norm_guard: float | None = Field(default=DEFAULT_NORM_GUARD, gt=0)
    median_norm: float | dict[str, float] | None = None
    check_model: bool = True
    think_start: str = "<think>"
    think_end: str = "</think>"

    @field_validator("hook_point")
    @classmethod
    def _known_hook_point(cls, text: str | None) -> str | None:
        return None if text is None else str(parse_hook_point(text))

    @field_validator("median_norm")
    @classmethod
    def _positive_norms(cls, norms: float | dict[str, float] | None) -> Any:
        values = norms.values() if isinstance(norms, dict) else [] if norms is None else [norms]
        if any(not math.isfinite(value) or value <= 0 for value in values):
            raise ValueError(f"median_norm must be positive (got {norms})")
        if isinstance(norms, dict):
            return {str(parse_hook_point(key)): value for key, value in norms.items()}
        return norms

    @model_validator(mode="after")
    def _every_edit_has_an_sae(self) -> Self:
        for number, edit in enumerate(self.edits, 1):
            if edit.sae is None and self.sae is None:
                raise ValueError(
                    f"edit {number} names no SAE; give `sae` in the edit or in the spec"
                )
        return self

    def sae_of(self, edit: EditSpec) -> SAERef:
        """Return the SAE that `edit` uses."""
        return cast(SAERef, edit.sae or self.sae)


def parse_spec(data: Mapping[str, Any], *, source: str = "spec") -> InterventionSpec:
    """Return the checked spec of a plain mapping.

    Args:
        data: keys of `InterventionSpec`.
        source: where the mapping came from, quoted in the error.

    Raises:
        SpecError: an unknown key, a missing or impossible value; all on one line.
    """
    try:
        return InterventionSpec.model_validate(dict(data))
    except ValidationError as error:
        raise SpecError(f"{source}: {_one_line(error)}") from None


def _one_line(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        where = ".".join(
            str(step + 1 if isinstance(step, int) else step) for step in problem["loc"]
        )
        if problem["type"] == "extra_forbidden":
            owner = (
                SAERef
                if "sae" in problem["loc"][:-1]
                else (EditSpec if len(problem["loc"]) > 1 else InterventionSpec)
            )
            message = f"unknown key; known keys: {', '.join(owner.model_fields)}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if not isinstance(problem["input"], Mapping | BaseModel):
                message += f" (got {problem['input']!r})"
        parts.append(f"`{where}`: {message}" if where else message)
    return "; ".join(parts)
