"""Does an SAE fit the model and hook point it is used at, and is it read as it was trained?

An SAE that is read one layer off, without its input scale, or with thresholds on the wrong
quantity still gives activations; only its reconstruction tells. So the conventions that files
leave open, and the neighbouring hook points, are tried on a sample of text and compared.
"""

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.backends.hf import decoder_layers
from interventions.errors import FeatureError
from interventions.hook_points import HookPoint
from interventions.residuals import read_residuals
from interventions.sae.core import SAE
from interventions.subject import Subject

logger = logging.getLogger(__name__)

BETTER = 0.9
"""Another convention or layer is named where its FVU is at most this share of the one in use."""
BAD_FVU, POOR_FVU = 0.7, 0.5
DENSE = 0.1
NORM_RATIO = 1.5
_CHUNK_ELEMENTS = 1 << 24
_FEW_TOKENS = 200

_PROBE = """\
The ferry to the island leaves at nine, and it takes about forty minutes if the sea is calm. Maria
had 12 tickets, gave 5 of them to her neighbours, and sold the rest for $3 each, so she earned
(12 - 5) * 3 = 21 dollars. Wait, one ticket was returned the next day; then it is 18. However, the
harbour office keeps a small fee.

def area(width, height):
    return width * height

Rain is expected in the north on Tuesday. The committee will therefore meet indoors: first the
budget, then the school, and finally, if there is time, the question of the old bridge.
"""

Level = Literal["problem", "warning", "note"]


@dataclass(frozen=True)
class Fit:
    """How an SAE reconstructs some tokens.

    Attributes:
        label: which convention, or which hook point.
        fvu: fraction of variance unexplained; 1 is as good as the mean.
        l0: mean active features a token.
        dead: share of features that never fire on these tokens.
    """

    label: str
    fvu: float
    l0: float
    dead: float


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict; a `problem` makes it a bad one."""

    level: Level
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """What was measured and what follows from it.

    Attributes:
        fit: as loaded, at its hook point, sinks left out.
        conventions: the same SAE read in other ways.
        neighbours: the same SAE at other hook points.
        figures: counts and norms by name.
        findings: worst first.
    """

    fit: Fit
    conventions: tuple[Fit, ...]
    neighbours: tuple[Fit, ...]
    figures: dict[str, float]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return all(finding.level != "problem" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"ok": self.ok, **dataclasses.asdict(self)}


def fit_of(sae: SAE, resid: Float[Tensor, "tokens d_model"], label: str) -> Fit:
    """Return how `sae` reconstructs `resid`, in chunks of some 64 MiB."""
    resid = resid.to(sae.W_dec.device)
    mean = resid.double().mean(0)
    error = variance = 0.0
    count = torch.zeros(sae.d_sae, dtype=torch.int64, device=resid.device)
    for part in resid.split(max(16, _CHUNK_ELEMENTS // sae.d_sae)):
        x = part.float()
        acts = sae.encode(x)
        error += float((sae.decode(acts, x) - x).double().square().sum())
        variance += float((x.double() - mean).square().sum())
        count += acts.count_nonzero(0)
    return Fit(
        label,
        error / max(variance, 1e-30),
        float(count.sum() / len(resid)),
        float((count == 0).double().mean()),
    )


def conventions(sae: SAE, mean_norm: float) -> Iterator[tuple[str, SAE]]:
    """Yield the ways in which files like these may be meant, other than as they were loaded.

    One at a time: eleven copies of a large SAE do not fit beside its model.

    Args:
        sae: as loaded, everything folded.
        mean_norm: of the residual stream it reads, sinks left out.
    """
    scales: list[tuple[str, float]] = [("", 1.0)]
    if sae.norm == "none" and sae.architecture != "matching_pursuit":
        measured = math.sqrt(sae.d_model) / mean_norm
        if sae.scale != 1.0:
            scales.append(("input not scaled", 1 / sae.scale))
        if not 0.9 < measured / sae.scale < 1.1:
            scales.append((f"input scaled by {measured:.4g}", measured / sae.scale))
    gates: list[tuple[str, Tensor | None]] = [("", sae.threshold)]
    norms = sae.W_dec.norm(dim=-1) * sae.scale
    if sae.architecture == "jumprelu" and bool(((norms - 1).abs() > 0.02).any()):
        assert sae.threshold is not None
        if sae.norm_gated:
            gates.append(("threshold on plain activation", sae.threshold * norms))
        else:
            gates.append(("threshold on activation x decoder norm", sae.threshold / norms))
    biases: list[tuple[str, bool]] = [("", sae.apply_b_dec_to_input)]
    if float(sae.b_dec.norm()) > 1e-3 * mean_norm and sae.architecture != "matching_pursuit":
        other = "b_dec not subtracted" if sae.apply_b_dec_to_input else "b_dec subtracted"
        biases.append((f"{other} from the input", not sae.apply_b_dec_to_input))
    for scale_label, factor in scales:
        scaled = sae if factor == 1.0 else _scaled(sae, factor)
        for gate_label, threshold in gates:
            for bias_label, subtract in biases:
                if label := ", ".join(filter(None, (scale_label, gate_label, bias_label))):
                    other = {"threshold": threshold, "apply_b_dec_to_input": subtract}
                    yield label, dataclasses.replace(scaled, **other)


def _scaled(sae: SAE, factor: float) -> SAE:
    assert sae.W_enc is not None
    return dataclasses.replace(
        sae, W_enc=sae.W_enc * factor, W_dec=sae.W_dec / factor, b_dec=sae.b_dec / factor
    )


def better(other: Fit, than: Fit) -> bool:
    """Return whether `other` is so much better that it must be what was meant.

    A lower FVU does not count where it is bought with more than twice the features, unless what it
    replaces explains next to nothing; and an FVU like the other's counts where half the features or
    fewer are enough for it.
    """
    rescued = than.fvu >= BAD_FVU and other.fvu < POOR_FVU
    closer = other.fvu <= BETTER * than.fvu and (rescued or other.l0 <= 2 * than.l0)
    sparser = other.fvu <= than.fvu / BETTER and 1 <= other.l0 <= than.l0 / 2
    return closer or sparser


def neighbours_of(subject: Subject, *, scan: bool = False) -> list[HookPoint]:
    """Return the hook points one layer below and above, or all others with `scan`."""
    point = subject.hook_point
    n_layers = len(decoder_layers(subject.model))
    layers = range(n_layers) if scan else (point.layer - 1, point.layer + 1)
    return [
        HookPoint(layer, point.site)
        for layer in layers
        if 0 <= layer < n_layers and layer != point.layer
    ]


def diagnose(subject: Subject, rows: Sequence[Tensor], *, scan: bool = False) -> Diagnosis:
    """Return how well the SAE of `subject` fits on token rows.

    Args:
        subject: model, SAE and hook point.
        rows: each `(tokens,)`; a few thousand tokens are enough.
        scan: try every layer in place of the two neighbours.

    Raises:
        FeatureError: fewer than 200 tokens count.
    """
    resid, norms, limit = _sample(subject, subject.hook_point, rows)
    median, kept = float(norms.median()), norms[norms <= limit]
    fit = fit_of(subject.sae, resid, "as loaded")
    tried = tuple(
        fit_of(sae, resid, label) for label, sae in conventions(subject.sae, float(kept.mean()))
    )
    nearby = []
    for point in neighbours_of(subject, scan=scan):
        other, _, _ = _sample(subject, point, rows)
        nearby.append(fit_of(subject.sae, other, str(point)))
    decoder = subject.sae.W_dec.norm(dim=-1)
    figures = {
        "tokens": float(len(norms)),
        "sinks": float(len(norms) - len(kept)),
        "median_norm": median,
        "mean_norm": float(kept.mean()),
        "decoder_norm_min": float(decoder.min()),
        "decoder_norm_median": float(decoder.median()),
        "decoder_norm_max": float(decoder.max()),
    }
    stored = subject.sae.median_norm
    if stored is not None:
        figures["median_norm_stored"] = stored
    findings = _findings(subject, fit, tried, tuple(nearby), figures)
    return Diagnosis(fit, tried, tuple(nearby), figures, findings)


def check_at_load(subject: Subject) -> list[Finding]:
    """Return what a look at some hundred tokens finds; each finding is logged as a warning.

    It takes one short forward pass, and sees an SAE that cannot reconstruct this residual stream
    at all. What it is instead, `sae-steered doctor` finds out.
    """
    ids = subject.tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    limits = [getattr(subject.model.config, "max_position_embeddings", None) or 512, 512]
    row = torch.tensor(ids[: min(limits)], dtype=torch.long)
    (batch,) = read_residuals(subject.model, subject.hook_point, [row])
    keep = batch.usable(10 * float(batch.norms.median()), subject.special_ids)
    fit = fit_of(subject.sae, batch.resid[keep], "as loaded")
    found = [
        finding
        for finding in _of_fit(fit, subject.sae)
        if finding.level == "problem" and keep.sum() >= 50
    ]
    for finding in found:
        logger.warning(
            "SAE '%s' at %s: %s; see `sae-steered doctor`",
            subject.sae_ref.label,
            subject.hook_point,
            finding.text,
        )
    return found


def _sample(
    subject: Subject, point: HookPoint, rows: Iterable[Tensor]
) -> tuple[Tensor, Tensor, float]:
    """Return residuals without sinks and special tokens, norms of all these, and the limit."""
    parts, norms = [], []
    for batch in read_residuals(subject.model, point, rows):
        keep = batch.usable(None, subject.special_ids)
        parts.append(batch.resid[keep])
        norms.append(batch.norms[keep])
    resid, lengths = torch.cat(parts), torch.cat(norms)
    # By this text's own median: the stored one may be what is wrong.
    limit = (subject.guard or math.inf) * float(lengths.median()) if len(lengths) else 0.0
    resid = resid[lengths <= limit]
    if len(resid) < _FEW_TOKENS:
        raise FeatureError(
            f"{len(resid)} tokens count, {_FEW_TOKENS} are the least; give a longer --text"
        )
    return resid, lengths, limit


def _of_fit(fit: Fit, sae: SAE) -> list[Finding]:
    found = []
    if not math.isfinite(fit.fvu) or fit.fvu >= BAD_FVU:
        found.append(
            Finding(
                "problem",
                f"FVU is {fit.fvu:.3g} (1 is as good as the mean of the data): the SAE does not"
                f" reconstruct this residual stream",
            )
        )
    elif fit.fvu >= POOR_FVU:
        found.append(Finding("warning", f"FVU is {fit.fvu:.3g}, which is poor"))
    if fit.l0 < 1:
        found.append(
            Finding("problem", f"L0 is {fit.l0:.3g}: hardly any feature fires on this text")
        )
    elif fit.l0 > DENSE * sae.d_sae:
        level: Level = "problem" if fit.l0 > 0.25 * sae.d_sae else "warning"
        found.append(Finding(level, f"L0 is {fit.l0:.4g} of {sae.d_sae} features: hardly sparse"))
    return found


def _findings(
    subject: Subject,
    fit: Fit,
    tried: tuple[Fit, ...],
    nearby: tuple[Fit, ...],
    figures: dict[str, float],
) -> tuple[Finding, ...]:
    found: list[Finding] = []
    sae, best = subject.sae, fit
    for other in sorted(tried, key=lambda o: o.fvu):
        if better(other, best):
            best = other
    if best is not fit:
        found.append(
            Finding(
                "problem",
                f"convention: with '{best.label}' FVU is {best.fvu:.3g} and L0 {best.l0:.4g}, as"
                f" loaded {fit.fvu:.3g} and {fit.l0:.4g}; {_remedy(best.label)}",
            )
        )
    if nearby:
        closest = min(nearby, key=lambda o: o.fvu)
        if closest.fvu <= BETTER * best.fvu:
            found.append(
                Finding(
                    "problem",
                    f"hook point: at {closest.label} FVU is {closest.fvu:.3g}, at"
                    f" {subject.hook_point} {best.fvu:.3g}; read it there with --hook-point"
                    f" {closest.label}, or check which layer the SAE's files mean",
                )
            )
    found += _of_fit(best, sae)
    stored = figures.get("median_norm_stored")
    if stored and not 1 / NORM_RATIO < figures["median_norm"] / stored < NORM_RATIO:
        found.append(
            Finding(
                "problem",
                f"median residual norm is {figures['median_norm']:.4g}, stored with the SAE is"
                f" {stored:.4g}: another model, another layer, or another kind of text",
            )
        )
    if subject.guard is None:
        found.append(Finding("warning", "the norm guard is off: sinks are in these figures"))
    if not same_norms(figures):
        found.append(
            Finding(
                "note",
                f"decoder norms are {figures['decoder_norm_min']:.3g} to"
                f" {figures['decoder_norm_max']:.3g}: an activation is not the length it writes",
            )
        )
    order = {"problem": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda f: order[f.level]))


def same_norms(figures: dict[str, float]) -> bool:
    """Return whether all decoder rows have length 1, within 2 %."""
    return figures["decoder_norm_min"] > 0.98 and figures["decoder_norm_max"] < 1.02


def _remedy(label: str) -> str:
    if "threshold on activation" in label:
        return "load it with --sae-repo, which follows the library that trained it"
    if "threshold on plain" in label:
        return "load it with --sae-release, which takes thresholds as they are"
    if "scaled by" in label:
        return "give that `scale` in `sae` of the spec, or `expected_average_only_in` in its config"
    if "not scaled" in label:
        return "remove `scale`, or set normalize_activations to none in its config"
    return "set apply_b_dec_to_input in its config"
