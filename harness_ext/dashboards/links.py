"""Ways on from a feature's page: commands and a spec that steer it, its page on Neuronpedia."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interventions.errors import SAENotFoundError
from interventions.features.scored import SPEC_STRENGTH, Scored, best_spec, model_argument
from interventions.sae.registry import neuronpedia_id
from interventions.spec import DEFAULT_NORM_GUARD

TASK = "--tasks steer_arith_hint --limit 24"
_FLAGS = frozenset({"default", "release", "id", "path", "repo"})
"""Keys of an SAE that commands have flags for; with any other, they name the spec's file."""


@dataclass(frozen=True)
class Steering:
    """How to steer a feature.

    Attributes:
        file: name that the commands expect the spec under, if they do.
        spec: YAML.
        evaluate: a command of `sae-steered evaluate`.
        lm_eval: a command of `lm_eval`.
        needs_file: whether the commands read the spec's file.
    """

    file: str
    spec: str
    evaluate: str
    lm_eval: str
    needs_file: bool


def steering(
    subject: Mapping[str, Any], feature: int, max_act: float, *, strength: float = SPEC_STRENGTH
) -> Steering | None:
    """Return commands and a spec that clamp a feature at `strength` times its largest activation.

    Args:
        subject: `Subject.describe()`.
        feature: index.
        max_act: its largest activation, SAE units; without one there is nothing to multiply.
        strength: the multiple.

    Returns:
        None for a feature that never fired.
    """
    import yaml

    if not max_act > 0:
        return None
    max_act = float(f"{max_act:.5g}")
    row = {"feature": feature, "max_act": max_act}
    scored = Scored("feature", subject, None, {}, [row])
    data = best_spec(scored, strength=strength, name=f"f{feature} x{strength:g}")
    sae = data["sae"]
    file = f"f{feature}.yaml"
    model = model_argument(subject)
    awkward = [str(value) for value in (model or "", *sae.values())]
    needs_file = (
        not _FLAGS.issuperset(sae)
        or any(c in text for text in awkward for c in ",=")
        or not subject.get("check_model", True)
        or subject["norm_guard"] != DEFAULT_NORM_GUARD
    )
    named = [] if model is None else ["--model", model]
    pretrained = [] if model is None else [f"pretrained={model}"]
    if needs_file:
        flags = ["--spec", file]
        inline = [f"spec={file}"]
    else:
        flags = [f"--features={feature}", "--op=clamp", f"--strength={strength:g}"]
        flags += [f"--max-act={max_act:g}", "--positions=generated"]
        sources = {k: v for k, v in sae.items() if k != "default"}
        flags += [f"--sae-{key}={value}" for key, value in sources.items()]
        inline = [f"sae_{key}={value}" for key, value in sources.items()]
        inline += [f"sae_feature_idx={feature}", "sae_op=clamp", f"sae_strength={strength:g}"]
        inline += [f"sae_max_activation={max_act:g}", "sae_positions=generated"]
        if sources:
            flags.append(f"--hook-point={data['hook_point']}")
            inline.append(f"sae_hook_point={data['hook_point']}")
    arguments = ",".join([*pretrained, *inline])
    return Steering(
        file=file,
        spec=yaml.safe_dump(data, sort_keys=False),
        evaluate=f"sae-steered evaluate {shlex.join([*named, *flags])} \\\n    {TASK}",
        lm_eval="lm_eval --model sae_steered --apply_chat_template \\\n"
        f"    --model_args {shlex.quote(arguments)} \\\n    {TASK}",
        needs_file=needs_file,
    )


def neuronpedia(sae: Mapping[str, Any], feature: int) -> str | None:
    """Return the address of a feature's page on Neuronpedia; None where its SAE is not there.

    Args:
        sae: the `sae` of `Subject.describe()`; found by release and id, or by repo and folder.
        feature: index.
    """
    found = neuronpedia_sae(sae)
    return None if found is None else f"https://www.neuronpedia.org/{found}/{feature}"


def neuronpedia_sae(sae: Mapping[str, Any]) -> str | None:
    """Return Neuronpedia's name of an SAE, as SAELens's registry has it, or None.

    Without sae_lens, which has the registry, it is None too; see `unknown_to_neuronpedia`.
    """
    wanted = _registered(sae)
    try:
        return None if wanted is None else neuronpedia_id(*wanted)
    except SAENotFoundError:
        return None


def unknown_to_neuronpedia(sae: Mapping[str, Any]) -> str | None:
    """Return why pages have no links, where nobody can tell whether an SAE is on Neuronpedia."""
    wanted = _registered(sae)
    try:
        if wanted is not None:
            neuronpedia_id(*wanted)
    except SAENotFoundError:
        return (
            f"no links to Neuronpedia: whether {' '.join(wanted or ())} is there is in SAELens's"
            f" registry, and sae_lens is not installed (pip install 'sae-steered[sae]')"
        )
    return None


def _registered(sae: Mapping[str, Any]) -> tuple[str, str] | None:
    name, sae_id = sae.get("release") or sae.get("repo"), sae.get("id")
    return None if name is None or sae_id is None else (str(name), str(sae_id))
