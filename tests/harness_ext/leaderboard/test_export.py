"""The flat table: every line says what made it, in CSV and Parquet alike."""

import csv
import json

import pyarrow.parquet as pq
import pytest

from harness_ext.leaderboard.export import write_csv, write_parquet
from harness_ext.leaderboard.flat import RECOMPUTE, flat_rows
from tests.harness_ext.leaderboard.report_boards import ROWS, TASK, small_board, small_results

MADE_BY = (
    *("model", "model_identity", "backend", "dtype", "engine", "versions", "seed", "split_seed"),
    *("row", "kind", "sae", "feature", "op", "edit_value", "strength", "hook_point", "layer"),
    *("positions", "fingerprint", "gen_kwargs", "repeats", "task", "metric", "spec"),
)


@pytest.fixture(scope="module")
def board():
    return small_board()


@pytest.fixture(scope="module")
def results(board):
    return small_results(board)


@pytest.fixture(scope="module")
def lines(board, results):
    return flat_rows(board, results)


def line_of(lines, row, task, metric):
    (found,) = [x for x in lines if (x["row"], x["task"], x["metric"]) == (row, task, metric)]
    return found


def test_there_is_a_line_for_every_cell_and_the_baseline_of_every_family(lines, results):
    assert len(lines) == len(results.cells) + len(results.families)
    assert len({(x["row"], x["task"], x["metric"]) for x in lines}) == len(lines)


def test_every_line_carries_what_made_it(lines):
    assert all(key in line for line in lines for key in MADE_BY)
    line = line_of(lines, "f3-2", TASK, "silent_use_lexicon")
    assert {k: line[k] for k in ("model", "dtype", "backend", "sae", "feature", "op")} == {
        "model": "tiny",
        "dtype": "float32",
        "backend": "hf",
        "sae": "tiny-sae",
        "feature": 3,
        "op": "clamp",
    }
    assert (line["layer"], line["hook_point"]) == (15, "blocks.15.hook_resid_post")
    assert (line["strength"], line["edit_value"], line["seed"], line["split_seed"]) == (2, 8, 11, 3)
    assert json.loads(line["versions"])["torch"] == "2.13.0"
    assert json.loads(line["gen_kwargs"]) == {"max_gen_toks": 64}


def test_numbers_are_those_of_the_statistics(lines, results):
    cell = results.cell("f3-2", TASK, "silent_use_lexicon")
    assert cell is not None
    assert cell.discovery
    line = line_of(lines, "f3-2", TASK, "silent_use_lexicon")
    assert (line["effect"], line["effect_lo"], line["effect_hi"], line["q"], line["value"]) == (
        cell.effect.value,
        cell.effect.lo,
        cell.effect.hi,
        cell.q,
        cell.value.value,
    )
    base = line_of(lines, "baseline", TASK, "silent_use_lexicon")
    assert base["value"] == base["base"] == cell.base.value
    assert base["effect"] is None
    assert base["q"] is None


def test_parquet_gives_the_lines_back_with_their_types(lines, tmp_path):
    table = pq.read_table(write_parquet(lines, tmp_path / "t.parquet"))
    assert table.to_pylist() == lines
    assert table.schema.metadata[b"recompute"].decode() == RECOMPUTE
    types = {name: str(table.schema.field(name).type) for name in ("q", "feature", "discovery")}
    assert types == {"q": "double", "feature": "int64", "discovery": "bool"}


def test_csv_has_the_same_lines_and_leaves_undefined_empty(lines, tmp_path):
    with write_csv(lines, tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(lines)
    for got, line in zip(read, lines, strict=True):
        assert got["row"] == line["row"]
        assert got["effect"] == ("" if line["effect"] is None else str(line["effect"]))


def test_csv_gives_a_spreadsheet_nothing_to_run(lines, tmp_path):
    with write_csv(lines, tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    prompts = {row["prompt"] for row in read if row["kind"] == "prompt"}
    assert prompts == {"'=HYPERLINK(1) say so"}
    (row,) = [row for row in ROWS if row.kind == "prompt"]
    assert {x["prompt"] for x in lines if x["kind"] == "prompt"} == {row.prompt}


def test_a_negative_number_is_no_formula(tmp_path):
    path = write_csv([{"effect": -0.5, "label": "-x"}], tmp_path / "t.csv")
    assert path.read_text(encoding="utf-8") == "effect,label\n-0.5,'-x\n"


def test_row_without_a_hook_point_has_no_layer(lines):
    assert {x["layer"] for x in lines if x["row"] == "say"} == {None}


def test_board_without_cells_still_makes_readable_files(tmp_path):
    assert write_csv([], tmp_path / "t.csv").exists()
    assert pq.read_table(write_parquet([], tmp_path / "t.parquet")).num_rows == 0
