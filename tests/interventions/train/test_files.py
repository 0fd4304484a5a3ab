"""Files of a run: equal content, equal bytes; whole or not at all."""

import pytest
import torch
from safetensors import safe_open

from interventions.errors import FeatureError, TrainingError
from interventions.features.checkpoint import Checkpoint
from interventions.train.files import StepFolder, read_tensors, write_tensors


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


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for kind, error in ((StepFolder, TrainingError), (Checkpoint, FeatureError)):
        with pytest.raises(error, match=r"cannot be made: .* name another --out"):
            kind(tmp_path / "file" / "step", "key")
