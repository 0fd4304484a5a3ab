"""What changes an engine's outputs beside its weights keeps journals and caches apart."""

from types import SimpleNamespace

import pytest

from harness_ext.engine_vllm import _variant


def variant(quantization=None, cache_dtype="auto", overrides=None, lora=None):
    config = SimpleNamespace(
        model_config=SimpleNamespace(quantization=quantization, hf_overrides=overrides),
        cache_config=SimpleNamespace(cache_dtype=cache_dtype),
    )
    lora = None if lora is None else SimpleNamespace(lora_path=str(lora))
    return _variant(config, lora)


@pytest.fixture
def adapter(tmp_path):
    def make(name, weights):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(weights)
        (folder / "README.md").write_text(name)
        return folder

    return make


def test_a_plain_engine_has_none():
    assert variant() == ""


def test_each_setting_counts():
    found = {
        variant(quantization="fp8"),
        variant(cache_dtype="fp8"),
        variant(quantization="fp8", cache_dtype="fp8"),
        variant(overrides={"rope_theta": 1}),
        variant(overrides={"rope_theta": 2}),
    }
    assert len(found) == 5
    assert "" not in found


def test_an_adapter_is_named_by_its_bytes(adapter):
    one = variant(lora=adapter("one", b"weights"))
    assert one
    assert one == variant(lora=adapter("two", b"weights"))
    assert one != variant(lora=adapter("one", b"other weights"))
