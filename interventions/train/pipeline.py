"""The steps of a training run, in order; each is skipped when its files are there."""

import hashlib
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interventions.train import card, evaluate, export, lens, lens_export, stats
from interventions.train.config import TrainConfig, fingerprint
from interventions.train.docs_text import write_docs
from interventions.train.files import StepFolder, sha256, write_tensors
from interventions.train.generated_text import write_generated
from interventions.train.harvest import (
    corpus_files,
    harvest,
    read_activations,
    read_rows,
    split_rows,
)
from interventions.train.progress import Progress
from interventions.train.run import Run, load_trained
from interventions.train.tracker import tracked
from interventions.train.trainer import read_dictionary, train
from interventions.train.world import ALONE, World

if TYPE_CHECKING:
    from interventions.sae.core import SAE

_SHARED = ("harvest", "train")
"""Steps that several processes do together; the first one does the others."""

STEPS = ("generate", "docs", "harvest", "train", "calibrate", "stats", "evaluate", "save")
"""Names of the steps, in the order in which they run."""


def run(
    config: TrainConfig, out: Path, until: str | None = None, world: World = ALONE
) -> dict[str, Any]:
    """Return the reports of all steps after running those that are not done.

    Args:
        config: the settings.
        out: folder of the run.
        until: the last step to run; None for all.
        world: this process; with several, `harvest` and `train` are shared and the first process
            does the rest.

    Raises:
        SteeringError: the model, a package or the text is missing, or `out` holds another run.
    """
    torch.set_num_threads(config.threads)
    this = Run(config, out, world)
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
    this.world.barrier()  # nobody finishes a step before all have looked whether it is done
    if done is not None and (name != "generate" or done["asked"] == this.config.generate.tokens):
        return done
    if not this.world.first:
        if name in _SHARED:
            action(this, folder, reports)
        this.world.barrier()
        return this.report(name)
    resumed = len(list(folder.path.iterdir())) > 1
    start = time.monotonic()
    spent = folder.spent
    try:
        report = action(this, folder, reports)
    finally:
        folder.spend(spent + time.monotonic() - start)
    report = folder.finish(report | {"wall_s": round(folder.spent, 1), "resumed": resumed})
    this.world.barrier()
    return report


def _generate(this: Run, folder: StepFolder, _: dict[str, Any]) -> dict[str, Any]:
    c = this.config
    if not c.generate.tokens:
        return {"tokens": 0, "answer_tokens": 0, "documents": 0, "files": 0, "asked": 0}
    report = write_generated(folder, c.generate, c.seed, this.model(), this.tokenizer())
    return report | {"asked": c.generate.tokens}


def _docs(this: Run, folder: StepFolder, _: dict[str, Any]) -> dict[str, Any]:
    if not this.config.docs.tokens:
        return {"tokens": 0, "sources": []}
    return write_docs(folder, this.config.docs, this.tokenizer())


def _harvest(this: Run, folder: StepFolder, reports: dict[str, Any]) -> dict[str, Any]:
    c = this.config
    files = corpus_files([this.out / "generate"])[: reports["generate"]["files"]]
    files += corpus_files([this.out / "docs"])
    parts = split_rows(files, c.harvest)
    report: dict[str, Any] = {}
    if c.text is not None:
        held, rest = this.split_text()
        if c.harvest.store:
            parts["train"] += list(rest)
        else:
            del parts["train"]
            report["streamed"] = True
        for part, rows in held.items():
            parts[part] += rows
        digest = hashlib.sha256()
        for rows in parts.values():
            for row in rows:
                digest.update(row.numpy().tobytes())
        report["tokens_sha256"] = digest.hexdigest()
    found = harvest(folder, c.harvest, c.hook, parts, this.model(), this.world)
    corpus = {str(path.relative_to(this.out)): sha256(path) for path in files}
    return found | report | {"corpus_sha256": corpus}


def _train(this: Run, folder: StepFolder, _: dict[str, Any]) -> dict[str, Any]:
    c = this.config
    trainer = this.trainer()
    with tracked(
        c.log if this.world.first else None, c.name, folder.key, c.model_dump(mode="json")
    ) as tracker:
        if trainer.uses_own:
            return train(
                folder,
                this.source(trainer),
                trainer,
                c.seed,
                device=this.device,
                world=this.world,
                tracker=tracker,
            )
        lens.check_alone(this.world)
        return lens.train(
            folder, this.source(trainer), trainer, c.seed, device=str(this.device), tracker=tracker
        )


def _calibrate(this: Run, folder: StepFolder, reports: dict[str, Any]) -> dict[str, Any]:
    """Write the SAE as it is shipped, and in fp32 to compare with."""
    c = this.config
    trainer = this.trainer()
    resid = read_activations(this.out / "harvest", "calibrate", this.limit, this.without)
    metadata = {
        "model_name": _public_name(this),
        "model_weights": this.resolved.label,
        "median_norm": reports["harvest"]["median_norm"],
        "norm_guard": reports["harvest"]["guard"],
        "context_size": c.context,
        "trained_with": "sae-steered train",
        "config_fingerprint": fingerprint(c),
        "seed": c.seed,
    }
    if not trainer.uses_own:
        metadata["trained_as"] = trainer.architecture
        return lens_export.calibrate_saved(
            this.out / "train" / lens.FOLDER,
            folder.path / "shipped",
            trainer,
            resid,
            c.hook,
            metadata,
            this.device,
        )
    assert trainer.k is not None  # the settings of batchtopk have one
    weights = read_dictionary(this.out / "train" / "dictionary.safetensors").to(this.device)
    shipped = export.calibrated(export.fold(weights, torch.bfloat16), resid, trainer.k)
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
    sae = load_trained(this.out / "calibrate" / "shipped").to(this.device)
    if this.config.harvest.store:
        acts = read_activations(this.out / "harvest", "train", this.limit, this.without)
    else:
        acts = this.streamed(this.trainer()).first(this.config.evaluate.stats_tokens)
    with Progress("stats", len(acts), "tok") as bar:
        found = stats.feature_stats(
            stats.firing(lambda x: sae.encode(x.to(this.device)), acts, bar.to)
        )
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
    exact = this.out / "calibrate" / "fp32"
    return measure(this, this.out / "calibrate" / "shipped", exact if exact.is_dir() else None)


def measure(this: Run, sae_folder: Path, exact_folder: Path | None = None) -> dict[str, Any]:
    """Return the figures of the SAE in `sae_folder` on the held-out text of a run.

    Args:
        this: a run whose harvest is finished.
        sae_folder: SAELens layout.
        exact_folder: the same SAE in fp32, to measure what storing bf16 costs.
    """
    c = this.config
    sae = load_trained(sae_folder).to(this.device)
    limit = this.limit
    folder = this.out / "harvest"
    raw = read_activations(folder, "held", None)
    resid = read_activations(folder, "held", limit, this.without)[: c.evaluate.tokens]
    norms = raw.float().norm(dim=-1)
    sinks = raw[norms > limit].float()[:200] if limit is not None else raw[:0].float()
    raw = raw[: c.evaluate.tokens]
    rows, count = [], 0
    for row in read_rows(this.out / "harvest", "held"):
        if count >= c.evaluate.loss_tokens:
            break
        rows.append(row)
        count += len(row)
    at_sink = (
        float((sae.encode(sinks.to(this.device)) > 0).sum(-1).float().mean())
        if len(sinks)
        else None
    )
    report: dict[str, Any] = {
        "guarded": reconstruction_and_loss(this, sae, resid, rows, limit),
        "unguarded": reconstruction_and_loss(this, sae, raw, rows, None),
        "features_at_a_sink": at_sink,
        "loss_tokens": count,
        "file_bytes": (sae_folder / "sae_weights.safetensors").stat().st_size,
    }
    if exact_folder is not None:
        report["bf16"] = evaluate.stored_precision(
            sae, load_trained(exact_folder).to(this.device), resid
        )
    return report


def reconstruction_and_loss(
    this: Run, sae: "SAE", resid: torch.Tensor, rows: list[torch.Tensor], limit: float | None
) -> dict[str, float]:
    """Return `evaluate.reconstruction` and `evaluate.loss_recovered` in one dictionary."""
    found = evaluate.reconstruction(sae, resid)
    return found | evaluate.loss_recovered(this.model(), this.config.hook, sae, rows, limit)


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
        "config": this.config.model_dump(mode="json")
        | {"trainer": this.trainer().model_dump(mode="json")},
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
