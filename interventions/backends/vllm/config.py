"""What an engine is told at its start: where it may be steered, and how much at a time.

The config travels as `additional_config["sae_steered"]` of vLLM, which every process of an engine
receives and which vLLM hashes into the key of its compile cache.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from interventions.errors import SpecError
from interventions.fingerprint import SCHEMA
from interventions.hook_points import HookPoint, parse_hook_point
from interventions.spec import SAERef

KEY = "sae_steered"
"""Name in `additional_config`, in `SamplingParams.extra_args` and in `vllm_xargs`."""

GRAPH = f"1.{SCHEMA}"
"""Raised when what is traced into the graph changes, so that a compiled graph is never reused."""

MAX_SLOTS = (1 << 16) - 1
"""A token's slot shares an int32 with its position flags."""


class SteeringConfig(BaseModel):
    """Where an engine may be steered.

    Attributes:
        hook_points: places in the model that get the edit operator, or `all`; nothing else can be
            steered after the engine has started.
        max_edits: most edits of one request at one hook point.
        saes: SAEs that clients of a server may name beside the embedded one and the releases of
            SAELens, or `any`; None where nothing was said, which a server takes for none, and a
            process that makes its own requests for `any`.
        graph: version of the operator; filled in, part of the compile cache's key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hook_points: tuple[str, ...] | Literal["all"]
    max_edits: int = Field(default=8, ge=1, le=256)
    saes: tuple[SAERef, ...] | Literal["any"] | None = None
    graph: str = GRAPH

    @field_validator("hook_points", mode="before")
    @classmethod
    def _canonical(cls, value: Any) -> Any:
        if value == "all":
            return value
        many = [value] if isinstance(value, str) else value
        if not isinstance(many, list | tuple) or not many:
            raise ValueError("name at least one hook point, or 'all'")
        return tuple(str(parse_hook_point(str(text))) for text in many)

    def points(self, n_layers: int, model: str) -> tuple[HookPoint, ...]:
        """Return the hook points, in order of depth, without repeats.

        Args:
            n_layers: decoder layers of the model.
            model: its name, for messages.

        Raises:
            HookPointError: a layer outside the model.
        """
        if self.hook_points == "all":
            return tuple(HookPoint(layer, "resid_post") for layer in range(n_layers))
        found = sorted({parse_hook_point(text) for text in self.hook_points})
        for point in found:
            point.check(n_layers, model)
        return tuple(found)


def parse_config(data: Any) -> SteeringConfig:
    """Return the checked config.

    Args:
        data: the value under `sae_steered`: a mapping, a hook point, a list of them, or `all`.

    Raises:
        SpecError: an unknown key or an impossible value, all on one line; or a config that
            another version of this package made.
    """
    if not isinstance(data, Mapping):
        data = {"hook_points": data}
    try:
        config = SteeringConfig.model_validate(dict(data))
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join(map(str, p['loc']))}`: {p['msg'].removeprefix('Value error, ')}"
            for p in error.errors()
        )
        raise SpecError(f"additional_config '{KEY}': {problems}") from None
    if config.graph != GRAPH:
        raise SpecError(
            f"additional_config '{KEY}' has graph version {config.graph}, this process has {GRAPH};"
            f" install one version of sae-steered everywhere, and leave `graph` out"
        )
    return config


def declared(vllm_config: Any) -> SteeringConfig | None:
    """Return the steering config of a `VllmConfig`, or None where none is declared.

    Raises:
        SpecError: it cannot be understood.
    """
    additional = vllm_config.additional_config
    if not isinstance(additional, Mapping) or additional.get(KEY) is None:
        return None
    return parse_config(additional[KEY])
