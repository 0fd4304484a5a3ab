"""SAELens's own training classes and trainer, fed with our activations, and what they lack.

`sae_lens` has every architecture. Its trainer starts the bias at 0, and knows no attention sinks;
here the bias starts at the data's mean, the scale is measured on what is trained on, and the
activations come without sinks. Source: SAELens 6.54, `sae_lens/training/sae_trainer.py`, whose
public seams (`step`, `maybe_reset_sparsity`) are called as its own `fit` does.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.errors import SpecError, TrainingError
from interventions.train.config import TrainerConfig
from interventions.train.files import StepFolder
from interventions.train.loop import drive
from interventions.train.source import START, Position, Source, Stored
from interventions.train.tracker import Tracker
from interventions.train.world import ALONE, World

_SAMPLE = 50_000  # activations that the mean and the scale are taken from
_SET_BY_US = frozenset(
    {"d_in", "d_sae", "k", "dtype", "device", "normalize_activations", "reshape_activations"}
)
FOLDER = "inference"
"""Where the trained SAE lies in the folder of the step, as SAELens saves it for inference."""


def require() -> Any:
    """Return the `sae_lens` module; importing it takes about ten seconds.

    Raises:
        TrainingError: it is not installed.
    """
    try:
        import sae_lens
    except ImportError as error:
        raise TrainingError(
            f"trainer.backend saelens needs sae-lens ({error}); pip install 'sae-steered[sae]'"
        ) from error
    return sae_lens


def sae_config(config: TrainerConfig, d_model: int, device: str = "cpu") -> Any:
    """Return SAELens's training config of the architecture.

    Args:
        config: `options` holds fields of that config; `d_sae` and `k` are the trainer's.
        d_model: width of the residual stream.
        device: of the weights.

    Raises:
        SpecError: `options` has a key that the architecture's config lacks, or a value it refuses.
        TrainingError: SAELens is not installed.
    """
    require()
    from sae_lens.registry import get_sae_training_class

    config = config.resolved(d_model)
    name = {"matryoshka": "matryoshka_batchtopk"}.get(config.architecture, config.architecture)
    kind = get_sae_training_class(name)[1]
    known = {field.name for field in dataclasses.fields(kind)} - _SET_BY_US - {"metadata"}
    unknown = sorted(set(config.options) - known)
    if unknown:
        raise SpecError(
            f"trainer.options: {', '.join(unknown)} is no option of {name}; it has"
            f" {', '.join(sorted(known))}"
        )
    options = dict(config.options)
    if config.architecture in ("topk", "batchtopk", "matryoshka", "matryoshka_batchtopk"):
        options["k"] = config.k
    if name == "matryoshka_batchtopk":
        widths = list(options.get("matryoshka_widths") or _default_widths(config.width))
        if widths[-1] < config.width:
            widths.append(config.width)
        options["matryoshka_widths"] = widths
    try:
        return kind(
            d_in=d_model,
            d_sae=config.width,
            dtype="float32",
            device=device,
            normalize_activations=config.normalize_activations,
            **options,
        )
    except (TypeError, ValueError) as error:
        raise SpecError(f"trainer.options: {error}") from error


def _default_widths(d_sae: int) -> list[int]:
    """Return an eighth, a half and the whole, as far as they differ."""
    return sorted({max(1, d_sae // 8), max(1, d_sae // 2), d_sae})


def trainer_config(config: TrainerConfig, device: str = "cpu") -> Any:
    """Return SAELens's trainer config; the numbers of steps follow from `tokens_seen`.

    Raises:
        TrainingError: SAELens is not installed.
    """
    require()
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    steps = max(1, config.tokens_seen // config.batch_size)
    return SAETrainerConfig(
        total_training_samples=steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=config.lr,
        lr_end=config.lr / 10,
        lr_warm_up_steps=min(config.warmup_steps, steps // 2),
        lr_decay_steps=int(config.decay_share * steps),
        device=device,
        autocast=config.gemm == "bfloat16",
        dead_feature_window=config.dead_after_steps,
        feature_sampling_window=1000,
        logger=LoggingConfig(log_to_wandb=False),
    )


class LensTrainer:
    """The state of one run of SAELens's trainer, with the additions."""

    def __init__(
        self, data: Tensor | Source, config: TrainerConfig, seed: int, device: str = "cpu"
    ) -> None:
        """Start a run.

        Args:
            data: `(tokens, d_model)` residuals without sinks, or where batches come from.
            config: architecture, sizes, optimiser.
            seed: of the initial weights and the order of the data.
            device: of the weights.

        Raises:
            TrainingError: fewer rows than one batch, or SAELens is not installed.
            SpecError: an option that the architecture lacks.
        """
        if isinstance(data, Tensor):
            data = Stored(data, config.batch_size, seed)
        self.source, self.config = data, config
        self.batch_size = config.batch_size
        self.steps = max(1, config.tokens_seen // config.batch_size)
        self.position: Position = START
        self._after: Position = START
        self.figures: dict[str, float] = {}
        generator = torch.Generator().manual_seed(seed)
        sample = data.sample(_SAMPLE, generator).to(device).float()
        d_model = sample.shape[1]
        cfg = sae_config(config, d_model, device)
        from sae_lens.registry import get_sae_training_class
        from sae_lens.training.sae_trainer import SAETrainer

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sae: Any = get_sae_training_class(cfg.architecture())[0](cfg)
        scaled = config.normalize_activations != "none"
        scale = d_model**0.5 / float(sample.norm(dim=-1).mean()) if scaled else 1.0
        if config.b_dec == "mean":
            self.sae.b_dec.data.copy_(sample.mean(0) * scale)
        self.trainer: Any = SAETrainer(trainer_config(config, device), self.sae, iter(()))
        # Set here, it is not estimated from the first thousand batches.
        self.trainer.activation_scaler.scaling_factor = scale if scaled else None

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.trainer.n_training_steps

    def batches(self) -> Iterator[Tensor]:
        """Yield batches from the current position on, fp32, not scaled."""
        batches = self.source.batches(self.position)
        # No batch is asked for that is not trained on: it may cost a buffer of forward passes.
        while self.step < self.steps:
            batch, self._after = next(batches)
            yield batch.to(self.sae.device).float()

    def train_step(self, x: Tensor) -> None:
        """Change the weights by one step on a batch `(batch, d_model)` of residuals.

        Raises:
            TrainingError: the loss is not finite.
        """
        self.trainer.maybe_reset_sparsity()
        output = self.trainer.step(x)
        self.trainer.n_training_steps += 1
        self.position = self._after
        with torch.no_grad():
            error = (output.sae_out.float() - output.sae_in.float()).pow(2).sum()
            variance = (output.sae_in.float() - output.sae_in.float().mean(0)).pow(2).sum()
            self.figures = {
                "fvu": float(error / variance),
                "l0": float(output.feature_acts.bool().sum() / len(x)),
                "dead": float(self.trainer.dead_neurons.float().mean()),
            }
        if not math.isfinite(float(output.loss.detach())):
            raise TrainingError(f"step {self.step}: the loss is not finite; lower trainer.lr")

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on; no pickle, unlike SAELens's own."""
        t = self.trainer
        state = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for index, moments in t.optimizer.state_dict()["state"].items():
            state |= {f"adam.{index}.{name}": value for name, value in moments.items()}
        state["act_freq_scores"] = t.act_freq_scores
        state["since_fired"] = t.n_forward_passes_since_fired
        rest = {
            "position": self.position,
            "steps": t.n_training_steps,
            "samples": t.n_training_samples,
            "window": t.n_frac_active_samples,
            "scale": t.activation_scaler.scaling_factor,
            "rate": t.lr_scheduler.state_dict(),
            "groups": t.optimizer.state_dict()["param_groups"],
            "coefficients": {n: s.state_dict() for n, s in t.coefficient_schedulers.items()},
        }
        text = json.dumps(rest)
        state["rest"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`, as if there had been no break."""
        t = self.trainer
        rest = json.loads(bytes(state["rest"].tolist()))
        self.sae.load_state_dict(
            {k.removeprefix("sae."): v for k, v in state.items() if k.startswith("sae.")}
        )
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        t.optimizer.load_state_dict({"state": moments, "param_groups": rest["groups"]})
        device = self.sae.device
        t.act_freq_scores = state["act_freq_scores"].to(device)
        t.n_forward_passes_since_fired = state["since_fired"].to(device)
        t.n_training_steps, t.n_training_samples = rest["steps"], rest["samples"]
        t.n_frac_active_samples = rest["window"]
        t.activation_scaler.scaling_factor = rest["scale"]
        t.lr_scheduler.load_state_dict(rest["rate"])
        for name, found in rest["coefficients"].items():
            t.coefficient_schedulers[name].load_state_dict(found)
        first, second = rest["position"]
        self.position = self._after = (first, second)

    def save(self, folder: Path) -> None:
        """Write the SAE for inference: scale and, where it is exact, decoder norms folded in."""
        scale = self.trainer.activation_scaler.scaling_factor
        if scale is not None:
            self.sae.fold_activation_norm_scaling_factor(scale)
        if self.config.architecture in ("standard", "gated", "jumprelu"):
            self.sae.fold_W_dec_norm()  # the others fold when they are saved
        self.sae.save_inference_model(folder)


def check_alone(world: World) -> None:
    """Return nothing if this is the only process.

    Raises:
        TrainingError: there are several, for which SAELens's trainer has no way.
    """
    if world.size > 1:
        raise TrainingError(
            f"trainer.backend saelens runs in one process, not in {world.size}; start it without"
            f" torchrun, or take backend own (batchtopk)"
        )


def train(
    folder: StepFolder,
    data: Tensor | Source,
    config: TrainerConfig,
    seed: int,
    *,
    device: str = "cpu",
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """Return the last figures after training; the SAE lies in `inference/`.

    A killed run goes on from its last checkpoint and ends with the same files.
    """
    trainer = LensTrainer(data, config, seed, device)
    curve = drive(trainer, folder, config.checkpoint_steps, ALONE, tracker)
    trainer.save(folder.path / FOLDER)
    return {"steps": trainer.steps, **trainer.figures, "curve": curve}
