"""`sae-steered path` prints what other programs need in place of `default`."""

import json
import subprocess
import sys
from pathlib import Path

from harness_ext.scripts.path import main

from harness_ext.cli import report_errors
from interventions.sae.io import load_sae
from interventions.spec import SAERef


def test_the_model_folder_is_all_that_is_printed(repo_root):
    program = "from harness_ext.cli import main; raise SystemExit(main(['path']))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    config = json.loads((Path(line) / "config.json").read_text())
    assert config["num_hidden_layers"] == 30
    assert (Path(line) / "tokenizer.json").is_file()


def test_the_sae_folder_holds_the_default_sae(capsys):
    assert main(["--sae"]) == 0
    given = load_sae(SAERef(path=capsys.readouterr().out.strip()))
    assert given.content_hash == load_sae(SAERef(default=True)).content_hash


def test_where_the_model_is_missing_nothing_is_printed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("interventions.default_model._installed_gguf", lambda: None)
    monkeypatch.setattr("interventions.default_model._hub_usable", lambda: False)
    monkeypatch.setenv("SAE_STEERED_CACHE", str(tmp_path))
    assert report_errors("sae-steered path", main, []) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "pip install" in err
    assert err.count("\n") == 1
