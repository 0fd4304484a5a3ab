"""The operators against the worked values of the metrics document and hand arithmetic."""

import dataclasses

import pytest
import torch

from interventions.errors import SpecError
from interventions.ops import EditConstants, coefficients, edit_constants

X = torch.tensor([1.0, 1.0])
W = torch.tensor([0.6, 0.8])
ACT, MAX_ACT, STRENGTH = 2.0, 5.84, 2.0


def edited(constants: EditConstants, *, x=X, w=W, act=ACT, factor: float | None = None):
    table = torch.tensor([dataclasses.astuple(constants)]).T
    coefficient = coefficients(
        table,
        torch.tensor([act]),
        None if factor is None else torch.tensor(factor),
        (x @ w).reshape(1),
    )
    return x + coefficient @ w.unsqueeze(0)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("clamp", [6.808, 8.744]),
        ("add", [8.008, 10.344]),
        ("project", [7.168, 9.224]),
    ],
)
def test_worked_values_of_one_strength(op, expected):
    constants = edit_constants(op, STRENGTH * MAX_ACT, unit="sae", w_norm=1.0)
    torch.testing.assert_close(edited(constants), torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("ablate", 0.0, [1 - 2 * 0.6, 1 - 2 * 0.8]),
        ("scale", 3.0, [1 + 2 * 2 * 0.6, 1 + 2 * 2 * 0.8]),
        ("scale", 1.0, [1.0, 1.0]),
        ("scale", 0.0, [1 - 2 * 0.6, 1 - 2 * 0.8]),
        ("clamp", 2.0, [1.0, 1.0]),
        ("add", 0.0, [1.0, 1.0]),
        ("add", -1.5, [1 - 1.5 * 0.6, 1 - 1.5 * 0.8]),
    ],
)
def test_hand_arithmetic(op, value, expected):
    constants = edit_constants(op, value, unit="sae", w_norm=1.0)
    torch.testing.assert_close(edited(constants), torch.tensor(expected), atol=1e-6, rtol=0)


def test_residual_unit_is_the_length_that_is_written():
    w = torch.tensor([3.0, 4.0])
    moved = edited(edit_constants("add", 7.0, unit="residual", w_norm=5.0), w=w) - X
    assert moved.norm().item() == pytest.approx(7.0, abs=1e-5)
    # The input normalisation converts SAE units, never lengths in the stream.
    normed = edited(edit_constants("add", 7.0, unit="residual", w_norm=5.0), w=w, factor=11.0) - X
    assert normed.norm().item() == pytest.approx(7.0, abs=1e-5)


def test_residual_unit_of_clamp_sets_the_length_and_removes_the_feature():
    w = torch.tensor([3.0, 4.0])
    result = edited(edit_constants("clamp", 7.0, unit="residual", w_norm=5.0), w=w, act=2.0)
    torch.testing.assert_close(result, X - 2.0 * w + 7.0 * w / 5.0, atol=1e-5, rtol=0)


@pytest.mark.parametrize("unit", ["sae", "residual"])
def test_project_sets_the_component_along_the_unit_direction(unit):
    w = torch.tensor([3.0, 4.0])
    result = edited(edit_constants("project", -2.5, unit=unit, w_norm=5.0), w=w, act=99.0)
    assert (result @ w / 5.0).item() == pytest.approx(-2.5, abs=1e-5)
    across = torch.tensor([-4.0, 3.0]) / 5.0
    assert (result @ across).item() == pytest.approx((X @ across).item(), abs=1e-6)


def test_the_factor_multiplies_what_is_in_sae_units():
    result = edited(edit_constants("clamp", 5.0, unit="sae", w_norm=1.0), factor=3.0)
    torch.testing.assert_close(result, X + 3.0 * (5.0 - ACT) * W, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", [0.0, float("nan"), -1.0])
def test_a_direction_without_length_is_refused(norm):
    with pytest.raises(SpecError, match="norm 0"):
        edit_constants("add", 1.0, unit="sae", w_norm=norm)


def test_constants_broadcast_over_tokens_and_edits():
    table = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 2.0], [0.0, 0.0]])
    acts = torch.rand(3, 5, 2)
    factor = torch.rand(3, 5)
    got = coefficients(table, acts, factor, None)
    for row in range(3):
        for token in range(5):
            a0, a1 = acts[row, token]
            c = factor[row, token]
            assert got[row, token, 0].item() == pytest.approx((c * (1 - a0)).item(), abs=1e-6)
            assert got[row, token, 1].item() == pytest.approx((c * 0.5 * a1 + 2).item(), abs=1e-6)
