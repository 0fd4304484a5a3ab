"""Checks of the edit operator on a GPU, and what it costs; prints one JSON object.

    python benchmarks/vllm_gpu_checks.py > benchmarks/results/vllm_gpu_checks-$(date +%F).json

Parity: the Triton kernel against the torch operator on the CPU. Graph: the kernel captured in a
CUDA graph and replayed while rows and tables change. Time: microseconds of one launch inside a
graph, at decode batches of 1 to 256 rows. Needs torch with CUDA and triton; no model, no vLLM. Ends
with status 1 if a check failed.
"""

import argparse
import datetime
import itertools
import json
import statistics
import sys
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
from torch import Tensor

from interventions.backends.vllm import op, triton_op
from interventions.backends.vllm.compiled import FLAG_ALL, FLAG_BOS, FLAGS, NORMS, SCALARS

MAX_EDITS = 8
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float16: 2**-9}
TABLES = ("n_edits", "limit", "scalars", "e", "w")


def make_tables(slots: int, d_model: int, seed: int) -> dict[str, Tensor]:
    """Return random tables on the CPU: every kind of edit, 0 to `MAX_EDITS` of them a slot."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def choice(values: Any) -> Tensor:
        values = torch.tensor(list(values), dtype=torch.float32)
        return values[torch.randint(len(values), (slots, MAX_EDITS), generator=generator)]

    columns = {name: normal(slots, MAX_EDITS) for name in SCALARS}
    columns |= {"theta": 0.3 * columns["theta"].abs(), "mul": columns["mul"].exp()}
    columns |= {"norm": choice(NORMS.values()), "wanted": choice(FLAGS.values())}
    columns["skip_bos"] = choice((0, 1))
    columns["reads"] = choice((0, 1, 1))
    for name in ("only_active", "a_act"):  # an edit that has them reads its feature
        columns[name] = columns["reads"] * (choice((0, 1)) if name == "only_active" else 1)
    columns["r_proj"] = columns["r_proj"] * choice((0, 1))
    n_edits = torch.randint(0, MAX_EDITS + 1, (slots,), generator=generator, dtype=torch.int32)
    n_edits[0] = 0
    return {
        "n_edits": n_edits,
        # Lengths are about sqrt(2 d_model): some rows are guarded.
        "limit": (2 * d_model) ** 0.5 * (0.98 + 0.06 * torch.rand(slots, generator=generator)),
        "scalars": torch.stack([columns[name] for name in SCALARS], dim=-1),
        "e": normal(slots, MAX_EDITS, d_model) / d_model**0.5,
        "w": normal(slots, MAX_EDITS, d_model) / d_model**0.5,
    }


def make_rows(rows: int, slots: int, d_model: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Return hidden, residual, tokens and owners on the CPU; an eighth of the rows is nobody's."""
    generator = torch.Generator().manual_seed(seed)
    slot = torch.randint(1, slots, (rows,), generator=generator)
    slot[torch.rand(rows, generator=generator) < 1 / 8] = 0
    flags = FLAG_ALL | torch.randint(0, 2 * FLAG_BOS, (rows,), generator=generator)
    tokens = torch.where(slot > 0, slot | flags << op.SLOT_BITS, 0).int()
    stream = torch.randn(2, rows, d_model, generator=generator).to(dtype)
    return [stream[0], stream[1], tokens, torch.arange(rows, dtype=torch.int32) % 5]


def outputs(rows: int, device: str) -> list[Tensor]:
    """Return counts and norms, empty."""
    counts = torch.zeros(5, MAX_EDITS, 3, dtype=torch.int64, device=device)
    return [counts, torch.zeros(rows, device=device)]


def differences(got: list[Tensor], wanted: list[Tensor], before: Tensor, nobody: Tensor) -> str:
    """Return what differs between hidden, counts and norms of two runs; empty if nothing does."""
    (hidden, counts, norms), (hidden_, counts_, norms_) = [
        [t.cpu() for t in o] for o in (got, wanted)
    ]
    error = (hidden.float() - hidden_.float()).abs() / hidden_.float().abs().clamp_min(1.0)
    found = []
    if error.max() > TOLERANCE[hidden.dtype]:
        found.append(f"hidden differs by {error.max():.2g}")
    if not torch.equal(counts, counts_):
        found.append(f"counts differ by {int((counts - counts_).abs().sum())}")
    if (norms - norms_).abs().max() > 1e-5 * norms_.abs().max():
        found.append("norms differ")
    if not torch.equal(hidden[nobody], before[nobody]):
        found.append("rows of nobody changed")
    return ", ".join(found)


def check_parity(device: str, d_models: list[int]) -> dict[str, Any]:
    """Return the cases in which the kernel and the torch operator differ, and how many ran."""
    failed, ran, changed = [], 0, 0
    for d_model, dtype, pair in itertools.product(d_models, TOLERANCE, (True, False)):
        rows, slots = 96, 17
        tables = make_tables(slots, d_model, seed=d_model)
        hidden, residual, tokens, owners = make_rows(rows, slots, d_model, dtype, seed=ran)
        wanted = [hidden.clone(), *outputs(rows, "cpu")]
        rest = [tokens, owners, *(tables[name] for name in TABLES)]
        op.edit_(wanted[0], residual if pair else None, *rest, *wanted[1:])
        runs = []
        for _ in range(2):
            got = [hidden.to(device, copy=True), *outputs(rows, device)]
            moved = residual.to(device) if pair else None
            triton_op.edit_(got[0], moved, *(t.to(device) for t in rest), *got[1:])
            runs.append(got)
        problem = differences(runs[0], wanted, hidden, tokens == 0)
        if not torch.equal(runs[0][0], runs[1][0]):
            problem += " two runs differ"
        if problem:
            failed.append(f"d_model {d_model}, {dtype}, pair {pair}: {problem}")
        ran += 1
        changed += int((wanted[0] != hidden).any(dim=1).sum())
    return {"cases": ran, "changed_rows": changed, "failed": failed}


def check_graph(d_model: int) -> dict[str, Any]:
    """Return the replays of one captured graph that differ from the torch operator."""
    rows, slots, dtype = 64, 33, torch.bfloat16
    tables = {k: v.cuda() for k, v in make_tables(slots, d_model, seed=0).items()}
    static = [t.cuda() for t in make_rows(rows, slots, d_model, dtype, seed=0)]
    ours = outputs(rows, "cuda")
    arguments = [*static, *(tables[name] for name in TABLES), *ours]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.ops.sae_steered.edit_(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.ops.sae_steered.edit_(*arguments)
    total, failed = outputs(rows, "cpu")[0], []
    ours[0].zero_()
    for turn in range(20):
        fresh = make_tables(slots, d_model, seed=turn)
        for name, value in fresh.items():
            tables[name].copy_(value)
        inputs = make_rows(rows, slots, d_model, dtype, seed=100 + turn)
        if turn % 5 == 4:
            inputs[2].zero_()  # a step in which nobody is steered
        for there, here in zip(static, inputs, strict=True):
            there.copy_(here)
        ours[1].zero_()
        graph.replay()
        wanted = [inputs[0].clone(), *outputs(rows, "cpu")]
        rest = (fresh[name] for name in TABLES)
        op.edit_(wanted[0], inputs[1], inputs[2], inputs[3], *rest, *wanted[1:])
        total += wanted[1]
        problem = differences(
            [static[0], *ours], [wanted[0], total, wanted[2]], inputs[0], inputs[2] == 0
        )
        if problem:
            failed.append(f"replay {turn}: {problem}")
    return {"replays": 20, "counted": int(total.sum()), "failed": failed}


def launch_us(arguments: list[Any], launches: int = 50, repeats: int = 20) -> float:
    """Return the median microseconds of one launch, out of a graph of many."""
    triton_op.edit_(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            triton_op.edit_(*arguments)
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / launches)
    return round(statistics.median(times), 2)


def measure(d_model: int) -> list[dict[str, Any]]:
    """Return microseconds a layer: nobody steered, and 1 to 256 different specs in a batch."""
    found = []
    slots = 257
    for edits in (1, MAX_EDITS):
        tables = {k: v.cuda() for k, v in make_tables(slots, d_model, seed=0).items()}
        tables["n_edits"].fill_(edits)
        tables["limit"].fill_(float("inf"))
        tables["scalars"][..., SCALARS.index("wanted")] = FLAG_ALL
        tables["scalars"][..., SCALARS.index("skip_bos")] = 0
        tables["scalars"][..., SCALARS.index("reads")] = 1
        # Small, so that hundreds of launches on one buffer stay finite.
        tables["scalars"][..., : SCALARS.index("beta")] *= 1e-6
        rest = [tables[name] for name in TABLES]
        for batch in (1, 8, 64, 256):
            stream = torch.randn(2, batch, d_model, device="cuda").bfloat16()
            owners = torch.arange(batch, dtype=torch.int32, device="cuda") % 5
            nobody = torch.zeros(batch, dtype=torch.int32, device="cuda")
            out = outputs(batch, "cuda")
            idle = launch_us([stream[0], stream[1], nobody, owners, *rest, *out])
            for specs in (n for n in (1, 8, 64, 256) if n <= batch):
                slot = torch.arange(batch, device="cuda") % specs + 1
                tokens = (slot | FLAG_ALL << op.SLOT_BITS).int()
                us = launch_us([stream[0], stream[1], tokens, owners, *rest, *out])
                found.append(
                    {"d_model": d_model, "edits": edits, "batch": batch, "specs": specs,
                     "us": us, "us_nobody_steered": idle}
                )  # fmt: skip
    return found


def main() -> None:
    """Print the JSON object."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d-model", type=int, nargs="+", default=[576, 2304, 4096, 8192, 16384])
    parser.add_argument("--checks-only", action="store_true", help="leave out the times")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU is visible to torch; this script checks one")
    answer: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "parity": check_parity("cuda", args.d_model),
        "graph": check_graph(args.d_model[0]),
    }
    if not args.checks_only:
        answer["times"] = [row for d_model in args.d_model for row in measure(d_model)]
    print(json.dumps(answer, indent=1))
    sys.exit(bool(answer["parity"]["failed"] or answer["graph"]["failed"]))


if __name__ == "__main__":
    main()
