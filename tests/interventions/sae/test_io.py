import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from interventions.errors import SAEError, SAENotFoundError
from interventions.hook_points import HookPoint
from interventions.sae import io
from interventions.sae.io import load_sae
from interventions.sae.registry import find_release, is_release
from interventions.spec import SAERef

D_MODEL, D_SAE = 16, 40


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_statistics_beside_an_sae_are_read(write_sae):
    folder = write_sae()
    save_file(
        {"max_act": torch.arange(D_SAE).float(), "median_norm": torch.tensor(169.0)},
        folder / "stats.safetensors",
    )
    sae = load_sae(SAERef(path=str(folder)))
    assert sae.max_act is not None
    assert sae.max_act[7] == 7.0
    assert sae.median_norm == 169.0


def test_median_norm_of_the_config_is_read(write_sae):
    meta = {"hook_name": "blocks.3.hook_resid_post", "median_norm": 12.5}
    sae = load_sae(SAERef(path=str(write_sae(cfg={"metadata": meta}))))
    assert sae.median_norm == 12.5


def test_an_id_is_a_folder_inside_the_path(write_sae, tmp_path):
    write_sae("many/blocks.3.hook_resid_post")
    ref = SAERef(path=str(tmp_path / "many"), id="blocks.3.hook_resid_post")
    assert load_sae(ref).hook_point == HookPoint(3)
    with pytest.raises(SAENotFoundError, match=r"set `id` to one of its folders: blocks\.3"):
        load_sae(SAERef(path=str(tmp_path / "many")))


def test_a_weights_file_is_read_with_its_configuration(write_sae):
    folder = write_sae()
    whole = load_sae(SAERef(path=str(folder)))
    by_file = load_sae(SAERef(path=str(folder / "sae_weights.safetensors")))
    assert whole.content_hash == by_file.content_hash


def test_hook_point_of_the_reference_wins(write_sae):
    assert load_sae(SAERef(path=str(write_sae()), hook_point="layers.8")).hook_point == HookPoint(8)


def test_features_are_checked_at_load(write_sae):
    with pytest.raises(SAEError, match=r"feature 40 is outside 0\.\.39"):
        load_sae(SAERef(path=str(write_sae())), features=[1, 40])


def test_a_file_with_several_directions_needs_a_name(tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({"a": torch.ones(4), "b": torch.zeros(2, 4)}, path)
    with pytest.raises(SAEError, match=r"holds 2 tensors \(a, b\); name one as `id`"):
        load_sae(SAERef(path=str(path)))
    assert load_sae(SAERef(path=str(path), id="b")).d_sae == 2
    with pytest.raises(SAEError, match="has no tensor 'c'; it has a, b"):
        load_sae(SAERef(path=str(path), id="c"))


@pytest.mark.parametrize("ref", [{"path": "/nowhere/sae"}, {"path": "/nowhere", "id": "x"}])
def test_a_missing_path_is_named(ref):
    with pytest.raises(SAENotFoundError, match=r"/nowhere.* does not exist") as caught:
        load_sae(SAERef(**ref))
    assert "`path`" in one_line(caught)


def test_a_folder_without_an_sae_lists_what_is_known(tmp_path):
    with pytest.raises(SAENotFoundError, match="holds no known SAE; known: cfg") as caught:
        load_sae(SAERef(path=str(tmp_path)))
    one_line(caught)


@pytest.mark.parametrize("name", ["x.bin", "x.txt"])
def test_unknown_kinds_of_files(name, tmp_path):
    (tmp_path / name).write_bytes(b"1")
    with pytest.raises(SAEError, match=r"is none of \.safetensors, \.npz, \.pt"):
        load_sae(SAERef(path=str(tmp_path / name)))


class Bomb:
    """Unpickling it creates the file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_are_never_run(tmp_path):
    bomb = Bomb(tmp_path / "bomb")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    torch.save({"encoder.weight": bomb}, tmp_path / "ae.pt")
    with pytest.raises(SAEError, match="holds pickled objects, which are never loaded") as caught:
        load_sae(SAERef(path=str(tmp_path)))
    one_line(caught)
    np.savez(tmp_path / "params.npz", W_enc=np.array([bomb], dtype=object))
    with pytest.raises(SAEError, match="is not an npz of plain arrays"):
        load_sae(SAERef(path=str(tmp_path / "params.npz")))
    assert not bomb.path.exists()
    pickle.loads(pickle.dumps(bomb))
    assert bomb.path.exists(), "the bomb must be a live one for this test to mean anything"


@pytest.mark.parametrize("name", ["v.safetensors", "params.npz", "x.pt"])
def test_damaged_files_are_one_line_errors(name, tmp_path):
    (tmp_path / name).write_bytes(b"not what it says" * 9)
    with pytest.raises(SAEError) as caught:
        load_sae(SAERef(path=str(tmp_path / name)))
    assert name in one_line(caught)


def test_a_damaged_config_is_named(write_sae):
    folder = write_sae()
    (folder / "cfg.json").write_text("{")
    with pytest.raises(SAEError, match=r"cfg\.json is not JSON"):
        load_sae(SAERef(path=str(folder)))


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_training_checkpoints_are_refused(kind, write_sae):
    with pytest.raises(SAEError, match=r"training checkpoint.*save_inference_model"):
        load_sae(SAERef(path=str(write_sae(cfg={"architecture": kind}))))


def test_a_finetuned_output_factor_is_folded(write_sae):
    factor = torch.full((D_SAE,), 3.0)
    cfg = {"finetuning_scaling_factor": True}
    sae = load_sae(SAERef(path=str(write_sae("a", cfg=cfg, change={"scaling_factor": factor}))))
    plain = load_sae(SAERef(path=str(write_sae("b"))))
    assert torch.allclose(sae.W_dec, 3 * plain.W_dec)
    with pytest.raises(SAEError, match="'scaling_factor' that is not 1"):
        load_sae(SAERef(path=str(write_sae("c", change={"scaling_factor": factor}))))


def test_default_is_the_sae_in_the_package(write_sae, monkeypatch, tmp_path):
    monkeypatch.setattr("interventions.default_model.default_sae_path", lambda: write_sae())
    assert load_sae(SAERef(default=True)).source == "default"
    monkeypatch.setattr("interventions.default_model.default_sae_path", lambda: tmp_path / "no")
    with pytest.raises(SAENotFoundError, match="install sae-steered again"):
        load_sae(SAERef(default=True))


# Releases and the hub.


def test_unknown_release_gives_close_matches_before_any_download(monkeypatch):
    pytest.importorskip("yaml")
    monkeypatch.setattr(io, "_read_with_saelens", lambda *_: pytest.fail("it tried to download"))
    with pytest.raises(SAENotFoundError, match="unknown SAELens release 'llama_scope_r1_distil'"):
        load_sae(SAERef(release="llama_scope_r1_distil", id="x"))
    with pytest.raises(SAENotFoundError, match=r"closest: .*llama_scope_r1_distill"):
        load_sae(SAERef(release="llama_scope_r1_distil", id="x"))
    with pytest.raises(SAENotFoundError, match=r"has no SAE 'l40r_800m_slimpajama' \(96 known\)"):
        load_sae(SAERef(release="llama_scope_r1_distill", id="l40r_800m_slimpajama"))


def test_every_release_of_the_registry_can_be_found():
    assert is_release("gemma-scope-2b-pt-res")
    entry = find_release("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
    assert (entry.repo, entry.loader) == ("google/gemma-scope-2b-pt-res", "gemma_2")


def test_without_sae_lens_a_release_names_the_extra(monkeypatch):
    from interventions.sae import registry

    registry._registry.cache_clear()
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SAENotFoundError, match=r"pip install 'sae-steered\[sae\]'"):
        load_sae(SAERef(release="gpt2-small-res-jb", id="blocks.8.hook_resid_pre"))


@pytest.mark.usefixtures("no_network")
def test_no_network_is_one_line_with_the_remedy():
    with pytest.raises(SAENotFoundError, match="'nobody/none' is not in the local cache") as caught:
        load_sae(SAERef(repo="nobody/none", id="layers.3"))
    assert "HF_HUB_OFFLINE" in one_line(caught)


@pytest.mark.parametrize("repo", ["noslash", "a/b/c"])
def test_a_repo_is_owner_and_name(repo):
    with pytest.raises(SAENotFoundError, match="write `repo` as 'owner/name'"):
        load_sae(SAERef(repo=repo))


@pytest.mark.parametrize("key", ["repo", "release"])
def test_only_one_saes_files_are_asked_of_a_repo(key, write_sae, tmp_path, monkeypatch):
    """A raw repo id is also accepted where the AIRI fork writes it, as `release`."""
    write_sae("snapshot/blocks.19.hook_resid_post")
    asked = {}

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    ref = SAERef(**{key: "andreuka18/some-saes"}, id="blocks.19.hook_resid_post", revision="abc")
    sae = load_sae(ref)
    assert sae.d_sae == D_SAE
    assert (asked["repo"], asked["revision"]) == ("andreuka18/some-saes", "abc")
    assert "blocks.19.hook_resid_post/sae_weights.safetensors" in asked["patterns"]
    assert not any("*" in pattern for pattern in asked["patterns"])
    with pytest.raises(SAENotFoundError, match=r"has no SAE at 'blocks\.20'"):
        load_sae(SAERef(**{key: "andreuka18/some-saes"}, id="blocks.20"))
