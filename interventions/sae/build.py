"""From what a file says to the canonical `SAE`: folding, checking, hashing."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from interventions.errors import HookPointError, SAEError
from interventions.hook_points import HookPoint, parse_hook_point
from interventions.sae.core import SAE
from interventions.sae.norms import NormMode

SELF_GATED = frozenset({"standard", "jumprelu", "gated"})
ENCODERS = frozenset({*SELF_GATED, "topk", "abstopk", "groupmax", "matching_pursuit"})

_NORMS = frozenset({"none", "layer_norm", "constant_norm_rescale"})
_HEADS = re.compile(r"hook_(?:z|q|k|v)\b|o_proj\.input")
_OTHER_SITE = re.compile(r"mlp|attn|hook_resid_mid|layernorm|ln\d", re.IGNORECASE)

_WHY_NOT = {
    "vector": "the file holds directions without an encoder",
    "temporal": "a temporal SAE's codes depend on all earlier tokens",
    "transcoder": "a transcoder reads another place than it writes to, so it does not reconstruct"
    " the residual stream",
}


@dataclass
class RawSAE:
    """An SAE as its files describe it, before folding. Shapes are those of `SAE`.

    Attributes:
        architecture: sae_lens's name of it.
        W_dec, W_enc, b_enc, b_dec, threshold, k, b_gate, b_mag, r_mag: weights, any float dtype.
        normalize: sae_lens's `normalize_activations`.
        scale: factor of `expected_average_only_in`, if the files give it.
        apply_b_dec_to_input: whether the encoder sees `z - b_dec`.
        rescale_acts_by_decoder_norm: whether activations count decoder norms (`topk` family).
        center_input: the SAE was trained on a stream whose mean over d_model was subtracted.
        norm_gated: `threshold` was divided by decoder norms, since the library that trained the
            SAE compares it with activation times norm.
        hook_name, model_name, median_norm, max_act: as found.
        source: for messages.
        options: `residual_threshold`, `max_iterations`, `stop_on_duplicate_support`.
    """

    architecture: str
    W_dec: Tensor
    source: str
    W_enc: Tensor | None = None
    b_enc: Tensor | None = None
    b_dec: Tensor | None = None
    threshold: Tensor | None = None
    k: int | None = None
    b_gate: Tensor | None = None
    b_mag: Tensor | None = None
    r_mag: Tensor | None = None
    normalize: str = "none"
    scale: float | None = None
    apply_b_dec_to_input: bool = False
    rescale_acts_by_decoder_norm: bool = False
    center_input: bool = False
    norm_gated: bool = False
    hook_name: str | None = None
    model_name: str | None = None
    median_norm: float | None = None
    max_act: Tensor | None = None
    options: dict[str, float | int | bool | None] | None = None


def build_sae(raw: RawSAE, *, scale: float | None = None, hook_point: str | None = None) -> SAE:
    """Return the canonical SAE.

    Args:
        raw: as read from files.
        scale: `sqrt(d_model) / mean residual norm`, over the files' own.
        hook_point: over the files' own.

    Raises:
        SAEError: unknown architecture or normalisation, a missing or wrongly shaped or non-finite
            tensor, a missing scale, or an SAE of attention heads.
    """
    gateable = raw.architecture in ENCODERS
    if not gateable and raw.architecture not in _WHY_NOT and "transcoder" not in raw.architecture:
        raise SAEError(
            f"{raw.source}: unknown architecture '{raw.architecture}'; known:"
            f" {', '.join(sorted(ENCODERS))}"
        )
    why_not = "" if gateable else _why_not(raw.architecture)
    if raw.hook_name and _HEADS.search(raw.hook_name):
        raise SAEError(
            f"{raw.source} was trained at '{raw.hook_name}', in the space of attention heads; its"
            f" directions mean nothing in the residual stream, so use an SAE of resid_pre or"
            f" resid_post"
        )
    point, other_site = _hook_point(raw.hook_name)
    if gateable and other_site:
        why_not = f"it was trained at '{raw.hook_name}', which is not resid_pre or resid_post"
    tensors = _fp32(raw, gateable=gateable and not why_not)
    factor, norm = _normalisation(raw, scale)
    if why_not and norm != "none":
        raise SAEError(
            f"{raw.source}: '{norm}' cannot be undone from the residual stream, since {why_not};"
            f" use an SAE of resid_pre or resid_post"
        )
    _fold(tensors, raw, factor)
    w_dec = tensors["W_dec"]
    sae_fields = {
        "architecture": raw.architecture,
        "d_model": w_dec.shape[1],
        "d_sae": w_dec.shape[0],
        "k": raw.k,
        "norm": norm,
        "scale": factor,
        "apply_b_dec_to_input": raw.apply_b_dec_to_input,
        "why_not": why_not,
        **(raw.options or {}),
    }
    if raw.architecture == "matching_pursuit" and factor != 1.0:
        # Compared with the length of the remainder, which is now in unscaled units.
        sae_fields["residual_threshold"] = cast(float, sae_fields["residual_threshold"]) / factor
    return SAE(
        **{key: tensors.get(key) for key in ("W_enc", "b_enc", "threshold", "b_gate", "b_mag")},
        r_mag=tensors.get("r_mag"),
        W_dec=w_dec,
        b_dec=tensors["b_dec"],
        **sae_fields,
        hook_point=parse_hook_point(hook_point) if hook_point else point,
        model_name=raw.model_name,
        median_norm=raw.median_norm,
        max_act=_checked_max_act(raw, w_dec.shape[0]),
        source=raw.source,
        norm_gated=raw.norm_gated,
        content_hash=_content_hash(tensors, sae_fields),
    )


def vector_sae(
    vectors: Tensor, *, source: str, hook_point: str | None = None, model_name: str | None = None
) -> SAE:
    """Return plain directions as an SAE whose features can be added or projected.

    Args:
        vectors: `(d_model,)` or `(n, d_model)`; row `i` is feature `i`.
        source: for messages.
        hook_point: where they belong, in any dialect.
        model_name: the model they were made for.

    Raises:
        SAEError: another number of dimensions, or a value that is not finite.
    """
    if vectors.ndim not in (1, 2) or not vectors.is_floating_point():
        raise SAEError(
            f"{source} has shape {tuple(vectors.shape)} and dtype {vectors.dtype}; a direction is a"
            f" float tensor (d_model,) or (n, d_model)"
        )
    rows = vectors if vectors.ndim == 2 else vectors.unsqueeze(0)
    raw = RawSAE("vector", rows, source, hook_name=hook_point, model_name=model_name)
    return build_sae(raw)


def _why_not(architecture: str) -> str:
    return _WHY_NOT["transcoder" if "transcoder" in architecture else architecture]


def _hook_point(name: str | None) -> tuple[HookPoint | None, bool]:
    """Return the hook point that a file names, and whether it is known to be another site."""
    if not name:
        return None, False
    try:
        return parse_hook_point(name.removesuffix(".output")), False
    except HookPointError:
        return None, bool(_OTHER_SITE.search(name))


def _fp32(raw: RawSAE, *, gateable: bool) -> dict[str, Tensor]:
    """Return fp32 copies of the tensors that the architecture uses, shapes and values checked."""
    d_sae, d_model = raw.W_dec.shape
    shapes: dict[str, tuple[int, ...]] = {"W_dec": (d_sae, d_model)}
    if gateable and raw.architecture != "matching_pursuit":
        shapes["W_enc"] = (d_model, d_sae)
        biases = ("b_gate", "b_mag", "r_mag") if raw.architecture == "gated" else ("b_enc",)
        shapes |= dict.fromkeys(biases, (d_sae,))
        if raw.architecture == "jumprelu":
            shapes["threshold"] = (d_sae,)
    # A temporal SAE and a plain vector may lack it, and nothing of theirs reads it.
    shapes["b_dec"] = (d_model,)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        tensor = getattr(raw, name)
        if tensor is None and name == "b_dec" and raw.architecture in _WHY_NOT:
            tensor = torch.zeros(d_model)
        if tensor is None:
            raise SAEError(
                f"{raw.source}: no tensor '{name}', which the architecture '{raw.architecture}'"
                f" needs; the file is incomplete or of another format"
            )
        if tuple(tensor.shape) != shape:
            raise SAEError(
                f"{raw.source}: '{name}' has shape {tuple(tensor.shape)}, expected {shape} from"
                f" W_dec; the file is damaged or of another format"
            )
        tensor = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        bad = int((tensor.isnan() if name == "threshold" else ~tensor.isfinite()).sum())
        if bad:
            raise SAEError(
                f"{raw.source}: '{name}' holds {bad} of {tensor.numel()} values that are not"
                f" finite; the file is damaged"
            )
        tensors[name] = tensor
    if raw.architecture in ("topk", "abstopk", "groupmax"):
        ok = raw.k is not None and 0 < raw.k <= d_sae
        if not ok or (raw.architecture == "groupmax" and d_sae % cast(int, raw.k)):
            raise SAEError(
                f"{raw.source}: k is {raw.k} with {d_sae} features; its configuration must give a k"
                f" in 1..{d_sae}"
            )
    return tensors


def _normalisation(raw: RawSAE, scale: float | None) -> tuple[float, NormMode]:
    """Return the factor to fold and the normalisation that is left at run time."""
    if raw.normalize == "expected_average_only_in":
        factor = raw.scale if scale is None else scale
        if factor is None:
            raise SAEError(
                f"{raw.source} asks for expected_average_only_in and its files give no factor; set"
                f" `scale` of `sae` in the spec to sqrt({raw.W_dec.shape[1]}) / (mean residual norm"
                f" at its hook point)"
            )
        if not (math.isfinite(factor) and factor > 0):
            raise SAEError(f"{raw.source}: scale is {factor}; it must be positive")
        return factor, "none"
    if scale is not None:
        raise SAEError(
            f"{raw.source} does not ask for a scale (normalize_activations is '{raw.normalize}');"
            f" remove `scale` = {scale} from the spec"
        )
    if raw.normalize == "constant_scalar_rescale" and raw.scale is not None:
        return raw.scale, "none"
    if raw.normalize not in _NORMS:
        extra = (
            "; whitening must be folded when the SAE is saved"
            if raw.normalize == "covariance_whitening"
            else ""
        )
        raise SAEError(
            f"{raw.source}: normalize_activations '{raw.normalize}' cannot be applied at run time"
            f" (known: {', '.join(sorted(_NORMS))}, expected_average_only_in){extra}"
        )
    return 1.0, cast(NormMode, raw.normalize)


def _fold(tensors: dict[str, Tensor], raw: RawSAE, factor: float) -> None:
    """Fold scale, decoder norms and centring into the tensors, in place."""
    w_enc, w_dec, b_dec = tensors.get("W_enc"), tensors["W_dec"], tensors["b_dec"]
    if factor != 1.0:
        # encode(s·x) = (s·x - b)·W = (x - b/s)·(s·W); biases and thresholds keep their units.
        # Matching pursuit scales with its input, and its tied dictionary must stay as it is.
        if raw.architecture != "matching_pursuit":
            w_dec /= factor
        b_dec /= factor
        if w_enc is not None:
            w_enc *= factor
    if raw.rescale_acts_by_decoder_norm and raw.architecture in ("topk", "abstopk"):
        norms = w_dec.norm(dim=-1)
        w_dec /= norms.unsqueeze(1)
        if w_enc is not None:
            w_enc *= norms
            tensors["b_enc"] *= norms
    if raw.center_input and w_enc is not None:
        if raw.normalize not in ("none", "expected_average_only_in"):
            raise SAEError(
                f"{raw.source}: center_writing_weights together with '{raw.normalize}' is unknown;"
                f" only SAEs without run-time normalisation can be centred"
            )
        # (x - mean(x))·W = x·(W - mean of W over d_model): the stream need not be centred.
        mean = w_enc.mean(dim=0, keepdim=True)
        if raw.apply_b_dec_to_input:
            for name in ("b_enc", "b_gate"):
                if name in tensors:
                    tensors[name] -= b_dec.sum() * mean[0]
            if "b_mag" in tensors:
                tensors["b_mag"] -= b_dec.sum() * mean[0] * tensors["r_mag"].exp()
        w_enc -= mean


def _checked_max_act(raw: RawSAE, d_sae: int) -> Tensor | None:
    if raw.max_act is None:
        return None
    if tuple(raw.max_act.shape) != (d_sae,):
        raise SAEError(
            f"{raw.source}: stored max_act has shape {tuple(raw.max_act.shape)}, expected"
            f" ({d_sae},); its statistics are of another SAE"
        )
    return raw.max_act.float()


def _content_hash(tensors: dict[str, Tensor], fields: dict[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).numpy().data)
    return digest.hexdigest()
