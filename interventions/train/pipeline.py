"""The steps of a training run, in order; each is skipped when its files are there."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interventions.default_model import ResolvedModel, resolve_pretrained
from interventions.errors import ModelNotFoundError
from interventions.train import card, evaluate, export, stats
from interventions.train.config import TrainConfig, fingerprint
from interventions.train.docs_text import write_docs
from interventions.train.files import StepFolder, sha256, write_tensors
from interventions.train.generated_text import write_generated
from interventions.train.harvest import corpus_files, harvest, read_activations, read_rows
from interventions.train.progress import Progress
from interventions.train.trainer import read_dictionary, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interventions.sae.core import SAE

STEPS = ("generate", "docs", "harvest", "train", "calibrate", "stats", "evaluate", "save")
"""Names of the steps, in the order in which they run."""


class Run:
    """One training run in one folder: its settings, its model (loaded when needed), its steps."""

    def __init__(self, config: TrainConfig, out: Path) -> None:
        """Open or begin a run.

        Args:
            config: the settings.
            out: folder of the run; a run of the same settings there is continued.
        """
        self.config, self.out = config, out
        self.resolved: ResolvedModel = resolve_pretrained(config.model)
        self._model: PreTrainedModel | None = None

    def folder(self, step: str) -> StepFolder:
        """Return the folder of `step`; its key covers everything that the step depends on."""
        c, label = self.config, self.resolved.label
        # How much text is asked for is no part of the key: more text continues the files there.
        text = c.generate.model_dump(mode="json", exclude={"tokens"})
        parts: dict[str, list[Any]] = {"generate": [label, c.seed, text], "docs": [label, c.docs]}
        everything = [label, c.seed, c.generate, c.docs, c.hook_point, c.harvest]
        parts["harvest"] = everything
        parts["train"] = parts["calibrate"] = parts["stats"] = [*everything, c.trainer]
        parts["evaluate"] = parts["save"] = [*everything, c.trainer, c.evaluate, c.name]
        return StepFolder(self.out / step, fingerprint(*parts[step]))

    def model(self) -> "PreTrainedModel":
        """Return the model, in the dtype that it is stored in."""
        model = self._model
        if model is None:
            from transformers import AutoModelForCausalLM

            model = _loaded(AutoModelForCausalLM, self.resolved.path, dtype="auto").eval()
            self._model = model
        return model

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return the model's tokenizer."""
        from transformers import AutoTokenizer

        return _loaded(AutoTokenizer, self.resolved.path)

    def report(self, step: str) -> dict[str, Any]:
        """Return what a finished step reported."""
        report = self.folder(step).done
        return report if report is not None else {}

    @property
    def limit(self) -> float:
        """The residual norm above which a token is a sink."""
        found = self.report("harvest")
        return found["guard"] * found["median_norm"]

    @property
    def result(self) -> Path:
        """The folder of the finished SAE."""
        return self.out / "save" / self.config.name / str(self.config.hook)


def run(config: TrainConfig, out: Path, until: str | None = None) -> dict[str, Any]:
    """Return the reports of all steps after running those that are not done.

    Args:
        config: the settings.
        out: folder of the run.
        until: the last step to run; None for all.

    Raises:
        SteeringError: the model, a package or the text is missing, or `out` holds another run.
    """
    torch.set_num_threads(config.threads)
    this = Run(config, out)
    reports: dict[str, Any] = {}
    for step in STEPS:
        reports[step] = _step(this, step, _ACTIONS[step], reports)
        if step == until:
            break
    return reports


def _step(
    this: Run, name: str, action: Callable[..., dict[str, Any]], reports: dict[str, Any]
) -> dict[str, Any]:
    folder = this.folder(name)
    done = folder.done
    if done is not None and (name != "generate" or done["asked"] == this.config.generate.tokens):
        return done
    resumed = len(list(folder.path.iterdir())) > 1
    start = time.monotonic()
    spent = folder.spent
    try:
        report = action(this, folder, reports)
    finally:
        folder.spend(spent + time.monotonic() - start)
    return folder.finish(report | {"wall_s": round(folder.spent, 1), "resumed": resumed})


def _generate(this: Run, folder: StepFolder, _: dict[str, Any]) -> dict[str, Any]:
    c = this.config
    report = write_generated(folder, c.generate, c.seed, this.model(), this.tokenizer())
    return report | {"asked": c.generate.tokens}


def _docs(this: Run, folder: StepFolder, _: dict[str, Any]) -> dict[str, Any]:
    return write_docs(folder, this.config.docs, this.tokenizer())


def _harvest(this: Run, folder: StepFolder, reports: dict[str, Any]) -> dict[str, Any]:
    c = this.config
    files = corpus_files([this.out / "generate"])[: reports["generate"]["files"]]
    files += corpus_files([this.out / "docs"])
    report = harvest(folder, c.harvest, c.hook, files, this.model())
    corpus = {str(path.relative_to(this.out)): sha256(path) for path in files}
    return report | {"corpus_sha256": corpus}


def _train(this: Run, folder: StepFolder, _: dict[str, Any]) -> dict[str, Any]:
    acts = read_activations(this.out / "harvest", "train", this.limit)
    return train(folder, acts, this.config.trainer, this.config.seed)


def _calibrate(this: Run, folder: StepFolder, reports: dict[str, Any]) -> dict[str, Any]:
    """Write the SAE as it is shipped, and in fp32 to compare with."""
    c = this.config
    weights = read_dictionary(this.out / "train" / "dictionary.safetensors")
    resid = read_activations(this.out / "harvest", "calibrate", this.limit)
    metadata = {
        "model_name": _public_name(this),
        "model_weights": this.resolved.label,
        "median_norm": reports["harvest"]["median_norm"],
        "norm_guard": reports["harvest"]["guard"],
        "context_size": c.harvest.context,
        "trained_with": "sae-steered train",
        "config_fingerprint": fingerprint(c),
        "seed": c.seed,
    }
    shipped = export.calibrated(export.fold(weights, torch.bfloat16), resid, c.trainer.k)
    exact = export.fold(weights, torch.float32)
    exact = export.Folded(exact.W_enc, exact.b_enc, exact.W_dec, exact.b_dec, shipped.threshold)
    path = export.save_saelens(folder.path / "shipped", shipped, c.hook, metadata)
    export.save_saelens(folder.path / "fp32", exact, c.hook, metadata)
    return {
        "threshold": float(shipped.threshold[0]),
        "calibration_tokens": len(resid),
        "bytes": path.stat().st_size,
    }


def _public_name(this: Run) -> str:
    from interventions.default_model import DEFAULT_NAME, HUB_ID

    return HUB_ID if this.config.model == DEFAULT_NAME else this.config.model


def _stats(this: Run, folder: StepFolder, reports: dict[str, Any]) -> dict[str, Any]:
    sae = load_trained(this.out / "calibrate" / "shipped")
    acts = read_activations(this.out / "harvest", "train", this.limit)
    with Progress("stats", len(acts), "tok") as bar:
        found = stats.feature_stats(stats.firing(sae.encode, acts, bar.to))
    tensors = found | {"median_norm": torch.tensor([reports["harvest"]["median_norm"]])}
    write_tensors(folder.path / "stats.safetensors", tensors)
    density = found["density"]
    return {
        "tokens": len(acts),
        "never_fired": int((found["count"] == 0).sum()),
        "density_above_0.1": int((density > 0.1).sum()),
        "density_median": float(density.median()),
        "max_act_median": float(found["max_act"].median()),
    }


def _evaluate(this: Run, folder: StepFolder, reports: dict[str, Any]) -> dict[str, Any]:
    return measure(this, this.out / "calibrate" / "shipped", this.out / "calibrate" / "fp32")


def measure(this: Run, sae_folder: Path, exact_folder: Path | None = None) -> dict[str, Any]:
    """Return the figures of the SAE in `sae_folder` on the held-out text of a run.

    Args:
        this: a run whose harvest is finished.
        sae_folder: SAELens layout.
        exact_folder: the same SAE in fp32, to measure what storing bf16 costs.
    """
    c = this.config
    sae = load_trained(sae_folder)
    limit = this.limit
    held = read_activations(this.out / "harvest", "held", None)
    norms = held.float().norm(dim=-1)
    resid = held[norms <= limit][: c.evaluate.tokens]
    raw = held[: c.evaluate.tokens]
    rows, count = [], 0
    for row in read_rows(this.out / "harvest", "held"):
        if count >= c.evaluate.loss_tokens:
            break
        rows.append(row)
        count += len(row)
    sinks = held[norms > limit].float()[:200]
    at_sink = float((sae.encode(sinks) > 0).sum(-1).float().mean()) if len(sinks) else None
    report: dict[str, Any] = {
        "guarded": reconstruction_and_loss(this, sae, resid, rows, limit),
        "unguarded": reconstruction_and_loss(this, sae, raw, rows, None),
        "features_at_a_sink": at_sink,
        "loss_tokens": count,
        "file_bytes": (sae_folder / "sae_weights.safetensors").stat().st_size,
    }
    if exact_folder is not None:
        report["bf16"] = evaluate.stored_precision(sae, load_trained(exact_folder), resid)
    return report


def reconstruction_and_loss(
    this: Run, sae: "SAE", resid: torch.Tensor, rows: list[torch.Tensor], limit: float | None
) -> dict[str, float]:
    """Return `evaluate.reconstruction` and `evaluate.loss_recovered` in one dictionary."""
    found = evaluate.reconstruction(sae, resid)
    return found | evaluate.loss_recovered(this.model(), this.config.hook, sae, rows, limit)


def load_trained(folder: Path) -> "SAE":
    """Return an SAE of this project's own layout, read by the loader that steering uses."""
    from interventions.sae.io import load_sae
    from interventions.spec import SAERef

    return load_sae(SAERef(path=str(folder)))


def _save(this: Run, folder: StepFolder, reports: dict[str, Any]) -> dict[str, Any]:
    target = this.result
    target.mkdir(parents=True, exist_ok=True)
    copies = {
        "cfg.json": this.out / "calibrate" / "shipped" / "cfg.json",
        "sae_weights.safetensors": this.out / "calibrate" / "shipped" / "sae_weights.safetensors",
        "stats.safetensors": this.out / "stats" / "stats.safetensors",
    }
    for name, source in copies.items():
        (target / name).write_bytes(source.read_bytes())
    log = {
        "config": this.config.model_dump(mode="json"),
        "model_weights": this.resolved.label,
        "versions": _versions(),
        "steps": {name: report for name, report in reports.items() if name != "save"},
        "sha256": {name: sha256(target / name) for name in sorted(copies)},
    }
    card.write(target, log)
    return {"folder": str(target.relative_to(this.out))}


def _versions() -> dict[str, str]:
    import safetensors
    import transformers

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
    }


def _loaded(kind: Any, path: str, **arguments: Any) -> Any:
    try:
        return kind.from_pretrained(path, **arguments)
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise ModelNotFoundError(
            f"cannot load the model '{path}': {first}; name a folder, a hub repository or 'default'"
        ) from error


_ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "generate": _generate,
    "docs": _docs,
    "harvest": _harvest,
    "train": _train,
    "calibrate": _calibrate,
    "stats": _stats,
    "evaluate": _evaluate,
    "save": _save,
}
