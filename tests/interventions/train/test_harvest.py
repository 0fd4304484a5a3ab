import pytest
import torch

from interventions.errors import FeatureError, HookPointError, TrainingError
from interventions.hook_points import HookPoint
from interventions.train import harvest as harvest_module
from interventions.train.config import HarvestConfig
from interventions.train.files import StepFolder
from interventions.train.generated_text import write_documents
from interventions.train.harvest import (
    harvest,
    read_activations,
    read_rows,
    residuals,
    split_rows,
)


@pytest.fixture
def corpus(tmp_path):
    generator = torch.Generator().manual_seed(0)
    lengths = [int(n) for n in torch.randint(5, 90, (64,), generator=generator)]
    rows = [torch.randint(3, 250, (n,), generator=generator).tolist() for n in lengths]
    path = tmp_path / "text.safetensors"
    write_documents(path, rows)
    return path


@pytest.mark.parametrize("hook", [HookPoint(1), HookPoint(3), HookPoint(2, "resid_pre")])
def test_residuals_equal_hidden_states_of_each_row_alone(tiny_model, hook):
    rows = [torch.randint(3, 250, (n,)) for n in (30, 9, 17, 9)]
    found = residuals(tiny_model, hook, rows, batch_tokens=64).split([len(r) for r in rows])
    seen: list[torch.Tensor] = []

    def keep(module, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    layer = hook.layer if hook.site == "resid_post" else hook.layer - 1
    handle = tiny_model.model.layers[layer].register_forward_hook(keep)
    for row, got in zip(rows, found, strict=True):
        tiny_model(row[None])
        torch.testing.assert_close(got, seen[-1][0], atol=1e-4, rtol=1e-4)
    handle.remove()


def test_the_layers_above_never_run(tiny_model):
    ran = []
    tiny_model.model.layers[2].register_forward_hook(lambda *_: ran.append(1))
    residuals(tiny_model, HookPoint(1), [torch.arange(3, 20)], 64)
    assert ran == []
    with pytest.raises(HookPointError, match=r"layer 9 is outside 0\.\.3"):
        residuals(tiny_model, HookPoint(9), [torch.arange(3, 20)], 64)


def test_documents_are_held_out_whole(corpus):
    config = HarvestConfig(context=16, holdout_every=4)
    parts = split_rows([corpus], config)
    sets = {part: {tuple(row.tolist()) for row in rows} for part, rows in parts.items()}
    assert all(len(row) <= 16 for rows in parts.values() for row in rows)
    assert not sets["train"] & sets["held"]
    assert not sets["calibrate"] & sets["held"]
    assert sum(map(len, parts["train"])) > sum(map(len, parts["held"])) > 0


def test_killed_harvest_ends_with_the_same_files(tiny_model, corpus, tmp_path, monkeypatch):
    config = HarvestConfig(context=32, chunk_rows=20, batch_tokens=128, holdout_every=4)
    whole = StepFolder(tmp_path / "whole", "k")
    report = harvest(whole, config, HookPoint(2), split_rows([corpus], config), tiny_model)
    broken = StepFolder(tmp_path / "broken", "k")
    calls = []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return residuals(*arguments)

    monkeypatch.setattr(harvest_module, "residuals", killed)
    with pytest.raises(KeyboardInterrupt):
        harvest(broken, config, HookPoint(2), split_rows([corpus], config), tiny_model)
    assert harvest(broken, config, HookPoint(2), split_rows([corpus], config), tiny_model) == report
    files = sorted(whole.path.glob("*.safetensors"))
    assert len(files) >= 4
    for path in files:
        assert path.read_bytes() == (broken.path / path.name).read_bytes()


def test_sinks_are_counted_and_left_out(tiny_model, corpus, tmp_path):
    # One token id gets an embedding a thousand times the others: a sink at every layer.
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight[77] *= 1000
    config = HarvestConfig(context=32, holdout_every=4)
    folder = StepFolder(tmp_path / "h", "k")
    report = harvest(folder, config, HookPoint(2), split_rows([corpus], config), tiny_model)
    rows = read_rows(folder.path, "train")
    sinks = sum(int((row == 77).sum()) for row in rows)
    assert report["train_sinks"] == sinks > 0
    everything = read_activations(folder.path, "train", None)
    kept = read_activations(folder.path, "train", 10 * report["median_norm"])
    assert len(everything) == report["train_tokens"] == sum(map(len, rows))
    assert len(kept) == len(everything) - sinks
    assert kept.float().norm(dim=-1).max() <= 10 * report["median_norm"] * 1.01


def test_too_little_text_and_activations_that_are_not_finite(tiny_model, corpus, tmp_path):
    short = tmp_path / "short.safetensors"
    write_documents(short, [[5] * 20])
    config = HarvestConfig(context=32, holdout_every=4)
    parts = split_rows([short], config)
    with pytest.raises(TrainingError, match="too little text"):
        harvest(StepFolder(tmp_path / "a", "k"), config, HookPoint(2), parts, tiny_model)
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight[:] = float("nan")
    parts = split_rows([corpus], config)
    with pytest.raises(FeatureError, match="not finite"):
        harvest(StepFolder(tmp_path / "b", "k"), config, HookPoint(2), parts, tiny_model)
