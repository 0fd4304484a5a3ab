"""Generated tokens a second of steered against plain `hf`, in one process, in turn.

    python benchmarks/hf_throughput.py

Both generate the same prompts with lm-eval's own request loop, greedy, to the same budget, the
end of text suppressed, so that both make the same number of tokens. The order alternates from
round to round; the ratio is taken round by round.
"""

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness_ext.model_hf import SteeredHF
from interventions.default_model import resolve_pretrained

SPECS: dict[str, dict[str, Any] | None] = {
    "unsteered": None,
    "clamp, 1 feature": {"sae": "default", "edits": [{"feature": 3036, "strength": 1.0}]},
    "add, 1 feature": {"sae": "default", "edits": [{"feature": 3036, "op": "add", "value": 20}]},
    "clamp, 8 features": {
        "sae": "default",
        "edits": [{"feature": f, "value": 1.0} for f in range(100, 108)],
    },
}


def _requests(rows: int, tokens: int, eos: list[int]) -> list[Instance]:
    options = {"until": [], "do_sample": False, "max_gen_toks": tokens, "suppress_tokens": eos}
    text = "Tell me about the number {}, and about the river that runs through the old town."
    return [
        Instance("generate_until", {"qid": str(i)}, (text.format(i), dict(options)), 0, ("b", i, 1))
        for i in range(rows)
    ]


def _seconds(lm: Any, requests: list[Instance]) -> float:
    start = time.perf_counter()
    lm.generate_until(requests, disable_tqdm=True)
    return time.perf_counter() - start


def main() -> None:
    """Print a line of JSON for each spec."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    steered = SteeredHF(args.model, batch_size=args.rows)
    plain = HFLM(
        pretrained=resolve_pretrained(args.model).path,
        device=str(steered.device),
        batch_size=args.rows,
    )
    eos = [plain.eot_token_id]
    requests = _requests(args.rows, args.tokens, eos)
    made = args.rows * args.tokens
    _seconds(plain, requests)
    for name, spec in SPECS.items():
        steered.set_intervention(spec)
        _seconds(steered, requests)
        ours, theirs = [], []
        for turn in range(args.rounds):
            pair = [(ours, steered), (theirs, plain)]
            for times, lm in pair if turn % 2 else reversed(pair):
                times.append(_seconds(lm, requests))
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        row = {
            "spec": name,
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "steered_tokens_per_s": round(made / statistics.median(ours), 1),
            "hf_tokens_per_s": round(made / statistics.median(theirs), 1),
            "rows": args.rows,
            "tokens": args.tokens,
            "rounds": args.rounds,
            "device": str(steered.device),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
