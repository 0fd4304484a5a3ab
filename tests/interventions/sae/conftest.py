import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

D_MODEL, D_SAE = 16, 40


@pytest.fixture
def no_network(monkeypatch):
    """Make the hub's client behave as with HF_HUB_OFFLINE=1, whatever the environment says."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def write_sae(tmp_path):
    """Return a function that writes a SAELens folder and gives its path."""

    def write(name: str = "sae", *, cfg=None, change=None, seed: int = 0) -> Path:
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            "W_enc": torch.randn(D_MODEL, D_SAE, generator=generator),
            "W_dec": torch.randn(D_SAE, D_MODEL, generator=generator),
            "b_enc": torch.randn(D_SAE, generator=generator),
            "b_dec": torch.randn(D_MODEL, generator=generator),
            "threshold": torch.rand(D_SAE, generator=generator),
        }
        tensors.update(change or {})
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v for k, v in tensors.items() if v is not None}, folder / "sae_weights.safetensors"
        )
        config = {
            "architecture": "jumprelu",
            "d_in": D_MODEL,
            "d_sae": D_SAE,
            "normalize_activations": "none",
            "apply_b_dec_to_input": True,
            "metadata": {"hook_name": "blocks.3.hook_resid_post", "model_name": "tiny"},
        } | (cfg or {})
        (folder / "cfg.json").write_text(json.dumps(config))
        return folder

    return write
