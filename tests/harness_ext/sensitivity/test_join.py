"""Sensitivities joined into a leaderboard's report."""

import csv
import io
import json

import pytest

from harness_ext.errors import SensitivityError
from harness_ext.leaderboard.report import write_report
from harness_ext.sensitivity.join import joined
from interventions.sae.io import load_sae
from interventions.spec import SAERef
from tests.harness_ext.leaderboard.report_boards import small_board, small_results
from tests.tiny_models import save_sae


def summary(path, sae, *, features=(3,), value=0.7):
    rows = [
        {"feature": f, "generated": {"value": value}, "control": {"value": 0.1}} for f in features
    ]
    content = load_sae(SAERef(path=str(sae))).content_hash
    subject = {"sae": {"path": "elsewhere"}, "sae_hash": content}
    path.write_text(json.dumps({"kind": "sensitivity", "subject": subject, "features": rows}))
    return path


@pytest.fixture
def board(tmp_path):
    sae = save_sae(tmp_path / "sae").path
    found = small_board()
    rows = [
        row.model_copy(update={"spec": {**(row.spec or {}), "sae": {"path": str(sae)}}})
        if row.feature == 3
        else row
        for row in found.rows
    ]
    return type(found)(found.info, tuple(rows), found.records), sae


def test_rows_of_the_same_sae_and_feature_get_the_column(board, tmp_path):
    small, sae = board
    found = joined(small, [summary(tmp_path / "s.json", sae)])
    values = {row.id: row.sensitivity for row in found.rows}
    assert values["f3-1"] == values["f3-2"] == 0.7
    assert {v for k, v in values.items() if not k.startswith("f3")} == {None}
    write_report(found, small_results(small), tmp_path / "out")
    text = (tmp_path / "out" / "leaderboard.csv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert {line["sensitivity"] for line in lines if line["row"] == "f3-2"} == {"0.7"}
    assert {line["sensitivity_control"] for line in lines if line["row"] == "lex"} == {""}
    page = (tmp_path / "out" / "index.html").read_text()
    heads = [page.index(f'"key":"{key}"') for key in ("found", "sensitivity", "flags", "kind")]
    assert heads == sorted(heads)
    write_report(small, small_results(small), tmp_path / "plain")
    assert "Sensitivity" not in (tmp_path / "plain" / "index.html").read_text()


def test_another_sae_feature_or_file_is_refused(board, tmp_path):
    small, sae = board
    other = save_sae(tmp_path / "other", seed=5).path
    with pytest.raises(SensitivityError, match="no row of 'small <board>' has a feature and SAE"):
        joined(small, [summary(tmp_path / "o.json", other)])
    with pytest.raises(SensitivityError, match="no row of"):
        joined(small, [summary(tmp_path / "f.json", sae, features=(5,))])
    (tmp_path / "x.json").write_text('{"kind": "reason"}')
    with pytest.raises(SensitivityError, match=r"x\.json is no summary"):
        joined(small, [tmp_path / "x.json"])
    with pytest.raises(SensitivityError, match=r"nowhere\.json is no summary"):
        joined(small, [tmp_path / "nowhere.json"])
