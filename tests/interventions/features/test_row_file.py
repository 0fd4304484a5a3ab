"""Rows kept on disk: read back as they were, and cut to what a checkpoint has counted."""

import pytest
import torch

from interventions.errors import FeatureError
from interventions.features.row_file import RowFile
from interventions.text.rows import Row

ROWS = [Row(torch.arange(n) * 7919, torch.arange(n) - 1) for n in (9, 1, 30, 256)]


def same(found, wanted):
    return [(r.ids.tolist(), r.document.tolist()) for r in found] == [
        (r.ids.tolist(), r.document.tolist()) for r in wanted
    ]


def test_rows_come_back_and_what_was_not_counted_is_dropped(tmp_path):
    path = tmp_path / "rows.bin"
    with RowFile(path, 0) as kept:
        for row in ROWS[:3]:
            kept.add(row)
        kept.sync()
        assert same(kept, ROWS[:3])
    with path.open("ab") as file:
        file.write(b"half of a row")
    with RowFile(path, 2) as kept:
        assert same(kept, ROWS[:2])
        kept.add(ROWS[3])
        assert same(kept, [*ROWS[:2], ROWS[3]])
        kept.remove()
    assert not path.exists()


def test_a_file_with_fewer_rows_than_were_counted_is_refused(tmp_path):
    path = tmp_path / "rows.bin"
    with RowFile(path, 0) as kept:
        kept.add(ROWS[0])
    for keep in (2, 5):
        with pytest.raises(FeatureError, match=f"has not the {keep} rows that were read; remove"):
            RowFile(path, keep)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FeatureError, match="has not the 1 rows"):
        RowFile(path, 1)
