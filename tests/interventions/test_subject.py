"""Loading what features are studied on: what is there, and what is refused in one line."""

from pathlib import Path

import pytest
import torch

from interventions.errors import (
    HookPointError,
    ModelMismatchError,
    ModelNotFoundError,
    SAEError,
    SAENotFoundError,
    SpecError,
)
from interventions.spec import SAERef
from interventions.subject import Subject, load_model, load_subject
from tests.tiny_models import D_SAE, make_model, save_model, save_sae


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("subject") / "tiny"))


def _sae(tmp_path: Path, **options: object) -> str:
    return str(save_sae(tmp_path, **options).path)  # type: ignore[arg-type]


def test_model_and_sae_are_loaded_and_described(model: str, tmp_path: Path) -> None:
    path = _sae(tmp_path, median_norm=7.5)
    subject = load_subject(model, path)
    assert subject.sae.d_sae == D_SAE
    assert str(subject.hook_point) == "blocks.1.hook_resid_post"
    assert subject.limit == pytest.approx(75.0)
    assert not subject.model.training
    assert subject.special_ids == (0, 1, 2)
    said = subject.describe()
    assert said == {
        "model": model,
        "sae": {"path": path},
        "sae_label": path,
        "sae_hash": subject.sae.content_hash,
        "hook_point": "blocks.1.hook_resid_post",
        "median_norm": 7.5,
        "norm_guard": 10.0,
        "dtype": "float32",
    }


def test_weights_are_those_of_the_folder(model: str, tmp_path: Path) -> None:
    subject = load_subject(model, _sae(tmp_path, median_norm=1.0))
    wanted = make_model().state_dict()
    found = subject.model.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_without_a_guard_there_is_no_limit(model: str, tmp_path: Path) -> None:
    subject = load_subject(model, _sae(tmp_path, median_norm=7.5), guard=None)
    assert subject.limit is None
    assert subject.describe()["norm_guard"] is None


def test_a_median_that_is_not_stored_is_measured_where_the_sae_reads(
    model: str, tmp_path: Path
) -> None:
    stored = load_subject(model, _sae(tmp_path / "a", median_norm=1234.0))
    elsewhere = load_subject(
        model, _sae(tmp_path / "b", median_norm=1234.0), hook_point="blocks.2.hook_resid_post"
    )
    unknown = load_subject(model, _sae(tmp_path / "c"))
    assert stored.median_norm == 1234.0
    assert 0 < unknown.median_norm < 1000
    assert 0 < elsewhere.median_norm < 1000
    assert elsewhere.median_norm != unknown.median_norm


def test_the_models_dtype_can_be_chosen_and_the_sae_stays_in_fp32(
    model: str, tmp_path: Path
) -> None:
    subject = load_subject(model, _sae(tmp_path, median_norm=1.0), dtype="bfloat16")
    assert subject.describe()["dtype"] == "bfloat16"
    assert subject.sae.W_dec.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"dtype": "float12"}, SpecError, "unknown dtype 'float12'; give auto, bfloat16"),
        ({"dtype": "Tensor"}, SpecError, "unknown dtype 'Tensor'"),
        ({"hook_point": "blocks.40.hook_resid_post"}, HookPointError, r"layer 40 .*0\.\.3"),
        ({"hook_point": "nowhere"}, HookPointError, "nowhere"),
    ],
)
def test_impossible_settings_are_refused(
    model: str, tmp_path: Path, given: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_subject(model, _sae(tmp_path, median_norm=1.0), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(model: str) -> None:
    with pytest.raises(SpecError, match="device 'cuda:1' is not there; give cpu"):
        load_model(model, device="cuda:1")


@pytest.mark.real
def test_an_sae_of_another_model_is_refused_unless_told(tmp_path: Path) -> None:
    # A hub name that the SAE names otherwise; the model comes from the wheel or the cache.
    path = _sae(tmp_path, d_model=576, model_name="google/gemma-2-2b", median_norm=1.0)
    with pytest.raises(ModelMismatchError, match="trained on 'google/gemma-2-2b', not on 'SmolLM2"):
        load_subject("default", path)
    assert load_subject("default", path, check_model=False).sae.d_sae == D_SAE


def test_an_sae_of_another_width_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelMismatchError, match="24") as caught:
        load_subject(model, _sae(tmp_path, d_model=24))
    assert "32" in str(caught.value)


def test_an_sae_at_a_layer_that_the_model_lacks_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(HookPointError, match="layer 9"):
        load_subject(model, _sae(tmp_path, layer=9))


def test_a_missing_sae_is_named(model: str) -> None:
    with pytest.raises(SAENotFoundError, match="/no/such/sae"):
        load_subject(model, SAERef(path="/no/such/sae"))


def test_directions_without_an_encoder_are_refused(model: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"v": torch.ones(32)}, tmp_path / "v.safetensors")
    ref = SAERef(path=str(tmp_path / "v.safetensors"), hook_point="blocks.1.hook_resid_post")
    with pytest.raises(SAEError, match=r"encoder|activation"):
        load_subject(model, ref)


@pytest.mark.parametrize("name", ["/no/such/model", "nobody/no-such-model"])
def test_a_missing_model_is_named_in_one_line(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"'{name}'") as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    assert "'default'" in str(caught.value)


@pytest.mark.real
def test_no_arguments_mean_the_embedded_model_and_sae() -> None:
    subject: Subject = load_subject()
    assert subject.sae_ref == SAERef(default=True)
    assert subject.label.startswith("SmolLM2-135M-Instruct")
    assert str(subject.hook_point) == "blocks.15.hook_resid_post"
    assert subject.sae.d_sae == 4608
    assert subject.limit == pytest.approx(1702.86, abs=0.1)
