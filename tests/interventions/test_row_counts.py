"""Counts of each row, and what a receipt makes of rows that were checked in an earlier run."""

import pytest
import torch

from interventions.editor import EditCounts, Editor
from interventions.errors import ReceiptError
from interventions.plan import ModelFacts, make_plan
from interventions.receipt import Receipt
from interventions.spec import parse_spec
from tests import tiny_models


@pytest.fixture
def layer(tmp_path):
    sae = str(tiny_models.save_sae(tmp_path / "sae").path)
    edits = [
        {"op": "clamp", "feature": 3, "value": 4.0},
        {"op": "add", "feature": 5, "value": 1.0, "positions": "prompt"},
    ]
    spec = parse_spec({"sae": {"path": sae}, "edits": edits, "norm_guard": 10.0})
    plan = make_plan(spec, ModelFacts("tiny", tiny_models.D_MODEL, tiny_models.N_LAYERS))
    return plan.with_median_norms(dict.fromkeys(plan.missing_medians, 1.0)).layers[0]


def test_rows_are_counted_one_by_one(layer):
    torch.manual_seed(0)
    editor, first, second = Editor(layer), *layer.selectors
    wanted = torch.zeros(2, 3, 2, dtype=torch.long)  # selected and guarded, by row, by edit
    for columns in (4, 1, 1):
        resid = torch.randn(3, columns, tiny_models.D_MODEL) * torch.rand(3, columns, 1) * 3
        masks = {s: torch.rand(3, columns) < 0.6 for s in (first, second)}
        editor(resid, masks)
        large = resid.norm(dim=-1) > layer.norm_limit
        for edit, selector in enumerate((first, second)):
            wanted[0, :, edit] += masks[selector].sum(dim=1)
            wanted[1, :, edit] += (masks[selector] & large).sum(dim=1)
    assert wanted[1].sum() > 0
    rows = editor.take_row_counts()
    for edit, counts in enumerate(rows):
        assert [c.selected for c in counts] == wanted[0, :, edit].tolist()
        assert [c.guarded for c in counts] == wanted[1, :, edit].tolist()
        assert sum(c.fired for c in counts) > 0
    assert editor.take_counts() == [EditCounts(0, 0, None)] * 2
    assert editor.take_row_counts() == [[], []]


def test_sums_survive_a_change_of_rows(layer):
    editor = Editor(layer)
    for shape in ((2, 3), (4, 1), (5,)):
        masks = {s: torch.ones(shape, dtype=torch.bool) for s in layer.selectors}
        editor(torch.zeros(*shape, tiny_models.D_MODEL), masks)
    assert [c.selected for c in editor.take_counts()] == [6 + 4 + 5] * 2


def test_a_row_too_many_and_one_too_few_do_not_cancel():
    receipt = Receipt()
    counts = [[EditCounts(3, 0, None)], [EditCounts(5, 0, None)]]
    with pytest.raises(ReceiptError, match=r"row 1 of 2: the hooks edited \[3\] .* demand \[4\]"):
        receipt.add_rows(counts, [[4], [4]])
    with pytest.raises(ReceiptError, match=r"edited \[8\] tokens .* demand \[7\]"):
        Receipt().add_rows(counts, [[3], [4]])


def test_resumed_rows_count_like_others_and_are_told_apart():
    whole, resumed = Receipt(), Receipt()
    rows = [(EditCounts(3, 1, None), EditCounts(2, 0, 1)), (EditCounts(4, 0, None),) * 2]
    whole.add_rows(rows, [[3, 2], [4, 4]])
    resumed.resume(rows[1])
    resumed.add_rows(rows[:1], [[3, 2]])
    assert "resumed" not in whole.as_dict()
    assert resumed.as_dict() == {**whole.as_dict(), "resumed": 1}
    with pytest.raises(ReceiptError, match="counts 1 edits and this run has 2"):
        resumed.resume(rows[0][:1])
    empty = Receipt()
    empty.resume(())
    assert empty.as_dict() == {"rows": 1, "resumed": 1, "edits": []}
