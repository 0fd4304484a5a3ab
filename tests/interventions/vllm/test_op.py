"""The operator against the editor: the same maths, row by row, and the same counts."""

import pytest
import torch

from interventions.backends.vllm import op
from interventions.backends.vllm.compiled import FLAGS, SCALARS
from tests.vllm_plans import Case, random_case

SEEDS = range(12)


def run(case: Case, rows=None):
    """Return `hidden`, counts and norms after the operator ran."""
    arguments = case.arguments(rows)
    torch.ops.sae_steered.edit_(*arguments)
    return arguments[0], arguments[-2], arguments[-1]


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", SEEDS)
def test_same_maths_as_the_editor(saes, seed, dtype, pair):
    case = random_case(saes, seed=seed, dtype=dtype, pair=pair)
    hidden, counts, norms = run(case)
    x = case.hidden.float() if case.residual is None else case.hidden.float() + case.residual
    changed = 0
    for slot in range(1, len(case.plans) + 1):
        rows, wanted, wanted_counts = case.expected(slot)
        # The same numbers, summed in another order: the last bit of the dtype may differ.
        tolerance = {"rtol": 2e-5 if dtype == torch.float32 else 2**-7, "atol": 2e-5}
        torch.testing.assert_close(hidden[rows].float(), wanted.float(), **tolerance)
        changed += int((wanted != case.hidden[rows]).any(dim=1).sum())
        assert counts[slot + 1, : len(wanted_counts)].tolist() == wanted_counts
        assert not counts[slot + 1, len(wanted_counts) :].any()
        torch.testing.assert_close(norms[rows], x[rows].norm(dim=-1), rtol=1e-5, atol=0)
    assert changed > 20, "a test in which nothing changes proves nothing"
    assert not counts[:2].any(), "rows of nobody are counted for nobody"
    nobody = case.slots == 0
    assert nobody.any()
    assert torch.equal(hidden[nobody], case.hidden[nobody])


def test_the_plans_cover_every_kind_of_edit(saes):
    """What the comparison above is worth: how often each kind of edit and of row occurs."""
    seen = dict.fromkeys(SCALARS, 0)
    norms, kinds, groups, selected = set(), set(), 0, torch.zeros(3, dtype=torch.int64)
    for seed in SEEDS:
        case = random_case(saes, seed=seed)
        selected += run(case)[1].sum(dim=(0, 1))
        for slot, plan in enumerate(case.plans, 1):
            table = case.tables.scalars[slot, : int(case.tables.n_edits[slot])]
            for column, name in enumerate(SCALARS):
                seen[name] += int((table[:, column] != 0).sum())
            norms |= set(table[:, SCALARS.index("norm")].int().tolist())
            kinds |= set(table[:, SCALARS.index("wanted")].int().tolist())
            groups = max(groups, len(plan.layers[0].groups))
    assert min(seen.values()) > 20, seen
    assert norms == {0, 1, 2}
    assert kinds == set(FLAGS.values())
    assert groups >= 3
    assert min(selected.tolist()) > 100, "selected, guarded and fired rows"


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_rows_beside_it(saes, dtype, pair):
    case = random_case(saes, seed=3, dtype=dtype, pair=pair)
    together, counts, norms = run(case)
    alone = torch.zeros_like(counts)
    for row in range(len(case.slots)):
        hidden, one, norm = run(case, torch.tensor([row]))
        assert torch.equal(hidden[0], together[row]), f"row {row} of slot {case.slots[row]}"
        assert norm[0] == norms[row]
        alone += one
    assert torch.equal(alone, counts)
    order = torch.randperm(len(case.slots), generator=torch.Generator().manual_seed(0))
    shuffled, again, _ = run(case, order)
    assert torch.equal(shuffled, together[order])
    assert torch.equal(again, counts)


@pytest.mark.parametrize("d_model", [576, 2304])
def test_a_wide_row_does_not_depend_on_the_rows_beside_it(d_model):
    """At widths of real models, where other kernels multiply; slots hold 1 to 8 edits."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    slots, rows = 9, 40
    scalars = normal(slots, 8, len(SCALARS))
    scalars[..., SCALARS.index("norm")] = torch.arange(8) % 3
    scalars[..., SCALARS.index("wanted")] = scalars[..., SCALARS.index("reads")] = 1
    scalars[..., SCALARS.index("only_active")] = 0
    tables = [
        torch.arange(slots, dtype=torch.int32),
        torch.full((slots,), float("inf")),
        scalars,
        normal(slots, 8, d_model) / d_model**0.5,
        normal(slots, 8, d_model) / d_model**0.5,
    ]
    hidden, residual = normal(rows, d_model).bfloat16(), normal(rows, d_model).bfloat16()
    tokens = (torch.arange(rows) % slots).int()
    tokens = torch.where(tokens > 0, tokens | 1 << 16, 0).int()

    def edited(rows):
        out, counts = hidden[rows].clone(), torch.zeros(1, 8, 3, dtype=torch.int64)
        owners, norms = torch.zeros(len(rows), dtype=torch.int32), torch.zeros(len(rows))
        torch.ops.sae_steered.edit_(
            out, residual[rows], tokens[rows], owners, *tables, counts, norms
        )
        return out

    together = edited(torch.arange(rows))
    assert (together != hidden).any(dim=1).sum() == int((tokens > 0).sum())
    for row in range(rows):
        assert torch.equal(edited(torch.tensor([row]))[0], together[row]), f"row {row}"


def test_pieces_of_a_long_step_give_the_same_bits(saes, monkeypatch):
    case = random_case(saes, seed=4)
    whole = run(case)
    for elements in (1, 8 * 32, 3 * 8 * 32, 20 * 8 * 32):
        monkeypatch.setattr(op, "_CHUNK_ELEMENTS", elements)
        for got, wanted in zip(run(case), whole, strict=True):
            assert torch.equal(got, wanted)


def test_fewer_rows_than_tokens_are_described(saes):
    case = random_case(saes, seed=5)
    arguments = case.arguments()
    wanted, counts, _ = run(case, torch.arange(30))
    arguments[0], arguments[1] = case.hidden[:30].clone(), case.residual[:30]
    torch.ops.sae_steered.edit_(*arguments)
    assert torch.equal(arguments[0], wanted)
    assert torch.equal(arguments[-2], counts)


def test_more_rows_than_are_described_are_refused(saes):
    case = random_case(saes, seed=5)
    arguments = case.arguments()
    arguments[2] = arguments[2][:50]
    with pytest.raises(RuntimeError, match="90 rows and 50"):
        torch.ops.sae_steered.edit_(*arguments)


def test_a_step_without_steered_rows_changes_nothing(saes):
    case = random_case(saes, seed=6)
    case.slots[:] = 0
    hidden, counts, norms = run(case)
    assert torch.equal(hidden, case.hidden)
    assert not counts.any()
    assert not norms.any()


def test_norms_are_written_where_a_steered_request_has_no_edit_here(saes):
    """The norms of a request are read at every hook point; stale ones would be another's."""
    case = random_case(saes, seed=7)
    case.tables.n_edits.zero_()
    hidden, counts, norms = run(case)
    assert torch.equal(hidden, case.hidden)
    assert not counts.any()
    steered = case.slots > 0
    wanted = (case.hidden + case.residual).norm(dim=-1)
    torch.testing.assert_close(norms[: len(wanted)][steered], wanted[steered])
    assert not norms[: len(wanted)][~steered].any()


def test_a_leading_sink_token_of_infinite_length_is_left_alone(saes):
    case = random_case(saes, seed=8)
    case.tables.limit[1:] = 5.0
    case.hidden[0, 0], case.slots[0] = float("inf"), 1
    case.hidden[1, 0], case.slots[1] = float("nan"), 2
    hidden, counts, _ = run(case)
    torch.testing.assert_close(hidden[:2], case.hidden[:2], rtol=0, atol=0, equal_nan=True)
    assert torch.isfinite(hidden[2:]).all()
    assert counts[2:4, :, 1].sum() > 0


@pytest.mark.parametrize("pair", [True, False])
def test_opcheck(saes, pair):
    case = random_case(saes, seed=9, pair=pair, rows=12)
    torch.library.opcheck(torch.ops.sae_steered.edit_.default, case.arguments())
