"""What ReasonScore of all features costs, against the bare forward pass and the published way.

    python benchmarks/reason_score.py --tokens 8192
    python benchmarks/reason_score.py --memory --tokens 4096

Three measurements of speed, each on the same rows of documentation text, with the default model and
its SAE:

bare        the model to the SAE's layer, nothing else
one pass    the same, with every feature scored (`sae-steered score reason`)
published   the same forward pass once for every 48 features, whose means are kept group by group,
            as the published script does; run whole for --features of them. What all features would
            take is that time times a number, and is called extrapolated.

Rounds alternate the arms; a figure is the median of the rounds. With --memory: what a process of
its own takes beyond the loaded model and SAE at its peak (VmHWM of Linux, reset after loading),
--rounds processes each for 1, 2 and 4 times --tokens, and the same for the bare pass. A batch has
4,096 tokens: fewer would show its growth, not the text's.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

from interventions.features.reason import ReasonSettings, collect
from interventions.features.reason_scores import score
from interventions.features.words import WordGroups, around_words, read_words, word_groups
from interventions.residuals import read_residuals
from interventions.sae.activations import feature_acts
from interventions.subject import Subject, load_subject
from interventions.text.config import TextConfig, parse_text
from interventions.text.rows import rows

AT_ONCE = 48
ARMS = ("bare", "one")
BATCH_TOKENS = 4096


def text_of(tokens: int, context: int) -> TextConfig:
    """Return the documentation of Python's standard library."""
    source = {"docs": ["stdlib"]}
    return parse_text({"sources": [source], "tokens": tokens, "context": context})


def bare(subject: Subject, text: TextConfig) -> None:
    """Run the model to the layer, and nothing else."""
    ids = (row.ids for row in rows(text, subject.tokenizer))
    for _ in read_residuals(subject.model, subject.hook_point, ids, batch_tokens=BATCH_TOKENS):
        pass


def one_pass(subject: Subject, text: TextConfig, groups: WordGroups) -> torch.Tensor:
    """Return the scores of all features."""
    settings = ReasonSettings(ignore=subject.special_ids)
    sums = collect(subject, text, groups, settings, batch_tokens=BATCH_TOKENS)
    return score(sums, groups, weights=subject.sae.W_dec.norm(dim=-1)).score


def published(subject: Subject, text: TextConfig, groups: WordGroups, features: int) -> None:
    """Run the model once for every 48 of `features` features, and keep their running means."""
    window = ReasonSettings().window
    for first in range(0, features, AT_ONCE):
        chosen = subject.sae.directions(range(first, min(first + AT_ONCE, features)))
        means = torch.zeros(len(groups.names) + 2, len(chosen.features))
        counts = [0] * len(means)
        read = list(rows(text, subject.tokenizer))
        ids = (row.ids for row in read)
        for batch in read_residuals(
            subject.model, subject.hook_point, ids, batch_tokens=BATCH_TOKENS
        ):
            acts, _ = feature_acts(batch.resid, chosen)
            segment = torch.zeros_like(batch.tokens).masked_fill_(~batch.real, -2)
            near, _ = around_words(groups, batch.tokens, segment, window)
            keep = batch.usable(subject.limit, subject.special_ids)
            anywhere = near.any(0)
            for kind, mask in enumerate([*near, anywhere, ~anywhere]):
                some = acts[mask & keep]
                if len(some):
                    counts[kind] += len(some)
                    means[kind] += (len(some) / counts[kind]) * (some.mean(0) - means[kind])


def seconds(work: object, *arguments: object) -> float:
    """Return how long a call took."""
    begin = time.perf_counter()
    work(*arguments)  # type: ignore[operator]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def status(name: str) -> float:
    """Return a figure of this process's memory in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def peak(tokens: int, context: int, arm: str) -> float:
    """Return the MiB that a pass over `tokens` tokens takes beyond what is loaded, at its peak."""
    command = [sys.executable, __file__, "--tokens", str(tokens), "--context", str(context)]
    done = subprocess.run(
        [*command, "--peak", arm], capture_output=True, text=True, check=True, env=os.environ
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--features", type=int, default=4 * AT_ONCE, help="of the published way")
    parser.add_argument("--memory", action="store_true", help="in place of speed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--peak", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    subject = load_subject()
    text = text_of(arguments.tokens, arguments.context)
    groups = word_groups(read_words(), subject.tokenizer)
    if arguments.peak:
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmHWM")
        (bare(subject, text) if arguments.peak == "bare" else one_pass(subject, text, groups))
        print(status("VmHWM") - before)
        return
    if arguments.memory:
        memory(arguments, subject)
        return
    tokens = sum(len(row.ids) for row in rows(text, subject.tokenizer))
    bare(subject, text_of(1024, arguments.context))  # warm up
    took: dict[str, list[float]] = {"bare": [], "one pass": [], "published": []}
    for _ in range(arguments.rounds):
        took["bare"].append(seconds(bare, subject, text))
        took["one pass"].append(seconds(one_pass, subject, text, groups))
        took["published"].append(seconds(published, subject, text, groups, arguments.features))
    middle = {name: statistics.median(times) for name, times in took.items()}
    passes = math.ceil(arguments.features / AT_ONCE)
    all_passes = math.ceil(subject.sae.d_sae / AT_ONCE)
    found = {
        **about(subject),
        "tokens": tokens,
        "rounds": arguments.rounds,
        "seconds": took,
        "tokens_per_second": {
            "bare": tokens / middle["bare"],
            "one pass": tokens / middle["one pass"],
        },
        "share_of_bare": middle["bare"] / middle["one pass"],
        "published": {
            "features": arguments.features,
            "passes": passes,
            "seconds": middle["published"],
            "times_one_pass_of_all": middle["published"] / middle["one pass"],
            "extrapolated_seconds_all_features": middle["published"] / passes * all_passes,
            "extrapolated_times_one_pass": middle["published"]
            / passes
            * all_passes
            / middle["one pass"],
        },
    }
    write(arguments.out, "reason_score", found, report(found))


def memory(arguments: argparse.Namespace, subject: Subject) -> None:
    """Measure what passes over texts of three sizes take, print and write."""
    found = {
        **about(subject),
        "rounds": arguments.rounds,
        "mib_beyond_loaded": {
            str(size): {
                arm: sorted(peak(size, arguments.context, arm) for _ in range(arguments.rounds))
                for arm in ARMS
            }
            for size in (arguments.tokens, 2 * arguments.tokens, 4 * arguments.tokens)
        },
    }
    write(arguments.out, "reason_score_memory", found, report_memory(found))


def about(subject: Subject) -> dict:
    """Return what was measured, when and on what."""
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()}"
        f" thread(s) of torch {torch.__version__}, load {os.getloadavg()[0]:.1f}",
        "model": subject.label,
        "d_sae": subject.sae.d_sae,
    }


def write(folder: Path, name: str, found: dict, page: str) -> None:
    """Write the figures and the page about them, and print it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{name}-{found['date']}"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(page)


def report(found: dict) -> str:
    """Return the figures as a page of Markdown."""
    way, rate = found["published"], found["tokens_per_second"]
    return f"""# ReasonScore: what it costs ({found["date"]})

`python benchmarks/reason_score.py --tokens {found["tokens"]} --features {way["features"]}` on
{found["machine"]}; {found["model"]},
{found["d_sae"]} features, medians of {found["rounds"]} rounds.

| arm | tokens/s | share of bare |
| --- | --- | --- |
| model to the layer | {rate["bare"]:.0f} | 1 |
| all features scored in one pass | {rate["one pass"]:.0f} | {found["share_of_bare"]:.2f} |

The published way, run whole for {way["features"]} features ({way["passes"]} passes), took
{way["seconds"]:.1f} s: {way["times_one_pass_of_all"]:.1f} times as long as one pass for all
{found["d_sae"]}. Extrapolated to all features: {way["extrapolated_seconds_all_features"]:.0f} s,
{way["extrapolated_times_one_pass"]:.0f} times as long.
"""


def report_memory(found: dict) -> str:
    """Return the figures of memory as a page of Markdown."""

    def shown(mib: list[float]) -> str:
        return f"{statistics.median(mib):.0f} ({mib[0]:.0f} to {mib[-1]:.0f})"

    rows_of = "\n".join(
        f"| {size} | {shown(arms['bare'])} | {shown(arms['one'])} |"
        for size, arms in found["mib_beyond_loaded"].items()
    )
    return f"""# ReasonScore: what memory it takes ({found["date"]})

`python benchmarks/reason_score.py --memory --tokens {min(map(int, found["mib_beyond_loaded"]))}` on
{found["machine"]}; {found["model"]},
{found["d_sae"]} features. MiB at the peak beyond the loaded model and SAE, median (least to most)
of {found["rounds"]} processes:

| tokens | model to the layer | all features scored |
| --- | --- | --- |
{rows_of}
"""


if __name__ == "__main__":
    main()
