"""The Triton kernel beside the torch operator, in Triton's interpreter; one line of JSON a case.

    TRITON_INTERPRET=1 python -m tests.vllm_triton_cases FOLDER

Run in a process of its own: Triton reads the variable once, when it is imported.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.vllm_gpu_checks import check_parity
from interventions.backends.vllm import op, triton_op
from interventions.errors import ReceiptError
from tests.vllm_plans import Case, random_case, save_saes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compare(case: Case) -> dict[str, Any]:
    """Return how far the kernel is from the operator."""
    theirs, ours = case.arguments(), case.arguments()
    op.edit_(*theirs)
    triton_op.edit_(*ours)
    nobody = case.slots == 0
    error = (ours[0].float() - theirs[0].float()).abs() / theirs[0].float().abs().clamp_min(1.0)
    return {
        "error": error.max().item(),
        "same_counts": torch.equal(ours[-2], theirs[-2]),
        "counted": ours[-2].sum(dim=(0, 1)).tolist(),
        "norm_error": ((ours[-1] - theirs[-1]).abs() / theirs[-1].clamp_min(1.0)).max().item(),
        "nobody_same": torch.equal(ours[0][nobody], case.hidden[nobody]),
        "nobody": int(nobody.sum()),
        "changed": int((theirs[0] != case.hidden).any(dim=1).sum()),
        "alone_same": _alone(case, ours[0]),
    }


def _alone(case: Case, together: torch.Tensor) -> bool:
    for row in range(0, len(case.slots), 12):
        arguments = case.arguments(torch.tensor([row]))
        triton_op.edit_(*arguments)
        if not torch.equal(arguments[0][0], together[row]):
            return False
    return True


def special(saes: dict[str, str]) -> dict[str, Any]:
    """Return what the kernel does where few tests would look."""
    case = random_case(saes, seed=20, rows=30)
    case.tables.limit[1:] = 5.0
    case.hidden[0, 0], case.slots[0] = float("inf"), 1
    case.hidden[1, 0], case.slots[1] = float("nan"), 2
    arguments = case.arguments()
    triton_op.edit_(*arguments)
    sinks_alone = torch.equal(
        arguments[0][:2].nan_to_num(7, 8, 9), case.hidden[:2].nan_to_num(7, 8, 9)
    )
    wide = torch.zeros(30, 64)
    strided = case.arguments()
    strided[0] = wide[:, 3:35].copy_(case.hidden)
    triton_op.edit_(*strided)
    between = bool(wide[:, :3].any() or wide[:, 35:].any())
    empty = case.arguments()
    case.tables.n_edits.zero_()
    triton_op.edit_(*empty)
    refused = []
    for change in (
        lambda a: a.__setitem__(2, a[2][:20]),
        lambda a: a.__setitem__(0, torch.zeros(32, 30).T),
    ):
        bad = case.arguments()
        change(bad)
        try:
            triton_op.edit_(*bad)
        except ReceiptError as error:
            refused.append(str(error))
    none = case.arguments()
    none[0] = none[0][:0]
    triton_op.edit_(*none)
    return {
        "sinks_alone": sinks_alone,
        "strided_same": torch.equal(
            strided[0].nan_to_num(7, 8, 9), arguments[0].nan_to_num(7, 8, 9)
        ),
        "strided_between": between,
        "empty_changes": not torch.equal(
            empty[0].nan_to_num(7, 8, 9), case.hidden.nan_to_num(7, 8, 9)
        ),
        "empty_norms": int((empty[-1] > 0).sum()),
        "steered": int((case.slots > 0).sum()),
        "refused": refused,
    }


def main(folder: Path) -> None:
    """Print the cases."""
    lines = []
    saes = save_saes(folder)
    for seed in range(3):
        for name, dtype in DTYPES.items():
            for pair in (True, False):
                case = random_case(saes, seed=seed, dtype=dtype, pair=pair, rows=36)
                lines.append({"seed": seed, "dtype": name, "pair": pair, **compare(case)})
    found = {"cases": lines, "special": special(saes), "script": check_parity("cpu", [40])}
    (folder / "cases.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
