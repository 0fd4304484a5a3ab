"""SAELens's trainer with the additions; what it saves, in SAELens and in our loader."""

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from interventions.errors import SpecError, TrainingError
from interventions.hook_points import HookPoint
from interventions.train import lens
from interventions.train.config import TrainerConfig, load_config
from interventions.train.files import StepFolder
from interventions.train.lens_export import calibrate_saved
from interventions.train.run import load_trained
from interventions.train.source import Stored
from interventions.train.world import World

pytestmark = pytest.mark.slow
sae_lens = pytest.importorskip("sae_lens")

K = 6
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {"options": {"l1_coefficient": 0.05, "l1_warm_up_steps": 5}},
    "gated": {"options": {"l1_coefficient": 0.05}},
    "jumprelu": {"k": K, "options": {"l0_coefficient": 0.05}},
    "topk": {"k": K},
    "batchtopk": {"k": K, "backend": "saelens"},
    "matryoshka": {"k": K, "options": {"matryoshka_widths": [16, 48]}},
}


def activations(tokens: int, seed: int = 0) -> torch.Tensor:
    """Return sparse sums around a mean that is longer than they are, as residual streams have."""
    atoms = torch.randn(60, 24, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(tokens, 60, generator=generator)
    weights = weights * (torch.rand(tokens, 60, generator=generator) < 0.08)
    return (20 * weights @ atoms + 300 * atoms[0]).bfloat16()


def settings(architecture: str, **changes: Any) -> TrainerConfig:
    values = {
        "architecture": architecture,
        "d_sae": 96,
        "tokens_seen": 20_000,
        "batch_size": 256,
        "lr": 3e-3,
        "dead_after_steps": 20,
        "checkpoint_steps": 10,
        "gemm": "float32",
    }
    return TrainerConfig.model_validate(values | ARCHITECTURES[architecture] | changes)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def trained(request, tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    architecture = request.param
    root = tmp_path_factory.mktemp(architecture)
    config = settings(architecture)
    report = lens.train(StepFolder(root / "train", "k"), activations(6000), config, seed=1)
    torch.set_num_threads(before)
    set_ = calibrate_saved(
        root / "train" / lens.FOLDER,
        root / "shipped",
        config,
        activations(3000, seed=2),
        HookPoint(3),
        {"model_name": "m", "median_norm": 12.5},
    )
    return architecture, root, report, set_


def test_both_loaders_give_the_same_activations_and_reconstruction(trained):
    architecture, root, _, _ = trained
    theirs = sae_lens.SAE.load_from_disk(str(root / "shipped"), device="cpu")
    ours = load_trained(root / "shipped")
    resid = activations(800, seed=3).float()
    with torch.no_grad():
        acts = theirs.encode(resid)
        assert (acts > 0).any()
        torch.testing.assert_close(ours.encode(resid), acts, rtol=1e-4, atol=2e-2)
        torch.testing.assert_close(
            ours.decode(acts, resid), theirs.decode(acts), rtol=1e-5, atol=1e-3
        )
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert theirs.cfg.normalize_activations == "none"
    assert (ours.median_norm, ours.model_name) == (12.5, "m")
    expected = {"topk": "topk", "standard": "standard", "gated": "gated"}
    assert ours.architecture == expected.get(architecture, "jumprelu")
    # Decoder rows of unit length: an activation is the length that it writes.
    torch.testing.assert_close(ours.W_dec.norm(dim=-1), torch.ones(96), atol=1e-4, rtol=0)


def test_it_reconstructs_and_the_threshold_gives_k(trained):
    architecture, root, report, set_ = trained
    ours = load_trained(root / "shipped")
    resid = activations(3000, seed=4).float()
    acts = ours.encode(resid)
    error = (ours.decode(acts, resid) - resid).pow(2).sum()
    assert error / (resid - resid.mean(0)).pow(2).sum() < 0.7
    assert report["steps"] == 78
    assert [point["step"] for point in report["curve"]] == list(range(10, 80, 10))
    if architecture in ("topk", "batchtopk", "matryoshka", "jumprelu"):
        assert (acts > 0).sum(-1).float().mean().item() == pytest.approx(K, rel=0.1)
    metadata = json.loads((root / "shipped" / "cfg.json").read_text())["metadata"]
    if architecture == "topk":
        assert metadata["calibrated_threshold"] == set_["threshold_instead"] > 0


def test_the_bias_starts_at_the_mean_and_the_scale_is_measured():
    data = activations(4000)
    start = lens.LensTrainer(data, settings("batchtopk"), seed=1)
    scale = start.trainer.activation_scaler.scaling_factor
    assert (data.float() * scale).norm(dim=-1).mean().item() == pytest.approx(24**0.5, rel=1e-4)
    torch.testing.assert_close(
        start.sae.b_dec.data, data.float().mean(0) * scale, rtol=1e-3, atol=1e-3
    )
    plain = settings("batchtopk", b_dec="zeros", normalize_activations="none")
    bare = lens.LensTrainer(data, plain, seed=1)
    assert not bare.sae.b_dec.any()
    assert bare.trainer.activation_scaler.scaling_factor is None


def test_with_the_additions_more_is_explained_than_without():
    data, held = activations(6000), activations(2000, seed=5).float()
    errors = []
    for changes in ({}, {"b_dec": "zeros", "normalize_activations": "none"}):
        run = lens.LensTrainer(data, settings("batchtopk", **changes), seed=1)
        for batch in run.batches():
            run.train_step(batch)
        x = held * (run.trainer.activation_scaler.scaling_factor or 1.0)
        with torch.no_grad():
            error = (run.sae(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        errors.append(float(error))
    assert errors[0] < errors[1]


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_run_ends_with_the_same_bytes(trained, tmp_path, monkeypatch):
    architecture, root, report, _ = trained
    step = lens.LensTrainer.train_step

    def killed(self: lens.LensTrainer, x: torch.Tensor) -> None:
        if self.step == 43:
            raise KeyboardInterrupt
        step(self, x)

    folder = StepFolder(tmp_path, "k")
    monkeypatch.setattr(lens.LensTrainer, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        lens.train(folder, activations(6000), settings(architecture), seed=1)
    monkeypatch.setattr(lens.LensTrainer, "train_step", step)
    assert lens.train(folder, activations(6000), settings(architecture), seed=1) == report
    name = f"{lens.FOLDER}/sae_weights.safetensors"
    assert (tmp_path / name).read_bytes() == (root / "train" / name).read_bytes()


def test_options_that_the_architecture_lacks_are_one_line():
    with pytest.raises(SpecError, match=r"l2_coefficient is no option of standard; it has") as got:
        lens.sae_config(settings("standard", options={"l2_coefficient": 1}), 24)
    assert "\n" not in str(got.value)
    assert "l1_coefficient" in str(got.value)
    with pytest.raises(SpecError, match="d_sae is no option"):
        lens.sae_config(settings("topk", options={"d_sae": 3}), 24)


def test_the_widths_of_matryoshka_end_with_the_whole():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lens.sae_config(settings("matryoshka"), 24).matryoshka_widths == [16, 48, 96]
        lens.LensTrainer(activations(600), settings("matryoshka"), seed=0)
        own = lens.sae_config(settings("matryoshka", options={}), 24)
    assert own.matryoshka_widths == [12, 48, 96]


def test_several_processes_are_refused():
    with pytest.raises(TrainingError, match="runs in one process, not in 2"):
        lens.check_alone(World(0, 2))


def test_the_papers_config_gives_the_fields_of_the_published_one():
    """Published: AIRI-Institute/SAE-Reasoning, training/configs/r1-distill-llama-8b.yaml."""
    root = Path(__file__).parents[3]
    config = load_config(root / "examples" / "train" / "r1_distill_llama_8b.yaml")
    assert config.model == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert str(config.hook) == "blocks.19.hook_resid_post"
    assert config.seed == 42
    assert config.text is not None
    assert (config.text.context, config.text.bos, config.text.pack) == (1024, False, "concat")
    names = [source.dataset for source in config.text.sources]
    assert names == ["lmsys/lmsys-chat-1m", "open-thoughts/OpenThoughts-114k"]
    assert config.harvest.exclude == (128000, 128001)
    assert (config.harvest.guard, config.harvest.store) == (None, False)
    assert config.harvest.buffer_tokens == 32 * 8 * 1024
    sae = lens.sae_config(config.trainer, 4096)
    assert isinstance(sae, sae_lens.StandardTrainingSAEConfig)
    wanted = {
        "d_in": 4096,
        "d_sae": 16 * 4096,
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "expected_average_only_in",
        "l1_coefficient": 5,
        "lp_norm": 1.0,
        "l1_warm_up_steps": 10_000,
        "decoder_init_norm": 0.1,
    }
    assert {name: getattr(sae, name) for name in wanted} == wanted
    trainer = lens.trainer_config(config.trainer)
    wanted = {
        "total_training_samples": 819_200_000,
        "total_training_steps": 200_000,
        "train_batch_size_samples": 4096,
        "lr": 5e-5,
        "lr_scheduler_name": "constant",
        "lr_warm_up_steps": 0,
        "lr_decay_steps": 40_000,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "autocast": False,
        "dead_feature_window": 1000,
        "feature_sampling_window": 1000,
    }
    assert {name: getattr(trainer, name) for name in wanted} == wanted


def test_no_batch_is_asked_for_after_the_last_step():
    class Ending(Stored):
        def batches(self, position):
            yield from itertools.islice(super().batches(position), 3)
            raise TrainingError("the text ended")

    config = settings("topk", tokens_seen=3 * 256)
    trainer = lens.LensTrainer(Ending(activations(1000), 256, 0), config, seed=0)
    for batch in trainer.batches():
        trainer.train_step(batch)
    assert trainer.step == 3
