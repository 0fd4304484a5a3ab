"""A spec made concrete: tensors, hook points and a fingerprint, checked against a model.

`make_plan` needs only the model's config, so that a wrong feature, layer or width is reported
before the weights are loaded. The median residual norm that the guard needs may be unknown until
the model is there; `Plan.with_median_norms` adds it.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from interventions.errors import ModelMismatchError, SAEError, SpecError
from interventions.fingerprint import digest
from interventions.hook_points import HookPoint
from interventions.ops import EditConstants, edit_constants
from interventions.positions import Selector
from interventions.sae.core import SAE, FeatureDirections
from interventions.sae.io import load_sae
from interventions.spec import GATED_OPS, EditSpec, InterventionSpec, SAERef


@dataclass(frozen=True)
class ModelFacts:
    """What a plan must know of a model.

    Attributes:
        name: as the user wrote it, or the resolved label.
        d_model: width of the residual stream.
        n_layers: number of decoder layers.
        identity: digest of the weights and config, for the fingerprint; '' while unknown.
    """

    name: str
    d_model: int
    n_layers: int
    identity: str = ""


@dataclass(frozen=True)
class EditGroup:
    """The edits of one SAE at one hook point.

    Attributes:
        directions: encoder and decoder vectors of the edited features, `n_edits` of them.
        constants: `(4, n_edits)` fp32, see `interventions.ops`.
        only_active: `(n_edits,)` bool, edits that hold only where the feature fires.
        selectors: where each edit holds, `n_edits` of them.
    """

    directions: FeatureDirections
    constants: Tensor
    only_active: Tensor
    selectors: tuple[Selector, ...]

    @property
    def needs_acts(self) -> bool:
        """Whether any edit reads the encoder."""
        return bool((self.constants[1] != 0).any() or self.only_active.any())

    @property
    def needs_proj(self) -> bool:
        """Whether any edit reads the component along its direction."""
        return bool((self.constants[3] != 0).any())


@dataclass(frozen=True)
class LayerPlan:
    """All edits at one hook point; `norm_limit` is the guard's bound on the residual norm."""

    hook_point: HookPoint
    groups: tuple[EditGroup, ...]
    median_norm: float | None
    norm_limit: float | None

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """Where each edit of the hook point holds, in the order of the groups."""
        return tuple(selector for group in self.groups for selector in group.selectors)


@dataclass(frozen=True)
class Plan:
    """Everything a backend needs to steer, and what a result says about it.

    Attributes:
        spec: what the user asked for.
        model: the model it was checked against.
        layers: edits by hook point, in order of depth.
        description: plain data that pins the intervention down to the bytes of the directions.
    """

    spec: InterventionSpec
    model: ModelFacts
    layers: tuple[LayerPlan, ...]
    description: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Digest of model, SAEs, edits and positions; the same in every process."""
        medians = {str(layer.hook_point): layer.median_norm for layer in self.layers}
        guard = medians if self.spec.norm_guard is not None else None
        return digest(
            {"edits": self.description, "median_norm": guard, "model": self.model.identity}
        )

    @property
    def missing_medians(self) -> tuple[HookPoint, ...]:
        """Hook points whose guard still needs the median residual norm."""
        if self.spec.norm_guard is None:
            return ()
        return tuple(layer.hook_point for layer in self.layers if layer.median_norm is None)

    @property
    def needs_thinking(self) -> bool:
        """Whether any edit holds only inside the reasoning span."""
        return any(s.positions == "thinking" for layer in self.layers for s in layer.selectors)

    def with_median_norms(self, norms: Mapping[HookPoint, float]) -> "Plan":
        """Return the plan with the missing medians filled in."""
        layers = tuple(
            _guarded(layer, layer.median_norm or norms.get(layer.hook_point), self.spec)
            for layer in self.layers
        )
        return dataclasses.replace(self, layers=layers)

    def with_identity(self, identity: str) -> "Plan":
        """Return the plan for a model whose weights are now known."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, identity=identity))


def make_plan(
    spec: InterventionSpec, model: ModelFacts, *, load: Callable[[SAERef], SAE] = load_sae
) -> Plan:
    """Return the plan of a spec for a model, from the model's config alone.

    Args:
        spec: what is asked for.
        model: what it is asked of.
        load: gives the SAE of a reference; for callers that keep loaded SAEs.

    Raises:
        SpecError: edits contradict one another, or a value is missing.
        SAEError: a feature is out of range, an SAE cannot do the operator, or there is no stored
            maximum for a `strength`.
        ModelMismatchError: an SAE of another width or another model.
        HookPointError: a layer outside the model.
    """
    features: dict[SAERef, list[int]] = {}
    for edit in spec.edits:
        features.setdefault(spec.sae_of(edit), []).append(edit.feature)
    saes = {ref: load(ref) for ref in features}
    for ref, wanted in features.items():
        saes[ref].check_features(wanted)
    groups: dict[tuple[HookPoint, SAERef], list[tuple[EditSpec, float]]] = {}
    described: list[dict[str, Any]] = []
    for number, edit in enumerate(spec.edits, 1):
        ref = spec.sae_of(edit)
        sae = saes[ref]
        hook_point = sae.resolve_hook_point(edit.hook_point or spec.hook_point)
        _check_model(sae, ref, model, spec, number)
        hook_point.check(model.n_layers, f"{model.name}, edit {number}")
        value = _value(edit, sae, number)
        groups.setdefault((hook_point, ref), []).append((edit, value))
        described.append(_describe(edit, spec, sae, hook_point, value))
    _refuse_contradictions(described)
    layers: dict[HookPoint, list[EditGroup]] = {}
    medians: dict[HookPoint, float | None] = {}
    for (hook_point, ref), edits in groups.items():
        layers.setdefault(hook_point, []).append(_group(edits, spec, saes[ref]))
        medians[hook_point] = medians.get(hook_point) or _median(spec, hook_point, saes[ref])
    description = {
        "edits": described,
        "norm_guard": spec.norm_guard,
        "thinking": [spec.think_start, spec.think_end]
        if any(row["positions"] == "thinking" for row in described)
        else None,
    }
    planned = tuple(
        _guarded(LayerPlan(point, tuple(layers[point]), None, None), medians[point], spec)
        for point in sorted(layers)
    )
    return Plan(spec=spec, model=model, layers=planned, description=description)


def _guarded(layer: LayerPlan, median: float | None, spec: InterventionSpec) -> LayerPlan:
    limit = median * spec.norm_guard if median and spec.norm_guard is not None else None
    return dataclasses.replace(layer, median_norm=median, norm_limit=limit)


def _check_model(
    sae: SAE, ref: SAERef, model: ModelFacts, spec: InterventionSpec, number: int
) -> None:
    sae.check_width(model.d_model, model.name)
    if spec.check_model and not same_model(sae.model_name, model.name):
        raise ModelMismatchError(
            f"edit {number}: SAE '{ref.label}' was trained on '{sae.model_name}', not on"
            f" '{model.name}'; set `check_model: false` to use it all the same"
        )


def same_model(trained_on: str | None, name: str) -> bool:
    """Return whether two model names may mean the same model.

    Only the last part of each counts, without case and punctuation. A local folder whose name
    says nothing about a model cannot be compared, and passes; the width is still checked.
    """

    def key(text: str) -> str:
        # `default` is labelled "SmolLM2-135M-Instruct/Q4_1 (wheel, hash)".
        text = re.sub(r"/[^/]* \(.*\)$", "", text)
        return "".join(c for c in text.rstrip("/").rsplit("/", 1)[-1].lower() if c.isalnum())

    if not trained_on or Path(name).exists():
        return True
    ours, theirs = key(name), key(trained_on)
    return ours.startswith(theirs) or theirs.startswith(ours)


def _value(edit: EditSpec, sae: SAE, number: int) -> float:
    if edit.op == "ablate":
        return 0.0
    if edit.strength is None:
        return cast(float, edit.value)
    if edit.max_act is not None:
        return edit.strength * edit.max_act
    if sae.max_act is None:
        raise SAEError(
            f"edit {number}: `strength` needs the feature's maximum and {sae.source} stores none;"
            f" add `max_act` (its largest activation) or give `value`"
        )
    largest = float(sae.max_act[edit.feature])
    if largest <= 0:
        raise SAEError(
            f"edit {number}: feature {edit.feature} never fired in the stored statistics"
            f" (max_act 0), so `strength` means nothing; give `value`"
        )
    return edit.strength * largest


def _median(spec: InterventionSpec, hook_point: HookPoint, sae: SAE) -> float | None:
    if isinstance(spec.median_norm, dict):
        if str(hook_point) in spec.median_norm:
            return spec.median_norm[str(hook_point)]
    elif spec.median_norm is not None:
        return spec.median_norm
    return sae.median_norm if sae.hook_point == hook_point else None


def _describe(
    edit: EditSpec, spec: InterventionSpec, sae: SAE, hook_point: HookPoint, value: float
) -> dict[str, Any]:
    return {
        "op": edit.op,
        "feature": edit.feature,
        "value": value,
        "unit": edit.unit,
        "when": edit.when,
        "origin": edit.origin,
        "hook_point": str(hook_point),
        "positions": edit.positions or spec.positions,
        "skip_bos": spec.skip_bos if edit.skip_bos is None else edit.skip_bos,
        "sae": sae.content_hash,
    }


def _refuse_contradictions(described: list[dict[str, Any]]) -> None:
    """Two edits that both set one feature at one token have no meaning: they would be summed."""
    seen: dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]] = {}
    for number, row in enumerate(described, 1):
        if row["op"] == "add":
            continue
        key = (row["hook_point"], row["sae"], row["feature"])
        for other_number, other in seen.setdefault(key, []):
            if {row["positions"], other["positions"]} not in (
                {"prompt", "generated"},
                {"last_prompt", "generated"},
            ):
                raise SpecError(
                    f"edits {other_number} and {number} both set feature {row['feature']} at"
                    f" {row['hook_point']} (`{other['op']}` and `{row['op']}`) on the same tokens;"
                    f" keep one of them"
                )
        seen[key].append((number, row))


def _group(edits: list[tuple[EditSpec, float]], spec: InterventionSpec, sae: SAE) -> EditGroup:
    directions = sae.directions([edit.feature for edit, _ in edits])
    constants: list[EditConstants] = []
    for row, (edit, value) in enumerate(edits):
        if edit.op in GATED_OPS or edit.when == "active":
            directions.require_gateable(
                edit.op if edit.when == "always" else f"{edit.op} when active"
            )
        direction = directions.w[row]
        norm = float(direction.norm())
        if edit.origin == "b_dec":
            if sae.norm != "none":
                raise SAEError(
                    f"`origin: b_dec` needs an SAE without input normalisation; {sae.source} has"
                    f" '{sae.norm}', so its b_dec is not in units of the residual; use `zero`"
                )
            value += float(sae.b_dec @ direction) / norm
        constants.append(edit_constants(edit.op, value, unit=edit.unit, w_norm=norm))
    table = torch.tensor([dataclasses.astuple(row) for row in constants]).T.contiguous()
    return EditGroup(
        directions=directions,
        constants=table,
        only_active=torch.tensor([edit.when == "active" for edit, _ in edits]),
        selectors=tuple(
            Selector(
                edit.positions or spec.positions,
                spec.skip_bos if edit.skip_bos is None else edit.skip_bos,
            )
            for edit, _ in edits
        ),
    )
