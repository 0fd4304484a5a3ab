"""An SAE in one canonical form, whatever library wrote it.

Everything that can be folded is folded when an SAE is built (`build_sae` in `build`): the scale of
`expected_average_only_in`, the decoder norms of `rescale_acts_by_decoder_norm`, the centring of
the residual stream. What is left needs two vectors and a few scalars a feature.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor

from interventions.errors import ModelMismatchError, SAEError
from interventions.hook_points import HookPoint, parse_hook_point
from interventions.sae import gates
from interventions.sae.norms import NormMode, denormalise, normalise

FULL_GATES = frozenset({"topk", "abstopk", "groupmax", "matching_pursuit"})
"""Architectures whose gate needs the pre-activations of every feature."""


@dataclass(frozen=True, eq=False)
class FeatureDirections:
    """What an edit needs of `n` features of one SAE.

    With `z` the normalised residual and `g = z · e`, where `full` is None the activation is
    `relu(mul · g + beta_mag) · 1[g + beta > theta]`; else `full` computes it.

    Attributes:
        features: indices in the SAE.
        index: `(n,)` the same, int64, on the device of the rest.
        e: `(n, d_model)` encoder rows, fp32, everything folded in; zeros where not `gateable`.
        beta, mul, beta_mag, theta: `(n,)`; `mul` is 1 and `beta_mag` is `beta` but for `gated`.
        w: `(n, d_model)` rows of `W_dec`, fp32, not renormalised; one unit of activation writes
            `c · w` to the residual stream, `c` the factor of the token's normalisation.
        norm: the SAE's input normalisation.
        full: the whole SAE, for architectures whose gate needs every pre-activation.
        gateable: whether the activation can be computed from the residual at one token.
        why_not: the reason where it cannot; such features can be added or projected only.
        source: name of the SAE, for messages.
    """

    features: tuple[int, ...]
    index: Tensor
    e: Tensor
    beta: Tensor
    mul: Tensor
    beta_mag: Tensor
    theta: Tensor
    w: Tensor
    norm: NormMode
    full: "SAE | None" = None
    gateable: bool = True
    why_not: str = ""
    source: str = ""

    def to(self, device: torch.device | str) -> Self:
        """Return the same directions on `device`."""
        full = None if self.full is None else self.full.to(device)
        return dataclasses.replace(_tensors_to(self, device), full=full)

    def require_gateable(self, op: str) -> None:
        """Return nothing if the features' own activations can be computed.

        Raises:
            SAEError: they cannot; names the operator that asks for them and the reason.
        """
        if not self.gateable:
            raise SAEError(
                f"`{op}` needs feature activations, which {self.source} cannot give:"
                f" {self.why_not}; use `add` or `project`"
            )


@dataclass(frozen=True, eq=False)
class SAE:
    """A sparse autoencoder of a residual stream, fp32.

    Attributes:
        architecture: `standard`, `jumprelu`, `gated`, `topk`, `abstopk`, `groupmax`,
            `matching_pursuit`; or one whose features can only be added or projected: `vector`,
            `temporal`, and the transcoders.
        d_model, d_sae: widths.
        W_enc: `(d_model, d_sae)`, or None where there is no encoder to speak of.
        W_dec: `(d_sae, d_model)`.
        b_enc: `(d_sae,)`, or None (`gated` and where `W_enc` is None).
        b_dec: `(d_model,)`.
        threshold: `(d_sae,)` of `jumprelu`.
        k: of `topk`, `abstopk`, `groupmax`.
        b_gate, b_mag, r_mag: `(d_sae,)` of `gated`.
        norm: normalisation of the input that is left at run time.
        scale: the factor of `expected_average_only_in` that was folded in, 1 if none.
        apply_b_dec_to_input: whether the encoder sees `z - b_dec`.
        hook_point: where it was trained, if its files say.
        model_name: the model it was trained on, if its files say.
        median_norm: median residual norm at the hook point, if stored with it.
        max_act: `(d_sae,)` largest activations on its corpus, if stored with it.
        source: where it came from, for messages.
        content_hash: sha256 of everything that the maths depends on.
        why_not: why activations cannot be computed from the residual; empty if they can.
        residual_threshold, max_iterations, stop_on_duplicate_support: of `matching_pursuit`.
        norm_gated: whether `threshold` counts decoder norms, as the files of its library say.
    """

    architecture: str
    d_model: int
    d_sae: int
    W_enc: Tensor | None
    W_dec: Tensor
    b_enc: Tensor | None
    b_dec: Tensor
    threshold: Tensor | None = None
    k: int | None = None
    b_gate: Tensor | None = None
    b_mag: Tensor | None = None
    r_mag: Tensor | None = None
    norm: NormMode = "none"
    scale: float = 1.0
    apply_b_dec_to_input: bool = False
    hook_point: HookPoint | None = None
    model_name: str | None = None
    median_norm: float | None = None
    max_act: Tensor | None = None
    source: str = ""
    content_hash: str = ""
    why_not: str = ""
    residual_threshold: float = 1e-2
    max_iterations: int | None = None
    stop_on_duplicate_support: bool = True
    norm_gated: bool = False

    def __repr__(self) -> str:
        return (
            f"SAE({self.source!r}, {self.architecture}, d_model={self.d_model},"
            f" d_sae={self.d_sae}, hook_point={self.hook_point}, norm={self.norm})"
        )

    @property
    def gateable(self) -> bool:
        """Whether activations can be computed from the residual at one token."""
        return not self.why_not

    def to(self, device: torch.device | str) -> Self:
        """Return the same SAE on `device`."""
        return _tensors_to(self, device)

    def encode(self, resid: Tensor) -> Tensor:
        """Return the activations of all features, fp32 `(..., d_sae)`, in SAE units.

        Args:
            resid: `(..., d_model)` residual stream, any float dtype.

        Raises:
            SAEError: this architecture has no activation at a single token.
        """
        self.require_activations()
        return self.encode_normed(normalise(resid, self.norm).z)

    def encode_normed(self, z: Tensor) -> Tensor:
        """Return the activations of all features for an already normalised residual.

        Args:
            z: `(..., d_model)` fp32, as `norms.normalise` gives it.
        """
        self.require_activations()
        if self.apply_b_dec_to_input:
            z = z - self.b_dec
        if self.architecture == "matching_pursuit":
            return gates.matching_pursuit(
                z,
                self.W_dec,
                residual_threshold=self.residual_threshold,
                max_iterations=self.max_iterations,
                stop_on_duplicate_support=self.stop_on_duplicate_support,
            )
        assert self.W_enc is not None
        pre = z @ self.W_enc
        if self.architecture == "gated":
            b_gate, b_mag, r_mag = self._gate_parameters()
            return (pre * r_mag.exp() + b_mag).relu() * (pre + b_gate > 0)
        assert self.b_enc is not None
        # In place where it is ours: a fresh tensor of this size costs as much as the arithmetic.
        pre += self.b_enc
        if self.architecture == "jumprelu":
            assert self.threshold is not None
            return pre.masked_fill_(pre <= self.threshold.clamp(min=0), 0)
        if self.architecture in FULL_GATES:
            assert self.k is not None
            return getattr(gates, self.architecture)(pre, self.k)
        return pre.relu_()

    def decode(self, acts: Tensor, resid: Tensor) -> Tensor:
        """Return the reconstruction in units of the residual stream, fp32 `(..., d_model)`.

        Args:
            acts: `(..., d_sae)` activations in SAE units.
            resid: `(..., d_model)` the residual they were read from; its own statistics undo the
                normalisation, so that nothing is remembered between calls.

        Raises:
            SAEError: this architecture does not reconstruct the residual.
        """
        self.require_activations()
        recon = acts @ self.W_dec
        # Matching pursuit is tied: it adds b_dec back only where it was subtracted.
        if self.architecture != "matching_pursuit" or self.apply_b_dec_to_input:
            recon = recon + self.b_dec
        return denormalise(recon, normalise(resid, self.norm))

    def directions(self, features: Sequence[int]) -> FeatureDirections:
        """Return what an edit needs of `features`, in their order.

        Args:
            features: indices in `[0, d_sae)`; repeats are allowed.

        Raises:
            SAEError: an index is outside the SAE.
        """
        self.check_features(features)
        index = torch.tensor(list(features), dtype=torch.long, device=self.W_dec.device)
        w = self.W_dec[index]
        zeros = w.new_zeros(len(index))
        common = {
            "features": tuple(int(feature) for feature in features),
            "index": index,
            "w": w,
            "norm": self.norm,
            "source": self.source,
            "why_not": self.why_not,
            "gateable": self.gateable,
            "full": self if self.gateable and self.architecture in FULL_GATES else None,
        }
        if not self.gateable or self.architecture == "matching_pursuit" or self.W_enc is None:
            e = torch.zeros_like(w) if self.W_enc is None else self.W_enc[:, index].T.contiguous()
            return FeatureDirections(
                e=e, beta=zeros, mul=zeros + 1, beta_mag=zeros, theta=zeros, **common
            )
        e = self.W_enc[:, index].T.contiguous()
        shift = e @ self.b_dec if self.apply_b_dec_to_input else zeros
        if self.architecture == "gated":
            b_gate, b_mag, r_mag = self._gate_parameters()
            mul = r_mag[index].exp()
            return FeatureDirections(
                e=e,
                beta=b_gate[index] - shift,
                mul=mul,
                beta_mag=b_mag[index] - mul * shift,
                theta=zeros,
                **common,
            )
        assert self.b_enc is not None
        beta = self.b_enc[index] - shift
        theta = zeros if self.threshold is None else self.threshold[index]
        return FeatureDirections(
            e=e, beta=beta, mul=zeros + 1, beta_mag=beta, theta=theta, **common
        )

    def check_features(self, features: Sequence[int]) -> None:
        """Return nothing if every index is in `[0, d_sae)`.

        Raises:
            SAEError: names the first index outside, the limit and the SAE.
        """
        for feature in features:
            if not 0 <= feature < self.d_sae:
                raise SAEError(
                    f"feature {feature} is outside 0..{self.d_sae - 1} of {self.source}; name a"
                    f" feature of this SAE"
                )

    def check_width(self, d_model: int, model: str) -> None:
        """Return nothing if the SAE fits a model of width `d_model`.

        Raises:
            ModelMismatchError: the widths differ; names both.
        """
        if d_model != self.d_model:
            made_for = f" (made for {self.model_name})" if self.model_name else ""
            raise ModelMismatchError(
                f"{self.source}{made_for} has width {self.d_model}, {model} has {d_model}; use an"
                f" SAE trained on this model"
            )

    def resolve_hook_point(self, override: str | None = None) -> HookPoint:
        """Return where to read and write: `override`, or the SAE's own hook point.

        Raises:
            SAEError: neither is known.
        """
        if override is not None:
            return parse_hook_point(override)
        if self.hook_point is None:
            raise SAEError(
                f"{self.source} does not name a residual-stream hook point; give `hook_point` in"
                f" the spec, for example 'blocks.15.hook_resid_post'"
            )
        return self.hook_point

    def _gate_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.b_gate is not None
        assert self.b_mag is not None
        assert self.r_mag is not None
        return self.b_gate, self.b_mag, self.r_mag

    def require_activations(self) -> None:
        """Return nothing if activations can be computed from the residual at one token.

        Raises:
            SAEError: they cannot; names the reason.
        """
        if not self.gateable:
            raise SAEError(
                f"activations of {self.source} cannot be computed: {self.why_not}; its features can"
                f" only be added or projected"
            )


_Holder = TypeVar("_Holder", "SAE", FeatureDirections)


def _tensors_to(holder: _Holder, device: torch.device | str) -> _Holder:
    moved = {
        field.name: value.to(device)
        for field in dataclasses.fields(holder)
        if isinstance(value := getattr(holder, field.name), Tensor)
    }
    return dataclasses.replace(holder, **moved)
