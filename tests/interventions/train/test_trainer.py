import pytest
import torch
from torch import Tensor

from interventions.errors import TrainingError
from interventions.train import trainer as trainer_module
from interventions.train.config import TrainerConfig
from interventions.train.export import calibrated, fold
from interventions.train.files import StepFolder
from interventions.train.trainer import Trainer, initial_dictionary, read_dictionary, train


def planted(samples: int, d_model: int, atoms: int, active: int) -> tuple[Tensor, Tensor]:
    """Return `(samples, d_model)` sparse sums of unit atoms, and the atoms."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(atoms, d_model, generator=generator)
    directions /= directions.norm(dim=-1, keepdim=True)
    chosen = torch.rand(samples, atoms, generator=generator).topk(active, dim=-1).indices
    sizes = torch.rand(samples, active, generator=generator) + 0.5
    weights = torch.zeros(samples, atoms).scatter_(1, chosen, sizes)
    return weights @ directions, directions


def small_config(**changes: object) -> TrainerConfig:
    values: dict[str, object] = {
        "d_sae": 48,
        "k": 4,
        "tokens_seen": 4096,
        "batch_size": 128,
        "lr": 3e-3,
        "dead_after_steps": 3,
        "checkpoint_steps": 5,
        "gemm": "float32",
    }
    return TrainerConfig.model_validate(values | changes)


@pytest.mark.usefixtures("one_thread")
def test_planted_dictionary_is_recovered_and_the_saved_threshold_gives_k():
    data, atoms = planted(200_000, 64, 256, 5)
    config = TrainerConfig(
        d_sae=512, k=5, tokens_seen=800_000, batch_size=1024, lr=3e-3, gemm="float32"
    )
    run = Trainer(data[:190_000].bfloat16(), config, seed=0)
    for batch in run.batches():
        run.train_step(batch)
    best = (atoms @ run.weights.W_dec.T).max(dim=1).values
    assert (best >= 0.9).float().mean() >= 0.9
    sae = calibrated(fold(run.weights, torch.float32), data[190_000:195_000], 5)
    l0 = (sae.encode(data[195_000:]) > 0).sum(-1).float().mean()
    assert 4.5 <= l0 <= 5.5


def test_gradients_equal_autograd():
    data, _ = planted(512, 16, 40, 3)
    config = small_config(aux_rows=64)
    run = Trainer(data, config, seed=1)
    run.silent[:7] = 99  # seven features count as dead
    x = data[:128] * run.weights.scale
    leaves = [p.clone().requires_grad_() for p in run.weights.parameters()]
    w_enc, b_enc, w_dec, b_dec = leaves
    pre = (x - b_dec) @ w_enc + b_enc
    threshold = pre.detach()[:128].flatten().sort(descending=True).values[128 * config.k]
    acts = pre * (pre > threshold.clamp(min=0))
    error = acts @ w_dec + b_dec - x
    loss = error.pow(2).sum() / len(x)
    # The auxiliary part sees the error and the input of the encoder as constants.
    centred = (x - b_dec).detach()[:64]
    some = centred @ w_enc[:, :7] + b_enc[:7]
    top, where = some.topk(7, dim=-1)
    aux_acts = torch.zeros_like(some).scatter(1, where, top.relu())
    left = -error.detach()[:64]
    miss = (aux_acts @ w_dec[:7] - left).pow(2).sum() / 64
    size = config.aux_coefficient * (error.pow(2).sum() / 128 / (left.pow(2).sum() / 64)).detach()
    (loss + size * miss).backward()
    found = run.gradients(x)
    for name, leaf in zip(("W_enc", "b_enc", "W_dec", "b_dec"), leaves, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(found[name], leaf.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_a_feature_that_never_fires_counts_its_silent_steps():
    data, _ = planted(512, 16, 40, 3)
    run = Trainer(data, small_config(dead_after_steps=1000), seed=1)
    run.weights.b_enc[5] = -1e6
    for batch, _ in zip(run.batches(), range(3), strict=False):
        run.train_step(batch)
    assert run.silent[5] == 3
    assert (run.silent == 0).any()


def test_the_rate_warms_up_and_decays_to_zero():
    data, _ = planted(512, 16, 40, 3)
    run = Trainer(data, small_config(tokens_seen=128 * 100, warmup_steps=10, lr=1.0), seed=1)
    rates = []
    for run.step in (0, 4, 9, 50, 70, 85, 99):
        rates.append(run.learning_rate())
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 1 / 30])


def test_starts_at_the_mean_with_unit_rows_and_the_right_scale():
    data = torch.randn(4000, 16, generator=torch.Generator().manual_seed(1)) + 3
    start = initial_dictionary(data, small_config(), seed=2)
    assert (data * start.scale).norm(dim=-1).mean().item() == pytest.approx(4.0, rel=1e-5)
    torch.testing.assert_close(start.b_dec, data.mean(0) * start.scale)
    torch.testing.assert_close(start.W_dec.norm(dim=-1), torch.ones(48))


@pytest.mark.usefixtures("one_thread")
def test_killed_run_ends_with_the_same_bytes(tmp_path, monkeypatch):
    data, _ = planted(2048, 16, 40, 3)
    config = small_config()
    whole = StepFolder(tmp_path / "whole", "k")
    train(whole, data, config, seed=3)

    step = Trainer.train_step

    def killed(self: Trainer, x: Tensor) -> None:
        if self.step == 13:
            raise KeyboardInterrupt
        step(self, x)

    broken = StepFolder(tmp_path / "broken", "k")
    monkeypatch.setattr(trainer_module.Trainer, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(broken, data, config, seed=3)
    assert (broken.path / "checkpoint.safetensors").is_file()
    monkeypatch.setattr(trainer_module.Trainer, "train_step", step)
    train(broken, data, config, seed=3)
    name = "dictionary.safetensors"
    assert (whole.path / name).read_bytes() == (broken.path / name).read_bytes()


@pytest.mark.usefixtures("one_thread")
def test_the_seed_decides(tmp_path):
    data, _ = planted(2048, 16, 40, 3)
    weights = []
    for index, seed in enumerate((3, 3, 4)):
        folder = StepFolder(tmp_path / str(index), "k")
        train(folder, data, small_config(), seed)
        weights.append(read_dictionary(folder.path / "dictionary.safetensors").W_dec)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_too_few_rows_and_a_diverging_loss_are_one_line_errors():
    data, _ = planted(512, 16, 40, 3)
    with pytest.raises(TrainingError, match="64 activations are fewer than one batch of 128"):
        Trainer(data[:64], small_config(), seed=0)
    run = Trainer(data, small_config(), seed=0)
    with pytest.raises(TrainingError, match=r"lower trainer\.lr"):
        run.train_step(torch.full((128, 16), float("inf")))
