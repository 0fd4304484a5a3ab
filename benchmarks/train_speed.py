"""Training tokens a second, and what the SAE is worth, against SAELens at equal tokens.

    python benchmarks/train_speed.py --json > benchmarks/results/train_speed-DATE.json

Four ways to train a BatchTopK SAE of the default model, on the same rows of text (documentation of
Python's library), with the same width, k, rate, batch and number of tokens, autocast to bf16:

- own: this project's trainer, on stored activations without sinks
- saelens with additions: SAELens's trainer on the same activations; bias at the data's mean, scale
  measured, threshold calibrated on held-out text
- saelens trainer: SAELens's trainer on all stored activations, as it comes
- saelens runner: LanguageModelSAETrainingRunner, which runs the model itself

Each is measured as it was saved, on held-out tokens without sinks. The runner's time contains the
model's forward passes; for the others that time is given beside the time of the training steps.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.hook_points import HookPoint
from interventions.subject import load_model
from interventions.text.config import parse_text
from interventions.text.rows import rows
from interventions.train import export, lens
from interventions.train.config import TrainerConfig
from interventions.train.evaluate import reconstruction
from interventions.train.files import StepFolder
from interventions.train.harvest import residuals
from interventions.train.lens_export import calibrate_saved
from interventions.train.run import load_trained
from interventions.train.trainer import read_dictionary, train

HOOK = HookPoint(15)
CONTEXT, GUARD, HELD = 256, 10.0, 32


def _settings(arguments: argparse.Namespace, **changes: Any) -> TrainerConfig:
    values = {
        "d_sae": arguments.d_sae,
        "k": arguments.k,
        "tokens_seen": arguments.tokens,
        "batch_size": arguments.batch,
        "checkpoint_steps": 10**9,
    }
    return TrainerConfig.model_validate(values | changes)


def _runner(arguments: argparse.Namespace, token_rows: list[Tensor], path: str, out: Path) -> float:
    """Return the seconds that SAELens's own runner takes."""
    import datasets
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
    from sae_lens.config import LoggingConfig

    config = _settings(arguments, backend="saelens")
    steps = config.tokens_seen // config.batch_size
    options: dict[str, Any] = {
        "sae": lens.sae_config(
            config.model_copy(update={"normalize_activations": "none"}), arguments.d_model
        ),
        "model_name": path,
        "model_class_name": "AutoModelForCausalLM",
        "model_from_pretrained_kwargs": {"dtype": "bfloat16"},
        "hook_name": f"model.layers.{HOOK.layer}",
        "context_size": CONTEXT,
        "prepend_bos": False,
        "training_tokens": steps * config.batch_size,
        "train_batch_size_tokens": config.batch_size,
        "store_batch_size_prompts": 16,
        "lr": config.lr,
        "lr_warm_up_steps": config.warmup_steps,
        "lr_decay_steps": int(config.decay_share * steps),
        "autocast": True,
        "device": "cpu",
        "seed": 0,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": None,
        "output_path": str(out),
        "verbose": False,
    }
    data = datasets.Dataset.from_dict({"input_ids": [row.tolist() for row in token_rows]})
    runner = LanguageModelSAETrainingRunner(
        LanguageModelSAERunnerConfig(**options), override_dataset=data
    )
    start = time.monotonic()
    runner.run()
    return time.monotonic() - start


def _lens(
    data: Tensor, arguments: argparse.Namespace, out: Path, calibrate: Tensor | None
) -> float:
    """Return the seconds of SAELens's trainer, with the additions where there is held-out text."""
    changes = {} if calibrate is not None else {"b_dec": "zeros", "normalize_activations": "none"}
    # As it comes, SAELens counts a feature as dead after 1000 steps.
    dead = 30 if calibrate is not None else 1000
    config = _settings(arguments, backend="saelens", dead_after_steps=dead, **changes)
    start = time.monotonic()
    lens.train(StepFolder(out / "train", "k"), data, config, 0)
    seconds = time.monotonic() - start
    source = out / "train" / lens.FOLDER
    if calibrate is None:
        source.rename(out / "sae")
    else:
        calibrate_saved(source, out / "sae", config, calibrate, HOOK, {})
    return seconds


def _own(data: Tensor, arguments: argparse.Namespace, out: Path, calibrate: Tensor) -> float:
    config = _settings(arguments)
    start = time.monotonic()
    train(StepFolder(out / "train", "k"), data, config, 0)
    seconds = time.monotonic() - start
    weights = read_dictionary(out / "train" / "dictionary.safetensors")
    folded = export.calibrated(export.fold(weights, torch.float32), calibrate, arguments.k)
    export.save_saelens(out / "sae", folded, HOOK, {})
    return seconds


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all arms."""
    lens.require()  # imported before any clock runs
    import sae_lens
    import transformers

    model, tokenizer, label = load_model("default", device="cpu")
    arguments.d_model = model.config.hidden_size
    text = {"sources": [{"docs": ["stdlib"]}], "context": CONTEXT, "pack": "concat"}
    wanted = 2 * HELD + 1 + -(-arguments.tokens // CONTEXT) + 80  # the runner fills its buffer
    some = [r.ids for r in itertools.islice(rows(parse_text(text), tokenizer), wanted)]
    held, calibrate, token_rows = some[:HELD], some[HELD : 2 * HELD], some[2 * HELD + 1 :]

    def read(part: list[Tensor]) -> tuple[Tensor, float]:
        start = time.monotonic()
        return residuals(model, HOOK, part, 4096).bfloat16(), time.monotonic() - start

    raw, harvest_s = read(token_rows)
    limit = GUARD * float(raw.float().norm(dim=-1).median())
    clean = [x[x.float().norm(dim=-1) <= limit] for x in (raw, read(held)[0], read(calibrate)[0])]
    model_path = str(model.config.name_or_path)
    forward = harvest_s * arguments.tokens / len(raw)
    arms: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        timed = {
            "own": lambda o: _own(clean[0], arguments, o, clean[2]),
            "saelens with additions": lambda o: _lens(clean[0], arguments, o, clean[2]),
            "saelens trainer": lambda o: _lens(raw, arguments, o, None),
            "saelens runner": lambda o: _runner(arguments, token_rows, model_path, o / "sae"),
        }
        for name, arm in timed.items():
            place = out / name.replace(" ", "_")
            place.mkdir()
            seconds, load = arm(place), os.getloadavg()[0]
            whole = seconds if name == "saelens runner" else seconds + forward
            found = reconstruction(load_trained(place / "sae"), clean[1])
            arms[name] = {
                "train_s": None if name == "saelens runner" else seconds,
                "with_forward_s": whole,
                "train_tokens_per_s": arguments.tokens / seconds,
                "tokens_per_s_with_forward": arguments.tokens / whole,
                **{key: found[key] for key in ("fvu", "l0", "dead")},
                "load_average": load,
            }
            print(f"{name}: {json.dumps(arms[name])}", file=sys.stderr)
    own, runner = arms["own"], arms["saelens runner"]
    arms["saelens runner"]["train_tokens_per_s"] = None
    return {
        "arms": arms,
        "own_over_runner": own["tokens_per_s_with_forward"] / runner["tokens_per_s_with_forward"],
        "own_over_saelens_trainer": own["train_tokens_per_s"]
        / arms["saelens trainer"]["train_tokens_per_s"],
        "model": label,
        "d_sae": arguments.d_sae,
        "k": arguments.k,
        "tokens": arguments.tokens,
        "batch": arguments.batch,
        "unique_tokens": len(raw),
        "held_out_tokens": len(clean[1]),
        "forward_tokens_per_s": len(raw) / harvest_s,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "sae_lens": sae_lens.__version__,
        },
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=98_304, help="seen by each arm")
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = measure(arguments)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'arm':<24} {'tok/s':>8} {'with forward':>13} {'FVU':>7} {'L0':>8} {'dead':>7}")
    for name, arm in found["arms"].items():
        alone = arm["train_tokens_per_s"]
        print(
            f"{name:<24} {'-' if alone is None else f'{alone:.0f}':>8}"
            f" {arm['tokens_per_s_with_forward']:>13.0f} {arm['fvu']:>7.3f} {arm['l0']:>8.1f}"
            f" {arm['dead']:>7.1%}"
        )


if __name__ == "__main__":
    main()
