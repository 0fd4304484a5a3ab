"""A server reads the SAEs that it was told to read, and no others."""

import pytest

from interventions.backends.vllm.access import check_saes
from interventions.backends.vllm.config import parse_config
from interventions.errors import SpecError
from interventions.spec import SAERef, parse_spec


def refused(sae, allowed=()):
    spec = parse_spec({"sae": sae, "edits": [{"op": "add", "value": 1.0}]})
    try:
        check_saes(spec, [SAERef.model_validate(one) for one in allowed])
    except SpecError as error:
        return str(error)
    return None


@pytest.fixture
def folder(tmp_path):
    for name in ("listed/layer_3", "listed/layer_4", "secret"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "sae.safetensors").write_bytes(b"x")
    return tmp_path


def test_the_embedded_sae_needs_no_permission():
    assert refused("default") is None


def test_a_release_of_saelens_needs_no_permission_and_a_repository_called_one_does():
    pytest.importorskip("sae_lens")
    assert refused({"release": "gemma-scope-2b-pt-res-canonical", "id": "layer_0"}) is None
    assert "does not read" in refused({"release": "somebody/repository", "id": "x"})


def test_a_path_or_repository_is_refused_unless_listed(folder):
    path = {"path": str(folder / "listed")}
    assert "does not read" in refused(path)
    assert refused(path, [path]) is None
    assert "does not read" in refused({"path": str(folder / "secret")}, [path])
    repo = {"repo": "owner/name", "id": "layer_3"}
    assert "does not read" in refused(repo)
    assert refused(repo, [repo]) is None
    assert refused(repo, [{"repo": "owner/name"}]) is None
    assert "does not read" in refused({"repo": "owner/other", "id": "layer_3"}, [repo])


def test_a_listed_folder_allows_what_lies_inside_it(folder):
    allowed = [{"path": str(folder / "listed")}]
    assert refused({"path": str(folder / "listed"), "id": "layer_3"}, allowed) is None
    assert refused({"path": str(folder / "listed/layer_3")}, allowed) is None
    assert (
        refused({"path": str(folder / "listed/layer_3/sae.safetensors"), "id": "x"}, allowed)
        is None
    )
    # The same place, written differently.
    assert refused({"path": f"{folder}/secret/../listed", "id": "layer_4"}, allowed) is None


@pytest.mark.parametrize("name", ["../secret", "layer_3/../../secret", "/etc", "link"])
def test_no_id_leads_out_of_a_listed_folder(folder, name):
    (folder / "listed" / "link").symlink_to(folder / "secret")
    allowed = [{"path": str(folder / "listed")}]
    assert "does not read" in refused({"path": str(folder / "listed"), "id": name}, allowed)
    assert "does not read" in refused(
        {"repo": "owner/name", "id": "../x"}, [{"repo": "owner/name"}]
    )


def test_an_id_that_is_listed_allows_no_other(folder):
    allowed = [{"path": str(folder / "listed"), "id": "layer_3"}]
    assert refused({"path": str(folder / "listed"), "id": "layer_3"}, allowed) is None
    assert "does not read" in refused({"path": str(folder / "listed"), "id": "layer_4"}, allowed)
    assert "does not read" in refused({"path": str(folder / "listed")}, allowed)


def test_another_revision_is_another_repository():
    allowed = [{"repo": "owner/name", "revision": "a" * 40}]
    assert refused({"repo": "owner/name", "revision": "a" * 40, "id": "x"}, allowed) is None
    assert "does not read" in refused({"repo": "owner/name", "id": "x"}, allowed)


def test_the_refusal_does_not_tell_whether_the_file_exists(folder):
    there, missing = str(folder / "secret"), str(folder / "nothing")
    assert refused({"path": there}).replace(there, "X") == refused({"path": missing}).replace(
        missing, "X"
    )


def test_an_sae_of_one_edit_is_looked_at_too(folder):
    spec = parse_spec(
        {
            "sae": "default",
            "edits": [
                {"feature": 1, "op": "ablate"},
                {"op": "add", "value": 1.0, "sae": {"path": str(folder / "secret")}},
            ],
        }
    )
    with pytest.raises(SpecError, match="edit 2"):
        check_saes(spec, [])


def test_the_config_takes_a_list_or_any_and_says_what_is_wrong():
    points = {"hook_points": "blocks.1.hook_resid_post"}
    assert parse_config(points).saes is None
    assert parse_config(points | {"saes": "any"}).saes == "any"
    (ref,) = parse_config(points | {"saes": [{"path": "/x"}]}).saes
    assert ref == SAERef(path="/x")
    with pytest.raises(SpecError, match="saes"):
        parse_config(points | {"saes": [{"folder": "/x"}]})
