import importlib.util
import subprocess
from typing import Any

import pytest
import yaml

from harness_ext.dashboards.links import neuronpedia, steering, unknown_to_neuronpedia
from harness_ext.evaluate_specs import feature_specs
from interventions.default_model import wheel_label
from interventions.sae import registry
from interventions.spec import InterventionSpec, parse_spec
from interventions.spec_io import spec_from_args
from tests.harness_ext.dashboards.facts_folder import SUBJECT

R1 = {
    **SUBJECT,
    "model": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "sae": {"release": "llama_scope_r1_distill", "id": "l19r_800m_openr1_math"},
    "hook_point": "blocks.19.hook_resid_post",
}
DEFAULT = {**SUBJECT, "sae": {"default": True}, "hook_point": "blocks.15.hook_resid_post"}
PATH = {**SUBJECT, "sae": {"path": "/runs/my sae"}}
# Somebody's own SAE on the embedded model, whose label is no name that loads.
OWN = {**PATH, "model": wheel_label("0.1.2", "b179c9523d0e")}


def _words(command: str) -> list[str]:
    """Return the words that a shell makes of a command."""
    script = f"set -- {command}\nprintf '%s\\0' \"$@\""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.removesuffix("\0").split("\0")


def _evaluate(command: str) -> dict[str, Any]:
    """Return what `sae-steered evaluate` would read from the command."""
    from harness_ext.scripts.evaluate import _parser

    words = _words(command)
    assert words[:2] == ["sae-steered", "evaluate"]
    return vars(_parser().parse_args(words[2:]))


def _lm_eval(command: str) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    words = _words(command)
    assert words[:3] == ["lm_eval", "--model", "sae_steered"]
    return simple_parse_args_string(words[words.index("--model_args") + 1])


def _edit(spec: InterventionSpec | None) -> tuple[Any, ...]:
    assert spec is not None
    (edit,) = spec.edits
    size = (edit.op, edit.feature, edit.strength, edit.max_act)
    return (*size, spec.positions, spec.norm_guard, spec.sae_of(edit))


@pytest.mark.parametrize(
    "subject", [R1, DEFAULT, PATH, OWN], ids=["release", "default", "path", "own"]
)
def test_both_commands_and_the_spec_steer_the_same(subject: dict[str, Any]) -> None:
    found = steering(subject, 12, 5.8431234)
    assert found is not None
    assert not found.needs_file
    spec = parse_spec(yaml.safe_load(found.spec))
    assert _edit(spec)[:4] == ("clamp", 12, 1.5, 5.8431)
    args = _evaluate(found.evaluate)
    (from_flags,) = feature_specs(args["features"], args)
    inline = {k: v for k, v in _lm_eval(found.lm_eval).items() if k.startswith("sae_")}
    assert _edit(from_flags) == _edit(spec)
    assert _edit(spec_from_args(inline)) == _edit(spec)
    assert args["model"] == _lm_eval(found.lm_eval).get("pretrained")
    assert args["model"] == (None if subject in (DEFAULT, OWN) else subject["model"])


@pytest.mark.parametrize(
    "change",
    [
        {"sae": {"path": "/runs/a,b"}},
        {"sae": {"path": "/runs/a=b"}},
        {"sae": {"path": "/runs/a", "threshold": 1.5}},
        {"sae": {"repo": "a/b", "revision": "0" * 40}},
        {"norm_guard": None},
        {"check_model": False},
    ],
)
def test_what_has_no_flag_is_left_to_the_spec_file(change: dict[str, Any]) -> None:
    found = steering({**PATH, **change}, 7, 2.0)
    assert found is not None
    assert found.needs_file
    assert _evaluate(found.evaluate)["spec"] == ["f7.yaml"] == [found.file]
    assert _lm_eval(found.lm_eval)["spec"] == "f7.yaml"
    spec = yaml.safe_load(found.spec)
    assert change.items() <= spec.items()
    parse_spec(spec)


def test_a_feature_that_never_fired_has_nothing_to_multiply() -> None:
    assert steering(PATH, 7, 0.0) is None


def test_names_of_models_and_saes_cannot_break_out_of_the_shell() -> None:
    nasty = "x$(touch /tmp/pwned) ; `id` '\""
    found = steering({**R1, "model": nasty, "sae": {"release": "r", "id": nasty}}, 1, 2.0)
    assert found is not None
    args = _evaluate(found.evaluate)
    assert (args["model"], args["sae_id"]) == (nasty, nasty)


def test_neuronpedia_is_found_by_release_and_by_repository() -> None:
    if importlib.util.find_spec("sae_lens") is None:
        pytest.skip("the registry comes with sae_lens, which is not installed")
    by_release = neuronpedia(R1["sae"], 12)
    assert by_release == (
        "https://www.neuronpedia.org/deepseek-r1-distill-llama-8b/19-llamascope-openr1-res-32k/12"
    )
    repo = {"repo": "fnlp/Llama-Scope-R1-Distill", "id": "800M-Slimpajama-0-OpenR1-Math-220k/L0R"}
    assert "deepseek-r1-distill-llama-8b/0-" in str(neuronpedia(repo, 3))


@pytest.mark.parametrize(
    "sae",
    [
        {"default": True},
        {"path": "runs/x"},
        {"release": "llama_scope_r1_distill", "id": "no such"},
        {"repo": "nobody/nothing", "id": "x"},
    ],
)
def test_other_saes_have_no_page_on_neuronpedia(sae: dict[str, Any]) -> None:
    assert neuronpedia(sae, 1) is None


def test_without_the_registry_it_is_said_why_there_are_no_links(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sae_lens" else find(name)
    )
    registry._registry.cache_clear()
    try:
        assert neuronpedia(R1["sae"], 1) is None
        why = unknown_to_neuronpedia(R1["sae"])
        assert why is not None
        assert "sae_lens is not installed" in why
        assert "\n" not in why
        # These could not be there in any case.
        assert unknown_to_neuronpedia({"default": True}) is None
        assert unknown_to_neuronpedia({"path": "runs/x"}) is None
    finally:
        registry._registry.cache_clear()
