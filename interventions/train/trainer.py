"""A BatchTopK sparse autoencoder with hand-written gradients, for two CPU cores.

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
from interventions.train.progress import Progress


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

    def pre(self, x: Tensor) -> Tensor:
        """Return pre-activations `(rows, d_sae)` of scaled rows, fp32."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc


def initial_dictionary(acts: Tensor, config: TrainerConfig, seed: int) -> Dictionary:
    """Return the starting point: bias at the mean, random unit rows, a tied small encoder.

    Args:
        acts: `(tokens, d_model)` residuals without sinks.
        config: widths.
        seed: of the random rows.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = acts[torch.randperm(len(acts), generator=generator)[:50_000]].float()
    d_model = acts.shape[1]
    scale = d_model**0.5 / float(sample.norm(dim=-1).mean())
    w_dec = torch.randn(config.d_sae, d_model, generator=generator)
    w_dec /= w_dec.norm(dim=-1, keepdim=True)
    return Dictionary(
        W_enc=(0.3 * w_dec.T).contiguous(),
        b_enc=torch.zeros(config.d_sae),
        W_dec=w_dec,
        b_dec=sample.mean(0) * scale,
        scale=scale,
    )


class Trainer:
    """The state of one run: weights, Adam moments, dead counters, where in the data it is."""

    def __init__(self, acts: Tensor, config: TrainerConfig, seed: int) -> None:
        """Start a run.

        Args:
            acts: `(tokens, d_model)` bf16 residuals without sinks.
            config: sizes and optimiser.
            seed: of the initial weights and the order of the data.

        Raises:
            TrainingError: fewer rows than one batch.
        """
        if len(acts) < config.batch_size:
            raise TrainingError(
                f"{len(acts)} activations are fewer than one batch of {config.batch_size}; lower"
                f" trainer.batch_size or harvest more text"
            )
        self.acts, self.config, self.seed = acts, config, seed
        self.steps = max(1, config.tokens_seen // config.batch_size)
        self.step = 0
        self.weights = initial_dictionary(acts, config, seed)
        self.moments = [
            (torch.zeros_like(p), torch.zeros_like(p)) for p in self.weights.parameters()
        ]
        self.silent = torch.zeros(config.d_sae, dtype=torch.int32)
        self.figures: dict[str, float] = {}

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        state = {"silent": self.silent, "step": torch.tensor(self.step)}
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

    def batches(self) -> Iterator[Tensor]:
        """Yield scaled batches from the current step on, fp32; each epoch its own order."""
        size = self.config.batch_size
        per_epoch = len(self.acts) // size
        while self.step < self.steps:
            epoch, first = divmod(self.step, per_epoch)
            generator = torch.Generator().manual_seed(self.seed * 7919 + epoch + 1)
            order = torch.randperm(len(self.acts), generator=generator)
            for i in range(first, per_epoch):
                if self.step >= self.steps:
                    return
                yield self.acts[order[i * size : (i + 1) * size]].float() * self.weights.scale

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
        if not all(map(math.isfinite, self.figures.values())):
            raise TrainingError(f"step {self.step}: the loss is not finite; lower trainer.lr")

    def gradients(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gradient of the loss for each weight; counts silent features, sets figures.

        The loss is the squared error of a row, averaged over the batch, plus the auxiliary one.
        """
        config, w = self.config, self.weights
        gemm = torch.bfloat16 if config.gemm == "bfloat16" else torch.float32
        rows = len(x)
        centred = (x - w.b_dec).to(gemm)
        w_enc, w_dec = w.W_enc.to(gemm), w.W_dec.to(gemm)
        pre = (centred @ w_enc).float() + w.b_enc
        acts = pre * (pre > _batch_threshold(pre, config)).float()
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
        if dead.any():
            self._add_auxiliary(grads, centred, pre, error, dead)
        self.silent = torch.where((acts > 0).any(0), 0, self.silent + 1).int()
        self.figures = {
            "fvu": float(error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()),
            "l0": float((acts > 0).sum() / rows),
            "dead": float(dead.float().mean()),
        }
        return grads

    def _add_auxiliary(
        self,
        grads: dict[str, Tensor],
        centred: Tensor,
        pre: Tensor,
        error: Tensor,
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
        size = config.aux_coefficient * float(error.pow(2).sum() / len(error) / total)
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
    return some.topk(rows * config.k + 1, sorted=True).values[-1].clamp(min=0.0)


def train(folder: StepFolder, acts: Tensor, config: TrainerConfig, seed: int) -> dict[str, Any]:
    """Return the last figures after training; weights lie in `dictionary.safetensors`.

    A killed run goes on from its last checkpoint and ends with the same file.
    """
    trainer = Trainer(acts, config, seed)
    checkpoint = folder.path / "checkpoint.safetensors"
    if checkpoint.is_file():
        trainer.load_state(read_tensors(checkpoint))
    curve = []
    with Progress("train", trainer.steps * config.batch_size, "tok") as bar:
        for batch in trainer.batches():
            trainer.train_step(batch)
            bar.to(trainer.step * config.batch_size, **_short(trainer.figures))
            if trainer.step % config.checkpoint_steps == 0:
                write_tensors(checkpoint, trainer.state())
                curve.append({"step": trainer.step, **trainer.figures})
    write_dictionary(folder.path / "dictionary.safetensors", trainer.weights)
    return {"steps": trainer.steps, **trainer.figures, "curve": curve}


def _short(figures: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.3g}" for name, value in figures.items()}


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
