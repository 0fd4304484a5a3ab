"""A checkpoint's digest from its files equals the digest of the model that they load as."""

import pytest
import torch
import transformers

from interventions.backends.vllm.identity import checkpoint_digest
from interventions.default_model import resolve_pretrained
from interventions.errors import ModelMismatchError
from interventions.fingerprint import weights_digest
from tests import tiny_models


def loaded_digest(folder, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return weights_digest(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_every_family(tmp_path, family, dtype):
    folder = tiny_models.save_model(tmp_path, family)
    assert checkpoint_digest(folder, dtype) == loaded_digest(folder, dtype)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_tied_and_untied_embeddings(tmp_path, family, tied):
    folder = tiny_models.save_model(tmp_path, family, tie_word_embeddings=tied)
    assert checkpoint_digest(folder, torch.float32) == loaded_digest(folder, torch.float32)


def test_stored_in_another_dtype_than_it_runs_in(tmp_path):
    folder = tiny_models.save_model(tmp_path, dtype=torch.bfloat16)
    digests = {checkpoint_digest(folder, dtype) for dtype in (torch.float32, torch.bfloat16)}
    assert digests == {loaded_digest(folder, dtype) for dtype in (torch.float32, torch.bfloat16)}
    assert len(digests) == 2


def test_files_of_a_base_model_lack_the_prefix(tmp_path):
    tiny_models.make_model("gpt2").base_model.save_pretrained(tmp_path)
    assert checkpoint_digest(tmp_path, torch.float32) == loaded_digest(tmp_path, torch.float32)


def test_sharded_files(tmp_path):
    model = tiny_models.make_model()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    digests = {checkpoint_digest(tmp_path / name, torch.float32) for name in ("one", "many")}
    assert digests == {weights_digest(model)}


def test_files_that_no_index_names_do_not_count(tmp_path):
    tiny_models.make_model().save_pretrained(tmp_path, max_shard_size="20KB")
    before = checkpoint_digest(tmp_path, torch.float32)
    other = tiny_models.make_model(seed=1)
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "zz_backup.safetensors")
    assert checkpoint_digest(tmp_path, torch.float32) == before


def test_other_weights_are_another_model(tmp_path):
    digests = {
        checkpoint_digest(tiny_models.save_model(tmp_path / str(seed), seed=seed), torch.float32)
        for seed in range(3)
    }
    assert len(digests) == 3


def test_a_config_alone_names_no_model(tmp_path):
    """Two models in torch's own format would have one digest, and share their journals."""
    model = tiny_models.make_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelMismatchError, match=r"holds no \*\.safetensors"):
        checkpoint_digest(tmp_path, torch.float32)


@pytest.mark.real
def test_the_default_model():
    path = resolve_pretrained("default").path
    for dtype in (torch.bfloat16, torch.float32):
        assert checkpoint_digest(path, dtype) == loaded_digest(path, dtype)
