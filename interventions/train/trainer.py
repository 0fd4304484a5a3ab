"""A BatchTopK sparse autoencoder with hand-written gradients.

Source: BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) and the auxiliary loss for dead
features (Gao et al. 2024, arXiv 2406.04093, section A.2). What differs, and why: the batch
threshold comes from the first rows of the batch, because a top-k over 5 million numbers costs as
much as a matrix product; the bias starts at the data's mean, without which most features die.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.errors import TrainingError
from interventions.train.config import TrainerConfig
from interventions.train.files import StepFolder, read_tensors, write_tensors
from interventions.train.loop import drive
from interventions.train.source import START, Position, Source, Stored
from interventions.train.tracker import Tracker
from interventions.train.world import ALONE, World

_SAMPLE = 50_000  # activations that the mean and the scale are taken from


@dataclass
class Dictionary:
    """Weights in the trainer's units: `x = scale * resid`, so that `E||x|| = sqrt(d_model)`.

    Attributes:
        W_enc: `(d_model, d_sae)`; b_enc: `(d_sae,)`.
        W_dec: `(d_sae, d_model)`, unit rows; b_dec: `(d_model,)`.
        scale: from residual units to the trainer's.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    scale: float

    def parameters(self) -> list[Tensor]:
        """The trained tensors, in a fixed order."""
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]

    def to(self, device: torch.device | str) -> "Dictionary":
        """Return the weights on `device`."""
        return Dictionary(*(p.to(device) for p in self.parameters()), scale=self.scale)

    def pre(self, x: Tensor) -> Tensor:
        """Return pre-activations `(rows, d_sae)` of scaled rows, fp32."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc


def initial_dictionary(
    data: Tensor | Source, config: TrainerConfig, seed: int, device: torch.device | str = "cpu"
) -> Dictionary:
    """Return the starting point: bias at the mean, random unit rows, a tied small encoder.

    Args:
        data: `(tokens, d_model)` residuals without sinks, or where they come from.
        config: widths.
        seed: of the random rows, drawn on the CPU wherever the weights go.
        device: of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(data, Tensor):
        sample = data[torch.randperm(len(data), generator=generator)[:_SAMPLE]]
    else:
        sample = data.sample(_SAMPLE, generator)
    sample = sample.to(device).float()
    d_model = sample.shape[1]
    scale = d_model**0.5 / float(sample.norm(dim=-1).mean())
    w_dec = torch.randn(config.width, d_model, generator=generator)
    w_dec /= w_dec.norm(dim=-1, keepdim=True)
    w_dec = w_dec.to(device)
    return Dictionary(
        W_enc=(0.3 * w_dec.T).contiguous(),
        b_enc=torch.zeros(config.width, device=device),
        W_dec=w_dec,
        b_dec=sample.mean(0) * scale,
        scale=scale,
    )


class Trainer:
    """The state of one run: weights, Adam moments, dead counters, where in the data it is."""

    def __init__(
        self,
        data: Tensor | Source,
        config: TrainerConfig,
        seed: int,
        device: torch.device | str = "cpu",
        world: World = ALONE,
    ) -> None:
        """Start a run.

        Args:
            data: `(tokens, d_model)` bf16 residuals without sinks, or where batches come from.
            config: sizes and optimiser.
            seed: of the initial weights and the order of the data.
            device: of the weights.
            world: this process; gradients are those of the joined batch.

        Raises:
            TrainingError: fewer rows than one batch, or a batch that the processes cannot share.
        """
        if isinstance(data, Tensor):
            data = Stored(data, config.batch_size, seed, world)
        share = world.share(config.batch_size)
        for name in ("threshold_rows", "aux_rows"):
            if world.size > 1 and getattr(config, name) > share:
                raise TrainingError(
                    f"trainer.{name}={getattr(config, name)} is more than the {share} rows that"
                    f" each of {world.size} processes has of a batch; lower it or raise"
                    f" trainer.batch_size"
                )
        self.source, self.config, self.seed, self.world = data, config, seed, world
        self.batch_size = config.batch_size
        self.steps = max(1, config.tokens_seen // config.batch_size)
        self.step = 0
        self.position: Position = START
        self._after: Position = START
        self.weights = initial_dictionary(data, config, seed, device)
        scale = torch.tensor(self.weights.scale, dtype=torch.float64, device=device)
        for tensor in [*self.weights.parameters(), scale]:
            world.from_first(tensor)
        self.weights.scale = float(scale)
        self.moments = [
            (torch.zeros_like(p), torch.zeros_like(p)) for p in self.weights.parameters()
        ]
        self.silent = torch.zeros(config.width, dtype=torch.int32, device=device)
        self.figures: dict[str, float] = {}

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        state = {
            "silent": self.silent,
            "step": torch.tensor(self.step),
            "position": torch.tensor(self.position),
            "scale": torch.tensor(self.weights.scale, dtype=torch.float64),
        }
        triples = zip(names, self.weights.parameters(), self.moments, strict=True)
        for name, weight, (first, second) in triples:
            state |= {name: weight, f"{name}.m": first, f"{name}.v": second}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`, as if there had been no break."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        for name, weight, (first, second) in zip(
            names, self.weights.parameters(), self.moments, strict=True
        ):
            weight.copy_(state[name])
            first.copy_(state[f"{name}.m"])
            second.copy_(state[f"{name}.v"])
        self.silent.copy_(state["silent"])
        self.step = int(state["step"])
        first, second = state["position"].tolist()
        self.position = self._after = (first, second)
        self.weights.scale = float(state["scale"])

    def batches(self) -> Iterator[Tensor]:
        """Yield scaled batches from the current position on, fp32, on the weights' device."""
        device = self.weights.b_dec.device
        batches = self.source.batches(self.position)
        # No batch is asked for that is not trained on: it may cost a buffer of forward passes.
        while self.step < self.steps:
            batch, self._after = next(batches)
            yield batch.to(device).float() * self.weights.scale

    def learning_rate(self) -> float:
        """Return the rate of the current step: warm-up, flat, linear decay."""
        config = self.config
        warm = min(1.0, (self.step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        decay = config.decay_share * self.steps
        left = (self.steps - self.step) / decay if decay else 1.0
        return config.lr * min(warm, left, 1.0)

    def train_step(self, x: Tensor) -> None:
        """Change the weights by one step on a scaled batch `(batch, d_model)`.

        Raises:
            TrainingError: the loss is not finite.
        """
        self._update(self.gradients(x))
        self.step += 1
        self.position = self._after
        if not all(map(math.isfinite, self.figures.values())):
            raise TrainingError(f"step {self.step}: the loss is not finite; lower trainer.lr")

    def gradients(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gradient of the loss for each weight; counts silent features, sets figures.

        The loss is the squared error of a row, averaged over the batch, plus the auxiliary one.
        """
        config, w = self.config, self.weights
        gemm = torch.bfloat16 if config.gemm == "bfloat16" else torch.float32
        rows = len(x) * self.world.size
        centred = (x - w.b_dec).to(gemm)
        w_enc, w_dec = w.W_enc.to(gemm), w.W_dec.to(gemm)
        pre = (centred @ w_enc).float() + w.b_enc
        threshold = self.world.from_first(_batch_threshold(pre, config))
        acts = pre * (pre > threshold).float()
        acts_low = acts.to(gemm)
        error = (acts_low @ w_dec).float() + w.b_dec - x
        grad_out = error * (2.0 / rows)
        low = grad_out.to(gemm)
        grad_pre = (low @ w_dec.T) * (acts > 0)
        grads = {
            "W_enc": (centred.T @ grad_pre).float(),
            "b_enc": grad_pre.float().sum(0),
            "W_dec": (acts_low.T @ low).float(),
        }
        grads["b_dec"] = grad_out.sum(0) - w.W_enc @ grads["b_enc"]
        dead = self.silent >= config.dead_after_steps
        missed = self.world.total(error.pow(2).sum())
        if self.world.first and dead.any():
            self._add_auxiliary(grads, centred, pre, error, missed / rows, dead)
        for grad in grads.values():
            self.world.total(grad)
        self.silent = torch.where(self.world.any((acts > 0).any(0)), 0, self.silent + 1).int()
        self.figures = {
            "fvu": float(missed / self.world.total((x - x.mean(0)).pow(2).sum())),
            "l0": float(self.world.total((acts > 0).sum()) / rows),
            "dead": float(dead.float().mean()),
        }
        return grads

    def _add_auxiliary(
        self,
        grads: dict[str, Tensor],
        centred: Tensor,
        pre: Tensor,
        error: Tensor,
        per_row: Tensor,
        dead: Tensor,
    ) -> None:
        """Let dead features explain what the live ones left over, on a few rows."""
        config, w = self.config, self.weights
        index = dead.nonzero()[:, 0]
        take = slice(0, config.aux_rows)
        some, left = pre[take][:, index], -error[take]
        rows = len(some)
        k = min(len(index), w.W_dec.shape[1] // 2)
        top, where = some.topk(k, dim=-1)
        acts = torch.zeros_like(some).scatter_(1, where, top.relu())
        w_dec = w.W_dec[index]
        miss = acts @ w_dec - left
        # Relative to what is left over, so that its weight stays the same while the error falls.
        total = left.pow(2).sum() / rows
        size = config.aux_coefficient * float(per_row / total)
        grad_out = miss * (2.0 * size / rows)
        grad_pre = (grad_out @ w_dec.T) * (acts > 0)
        grads["W_enc"][:, index] += centred[take].float().T @ grad_pre
        grads["b_enc"][index] += grad_pre.sum(0)
        grads["W_dec"][index] += acts.T @ grad_out

    def _update(self, grads: dict[str, Tensor]) -> None:
        w = self.weights
        # Along its own row a decoder gradient only changes the length, which is put back anyway.
        along = (grads["W_dec"] * w.W_dec).sum(-1, keepdim=True)
        grads["W_dec"] -= along * w.W_dec
        ordered = [grads[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")]
        norm = float(torch.stack([g.norm() for g in ordered]).norm())
        factor = min(1.0, self.config.clip / (norm + 1e-12))
        rate, t = self.learning_rate(), self.step + 1
        for weight, grad, (first, second) in zip(
            w.parameters(), ordered, self.moments, strict=True
        ):
            grad *= factor
            first.lerp_(grad, 0.1)
            second.mul_(0.999).addcmul_(grad, grad, value=0.001)
            scale = (second / (1 - 0.999**t)).sqrt_().add_(1e-8)
            weight.addcdiv_(first, scale, value=-rate / (1 - 0.9**t))
        w.W_dec /= w.W_dec.norm(dim=-1, keepdim=True)


def _batch_threshold(pre: Tensor, config: TrainerConfig) -> Tensor:
    """Return what an activation must exceed so that `k` a row are left, on average."""
    some = pre[: config.threshold_rows].reshape(-1)
    # Never below 0: a negative pre-activation is no activation.
    rows = min(len(pre), config.threshold_rows)
    assert config.k is not None  # the settings of batchtopk have one
    return some.topk(rows * config.k + 1, sorted=True).values[-1].clamp(min=0.0)


def train(
    folder: StepFolder,
    data: Tensor | Source,
    config: TrainerConfig,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    world: World = ALONE,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """Return the last figures after training; weights lie in `dictionary.safetensors`.

    A killed run goes on from its last checkpoint and ends with the same file.
    """
    trainer = Trainer(data, config, seed, device, world)
    curve = drive(trainer, folder, config.checkpoint_steps, world, tracker)
    if world.first:
        write_dictionary(folder.path / "dictionary.safetensors", trainer.weights)
    return {"steps": trainer.steps, **trainer.figures, "curve": curve}


def write_dictionary(path: Path, weights: Dictionary) -> None:
    """Write the weights in the trainer's units."""
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    tensors = dict(zip(names, weights.parameters(), strict=True))
    write_tensors(path, tensors | {"scale": torch.tensor(weights.scale, dtype=torch.float64)})


def read_dictionary(path: Path) -> Dictionary:
    """Return the weights that `write_dictionary` wrote."""
    stored = read_tensors(path)
    scale = float(stored.pop("scale"))
    return Dictionary(**stored, scale=scale)
