"""Files of a run: equal content, equal bytes; whole or not at all."""

import torch
from safetensors import safe_open

from interventions.train.files import read_tensors, write_tensors


def test_equal_tensors_and_metadata_are_equal_bytes(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4, dtype=torch.bfloat16)}
    about = {name: f'value of {name}, ⟨ü⟩ "quoted"' for name in "hgfedcba"}
    files = []
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        write_tensors(path, tensors, about)
        files.append(path.read_bytes())
    assert len(set(files)) == 1
    found = read_tensors(tmp_path / "0.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "0.safetensors", "pt") as opened:
        assert opened.metadata() == about
