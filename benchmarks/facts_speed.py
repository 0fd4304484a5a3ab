"""What facts about all features cost, against the bare forward pass over the same text.

    python benchmarks/facts_speed.py --tokens 8192

bare        the model to the SAE's layer, nothing else
facts       `sae-steered facts` with its defaults: the same pass with everything gathered, then the
            logit lens, the contexts, and the files
text        the text read and tokenised, which every arm does once

Rounds alternate the arms; a figure is the median of the rounds. `whole` is facts from the first
token to the last file; `pass` leaves out what comes once, after the text: its share of the time
shrinks as the text grows.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from datetime import date
from pathlib import Path

import torch
from reason_score import BATCH_TOKENS, bare, seconds, text_of

from interventions.features import facts
from interventions.features.checkpoint import Checkpoint
from interventions.features.row_file import RowFile
from interventions.features.running import FactSettings, Running
from interventions.subject import load_subject
from interventions.text.rows import rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON in place of lines")
    parser.add_argument("--out", type=Path, help="folder for facts_speed-DATE.json")
    arguments = parser.parse_args()
    subject = load_subject()
    text = text_of(arguments.tokens, arguments.context)

    def read() -> None:
        for _ in rows(text, subject.tokenizer):
            pass

    def gather(place: str) -> None:
        checkpoint = Checkpoint(Path(place) / "pass", "speed")
        running = Running.empty(subject.sae.d_sae, FactSettings(), subject.device)
        with RowFile(Path(place) / "rows.bin", 0) as kept:
            facts.gather(subject, text, running, kept, checkpoint, BATCH_TOKENS)

    def whole(place: str) -> None:
        facts.collect(subject, text, Path(place) / "facts", batch_tokens=BATCH_TOKENS)

    bare(subject, text_of(1024, arguments.context))  # warm up
    took: dict[str, list[float]] = {"bare": [], "pass": [], "whole": [], "text": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as place:
            took["bare"].append(seconds(bare, subject, text))
            took["pass"].append(seconds(gather, place))
            took["whole"].append(seconds(whole, place))
            took["text"].append(seconds(read))
    middle = {name: statistics.median(times) for name, times in took.items()}
    found = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()}"
        f" thread(s) of torch {torch.__version__}, load {os.getloadavg()[0]:.1f}",
        "model": subject.label,
        "d_sae": subject.sae.d_sae,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "seconds": took,
        "tokens_per_second": {n: arguments.tokens / middle[n] for n in ("bare", "pass", "whole")},
        "share_of_bare": {n: middle["bare"] / middle[n] for n in ("pass", "whole")},
        "text_share_of_bare": middle["text"] / middle["bare"],
    }
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"facts_speed-{found['date']}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{found['machine']}; {arguments.tokens} tokens, medians of {arguments.rounds} rounds")
    for name, rate in found["tokens_per_second"].items():
        share = found["share_of_bare"].get(name, 1.0)
        print(f"{name:<6} {rate:8.0f} tokens/s  {share:.2f} of bare")
    print(f"text   {found['text_share_of_bare']:.3f} of bare's time, once")


if __name__ == "__main__":
    main()
