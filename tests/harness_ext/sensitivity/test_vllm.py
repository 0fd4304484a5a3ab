"""End to end offline: the default model's features, and the model itself as a (weak) writer."""

import json

import pytest

from harness_ext import cli
from harness_ext.sensitivity import output
from tests.vllm_server.server import KEY, MODEL, serve

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.vllm]


def test_the_default_model_writes_for_its_own_features(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    arguments = [
        "sensitivity", "--text", "docs:stdlib", "--total-tokens", "6000", "--features", "4",
        "--n-top-ex-for-generation", "5", "--n-iw-ex-for-generation", "3", "--samples", "4",
        "--llm-model", MODEL, "--max-tokens", "300", "--timeout", "240", "--attempts", "2",
        "--cache", str(tmp_path / "cache"), "--output-path", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    with serve(tmp_path / "log", None, "--max-model-len", "4096", plugins=None) as server:
        more = ["--base-url", f"{server.url}/v1"]
        assert cli.main([*arguments, *more]) == 0
        found = json.loads(capsys.readouterr().out)[0]
        assert cli.main([*arguments, *more]) == 0
        again = json.loads(capsys.readouterr().out)[0]
    assert found["n_features"] == 4
    assert found["llm"]["usage"]["sent"] >= 4
    assert found["llm"]["usage"]["completion_tokens"] > 0
    assert again["llm"]["usage"]["sent"] <= sum(
        found["llm"]["tries"].get(kind, 0) for kind in ("malformed",)
    )
    # The originals are texts on which the features fired.
    assert found["mean"]["original"]["value"] > 0.5
    assert sum(found["llm"]["tries"].values()) >= 4
    folder = tmp_path / "out" / "default"
    assert len(list(folder.glob("*.csv"))) == 6
    assert (folder / output.PAGE).stat().st_size > 10_000
