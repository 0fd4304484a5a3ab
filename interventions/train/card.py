"""The model card and the log that lie beside a finished SAE."""

import json
from pathlib import Path
from typing import Any

from interventions.train.files import write_text


def write(folder: Path, log: dict[str, Any]) -> None:
    """Write `training_log.json` and `README.md` into `folder`."""
    write_text(folder / "training_log.json", json.dumps(log, indent=2) + "\n")
    write_text(folder / "README.md", text(log))


def text(log: dict[str, Any]) -> str:
    """Return the model card, every figure of it from `log`."""
    config, steps = log["config"], log["steps"]
    harvest, trained, found = steps["harvest"], steps["train"], steps["evaluate"]
    guarded, bare = found["guarded"], found["unguarded"]
    trainer = config["trainer"]
    at_sink = found["features_at_a_sink"]
    stored = (
        f"Stored in bf16 instead of fp32:\nFVU {found['bf16']['fvu_difference']:+.5f},"
        f" {found['bf16']['flips']:.3%} of activations flip."
        if "bf16" in found
        else "Stored in fp32."
    )
    sinks = (
        "No sink was held out"
        if at_sink is None
        else f"At a sink {at_sink:.0f} features are active"
    )
    times = "\n".join(
        f"| {name} | {report['wall_s']:.0f} | {'yes' if report['resumed'] else 'no'} |"
        for name, report in steps.items()
    )
    return f"""# SAE of {config["name"]} at {config["hook_point"]}

{_kind(trainer)} of the residual stream,
{trainer["d_sae"]} features, made by `sae-steered train`. `sae_lens` loads this folder with
`SAE.load_from_disk`. {_units(trainer)}

- Model: {log["model_weights"]}
- Median residual norm {harvest["median_norm"]:.2f}; {_guarded(harvest)}.
- Licence: that of this project. No text is contained in the file.

## Measured on held-out documents ({guarded["tokens"]} tokens; loss on {found["loss_tokens"]})

| | with norm guard | without |
| --- | --- | --- |
| fraction of variance unexplained | {guarded["fvu"]:.4f} | {bare["fvu"]:.4f} |
| active features a token (L0) | {guarded["l0"]:.2f} | {bare["l0"]:.2f} |
| features silent on these tokens | {guarded["dead"]:.2%} | {bare["dead"]:.2%} |
| features active on over 10 % of tokens | {guarded["dense_features"]} | {bare["dense_features"]} |
| loss of the model, nats | {guarded["loss_base"]:.4f} | {bare["loss_base"]:.4f} |
| loss with the reconstruction | {guarded["loss_reconstructed"]:.4f} \
| {bare["loss_reconstructed"]:.4f} |
| loss recovered, against zero | {guarded["recovered_zero"]:.4f} | {bare["recovered_zero"]:.4f} |
| loss recovered, against the mean | {guarded["recovered_mean"]:.4f} \
| {bare["recovered_mean"]:.4f} |

{sinks}. {stored}
The weights file has {found["file_bytes"]} bytes. On the training text
{steps["stats"]["never_fired"]} features never fired.

## Text

{_text(config, steps)}
Trained on {_trained_on(harvest)}, {trained["steps"] * trainer["batch_size"]} seen.

## Time

Seconds on {config["threads"]} threads; a resumed step counts its earlier
attempts only where they ended by themselves.

| step | seconds | resumed |
| --- | --- | --- |
{times}

`stats.safetensors`: per feature `max_act`, `mean_act` (over the tokens where it fires), `p999`,
`density`, `count`, sinks left out. `training_log.json`: settings, seeds, versions, hashes.
"""


def _kind(trainer: dict[str, Any]) -> str:
    architecture = trainer.get("architecture", "batchtopk")
    if "batchtopk" in architecture or "matryoshka" in architecture:
        name = {"batchtopk": "BatchTopK"}.get(architecture, "Matryoshka BatchTopK")
        return f"A JumpReLU sparse autoencoder (trained as {name}, k = {trainer['k']})"
    k = f", k = {trainer['k']}" if trainer["k"] else ""
    return f"A sparse autoencoder (architecture {architecture}{k})"


def _units(trainer: dict[str, Any]) -> str:
    if trainer.get("options"):
        return f"Options of SAELens: {trainer['options']}."
    return (
        "Activations are in residual units: feature f at activation a writes a vector\n"
        "of length a. `W_enc` and `W_dec` are computed in fp32."
    )


def _guarded(harvest: dict[str, Any]) -> str:
    if harvest["guard"] is None:
        return "no norm guard: attention sinks were trained on"
    return (
        f"tokens above {harvest['guard']:g} times it\n"
        f"  (attention sinks) were not trained on, and must not be edited"
    )


def _trained_on(harvest: dict[str, Any]) -> str:
    if harvest.get("streamed"):
        return "activations made while training ran"
    return f"{harvest['train_tokens']} tokens"


def _text(config: dict[str, Any], steps: dict[str, Any]) -> str:
    parts = []
    if config["generate"]["tokens"]:
        parts.append(
            f"{steps['generate']['tokens']} tokens of {steps['generate']['documents']} chats:"
            f" answers of the model\nitself (temperature {config['generate']['temperature']}, top"
            f" {config['generate']['top_k']}) to prompts made from templates.\n"
        )
    sources = steps["docs"].get("sources", [])
    if sources:
        rows = "\n".join(
            f"| {s['package']} {s['version']} | {s['licence']} | {s['documents']} | {s['tokens']} |"
            for s in sources
        )
        parts.append(
            "Documentation of installed packages:\n\n| source | licence | modules | tokens |\n"
            f"| --- | --- | --- | --- |\n{rows}\n"
        )
    if parts:
        parts.append(
            f"Of every {config['harvest']['holdout_every']} documents one was held out for the"
            f" table above, and\none to set the threshold.\n"
        )
    if config.get("text"):
        rows = "\n".join(f"- {_source(source)}" for source in config["text"]["sources"])
        parts.append(
            f"Sources, by weight (the text itself is not stored):\n\n{rows}\n\nThe first"
            f" {config['harvest']['holdout_tokens']} tokens were held out for the table above, as"
            f" many to set the threshold.\n"
        )
    return "\n".join(parts)


def _source(source: dict[str, Any]) -> str:
    name = source["path"] or source["dataset"] or f"docs of {', '.join(source['docs'])}"
    return f"{name} (weight {source['weight']:g})"
