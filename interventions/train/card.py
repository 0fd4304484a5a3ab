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
    sinks = (
        "No sink was held out"
        if at_sink is None
        else f"At a sink {at_sink:.0f} features are active"
    )
    sources = "\n".join(
        f"| {s['package']} {s['version']} | {s['licence']} | {s['documents']} | {s['tokens']} |"
        for s in steps["docs"].get("sources", [])
    )
    times = "\n".join(
        f"| {name} | {report['wall_s']:.0f} | {'yes' if report['resumed'] else 'no'} |"
        for name, report in steps.items()
    )
    return f"""# SAE of {config["name"]} at {config["hook_point"]}

A JumpReLU sparse autoencoder (trained as BatchTopK, k = {trainer["k"]}) of the residual stream,
{trainer["d_sae"]} features, made by `sae-steered train`. `sae_lens` loads this folder with
`SAE.load_from_disk`. Activations are in residual units: feature f at activation a writes a vector
of length a. `W_enc` and `W_dec` are stored in bf16 and computed in fp32.

- Model: {log["model_weights"]}
- Median residual norm {harvest["median_norm"]:.2f}; tokens above {harvest["guard"]:g} times it
  (attention sinks) were not trained on, and must not be edited.
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

{sinks}. Stored in bf16 instead of fp32:
FVU {found["bf16"]["fvu_difference"]:+.5f}, {found["bf16"]["flips"]:.3%} of activations flip.
The weights file has {found["file_bytes"]} bytes. On the training text
{steps["stats"]["never_fired"]} features never fired.

## Text

{steps["generate"]["tokens"]} tokens of {steps["generate"]["documents"]} chats: answers of the model
itself (temperature {config["generate"]["temperature"]}, top {config["generate"]["top_k"]}) to
prompts made from templates. And documentation of installed packages:

| source | licence | modules | tokens |
| --- | --- | --- | --- |
{sources}

Of every {config["harvest"]["holdout_every"]} documents one was held out for the table above, and
one to set the threshold. Trained on {harvest["train_tokens"]} tokens,
{trained["steps"] * trainer["batch_size"]} seen.

## Time

Seconds on {config["threads"]} threads; a resumed step counts its earlier
attempts only where they ended by themselves.

| step | seconds | resumed |
| --- | --- | --- |
{times}

`stats.safetensors`: per feature `max_act`, `mean_act` (over the tokens where it fires), `p999`,
`density`, `count`, sinks left out. `training_log.json`: settings, seeds, versions, hashes.
"""
