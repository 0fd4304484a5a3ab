"""Running sums on disk: whole or not there, of one pass only."""

import pytest
import torch

from interventions.errors import FeatureError
from interventions.features import checkpoint as checkpoint_module
from interventions.features.checkpoint import Checkpoint


def test_what_was_saved_is_loaded_and_cleared(tmp_path):
    folder = tmp_path / "pass"
    checkpoint = Checkpoint(folder, "abc")
    assert checkpoint.load() is None
    sums = {"sum": torch.rand(3, 5, dtype=torch.float64), "rows": torch.tensor(7)}
    assert checkpoint.save(sums, force=True)
    found = Checkpoint(folder, "abc").load()
    assert found is not None
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in sums.items()}
    (folder / ".sums.safetensors.4711").write_bytes(b"half")  # of a write that was killed
    checkpoint.clear()
    assert not folder.exists()


def test_it_writes_no_more_often_than_asked(tmp_path):
    checkpoint = Checkpoint(tmp_path, "abc", every=3600)
    assert not checkpoint.due
    assert not checkpoint.save({"sum": torch.ones(1)})
    assert checkpoint.load() is None
    assert Checkpoint(tmp_path, "abc", every=0).save({"sum": torch.ones(1)})
    assert checkpoint.load() is not None


def test_a_write_that_takes_long_is_rarer(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: clock[0])
    checkpoint = Checkpoint(tmp_path, "abc", every=60)

    def slow(path, tensors):
        clock[0] += 10

    monkeypatch.setattr(checkpoint_module, "write_tensors", slow)
    clock[0] = 60
    assert checkpoint.save({})
    for seconds, due in ((61, False), (199, False), (200, True)):
        clock[0] = 70 + seconds
        assert checkpoint.due is due


def test_sums_of_another_pass_are_refused(tmp_path):
    Checkpoint(tmp_path, "abc").save({"sum": torch.ones(1)}, force=True)
    with pytest.raises(FeatureError, match=r"other settings \(abc, now abd\)"):
        Checkpoint(tmp_path, "abd")


def test_files_of_others_survive_clearing(tmp_path):
    checkpoint = Checkpoint(tmp_path, "abc")
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
