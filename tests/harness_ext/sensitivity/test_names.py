"""Published names of SAEs, and where they lead."""

import itertools

import pytest

from harness_ext.errors import SensitivityError
from harness_ext.sensitivity.names import resolve


def test_names_of_the_published_scheme_lead_to_the_published_files():
    named = resolve("py_4k_btopk_s0")
    assert named.model == "EleutherAI/pythia-160m-deduped"
    assert named.ref.repo == "adamkarvonen/saebench_pythia-160m-deduped_width-2pow12_date-0108"
    assert named.ref.id == "BatchTopK_pythia-160m-deduped__0108/resid_post_layer_8/trainer_0"
    named = resolve("gem_16k_jumprelu_s1")
    assert named.ref.repo == "canrager/saebench_gemma-2-2b_width-2pow14_date-0107"
    assert named.ref.id == (
        "gemma-2-2b_jump_relu_width-2pow14_date-0107/resid_post_layer_12/trainer_1"
    )
    assert named.ref.hook_point == "blocks.12.hook_resid_post"
    scope = resolve("gscope_16k_l0_82").ref
    assert (scope.release, scope.id) == (
        "gemma-scope-2b-pt-res",
        "layer_12/width_16k/average_l0_82",
    )
    assert resolve("gscope_layer20_65k_l0_61").ref.id == "layer_20/width_65k/average_l0_61"
    for name in ("py_4k_btopk_s9", "py_4k_nope_s0", "gscope_16k", "llama_4k_btopk_s0"):
        with pytest.raises(SensitivityError, match=f"unknown SAE name '{name}'"):
            resolve(name)


def test_registry_names_exist_in_sae_lens():
    pytest.importorskip("sae_lens")
    from interventions.sae.registry import find_release

    ref = resolve("gscope_16k_l0_82").ref
    assert find_release(str(ref.release), str(ref.id)).repo == "google/gemma-scope-2b-pt-res"
    ours = resolve("gem_16k_matbtopk_s2").ref
    theirs = find_release("saebench_gemma-2-2b_width-2pow14_date-0107", _id_of(ours.id))
    assert (theirs.repo, theirs.path) == (ours.repo, ours.id)


def _id_of(path):
    from interventions.sae.registry import _registry

    saes = _registry()["saebench_gemma-2-2b_width-2pow14_date-0107"]["saes"]
    return next(str(sae["id"]) for sae in saes if str(sae["path"]) == path)


def test_every_published_name_has_a_place_and_sae_lens_lists_the_matryoshka_ones_for_gemma():
    pytest.importorskip("sae_lens")
    from interventions.sae.registry import _registry

    listed = {
        (str(release["repo_id"]), str(sae["path"]))
        for release in _registry().values()
        for sae in release["saes"]
    }
    kinds = ("btopk", "matbtopk", "gated", "jumprelu", "topk", "relu", "pan")
    names = [
        f"{model}_{width}_{kind}_s{number}"
        for model, width, kind, number in itertools.product(
            ("py", "gem"), ("4k", "16k", "65k"), kinds, range(6)
        )
    ]
    places = {name: (resolve(name).ref.repo, resolve(name).ref.id) for name in names}
    assert len(set(places.values())) == len(names) == 252
    assert {name for name, place in places.items() if place in listed} == {
        f"gem_{width}_matbtopk_s{number}" for width in ("4k", "16k", "65k") for number in range(6)
    }


@pytest.mark.parametrize("name", ["16k_l0_22", "16k_l0_445", "65k_l0_72", "1m_l0_107"])
def test_gemma_scope_names_are_of_a_release_of_sae_lens(name):
    pytest.importorskip("sae_lens")
    from interventions.sae.registry import find_release

    named = resolve(f"gscope_{name}")
    entry = find_release(str(named.ref.release), str(named.ref.id))
    assert entry.repo == "google/gemma-scope-2b-pt-res"
    assert "gemma-2-2b" in named.model
    assert "gemma-2-2b" in entry.model


def test_a_gemma_scope_sae_that_is_not_there_is_named_with_those_that_are():
    pytest.importorskip("sae_lens")
    from interventions.errors import SAENotFoundError
    from interventions.sae.io import load_sae

    with pytest.raises(SAENotFoundError, match=r"average_l0_83'.*average_l0_82"):
        load_sae(resolve("gscope_16k_l0_83").ref)
