"""Plain `lm_eval`, in its own process, on models that know nothing of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness_ext.corpora import DATA_ENV
from tests.tasks.reasoning import REASONING, ROOT, SHARED, make_data
from tests.tiny_models import save_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SHARED / "math500_test.jsonl").is_file(),
        reason=f"no math500_test.jsonl in {DATA_ENV} or ../shared/data",
    ),
]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


def lm_eval(out: Path, data: Path, *args: str) -> subprocess.CompletedProcess:
    command = Path(sys.executable).with_name("lm_eval")
    env = {**os.environ, "PYTHONPATH": str(ROOT), DATA_ENV: str(data), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [str(command), "run", "--include_path", str(ROOT / "tasks"), *args, "--output_path", out],
        env=env,
        cwd=out,
        capture_output=True,
        text=True,
        timeout=500,
    )


def results_of(out: Path) -> dict:
    (path,) = out.rglob("results_*.json")
    return json.loads(path.read_text())


def test_a_tiny_hf_model_runs_every_reasoning_task(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    make_data(data)
    save_model(tmp_path / "model", chat_template=CHAT, max_position_embeddings=8192)
    tasks = [f"steer_{name}{kind}" for name in REASONING for kind in ("", "_hint")]
    run = lm_eval(
        out,
        data,
        *("--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'},dtype=float32"),
        *("--tasks", ",".join(tasks), "--limit", "2", "--batch_size", "4", "--device", "cpu"),
        *("--gen_kwargs", "max_gen_toks=8", "--apply_chat_template", "--log_samples"),
        *("--metadata", '{"repeats": 2}'),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = results_of(out)
    assert sorted(results["results"]) == sorted(tasks)
    for name in REASONING:
        plain = results["results"][f"steer_{name}"]
        for metric in ("exact_match", "exact_match_lenient", "mean@2", "pass@2", "maj@2"):
            assert 0 <= plain[f"{metric},none"] <= 1
            assert isinstance(plain[f"{metric}_stderr,none"], float)
        # The template opened the reasoning, and eight random tokens did not close it.
        assert plain["truncation,none"] == 1
        assert plain["exact_match,none"] == 0
        assert results["results"][f"steer_{name}_hint"]["truncation,none"] == 1
        assert results["n-samples"][f"steer_{name}"]["effective"] == 2
        assert f"|steer_{name} " in run.stdout
        (samples,) = out.rglob(f"samples_steer_{name}_hint_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        assert [len(line["resps"]) for line in lines] == [4, 4]
        assert [len(resps) for resps in lines[0]["resps"]] == [2] * 4


def test_the_dummy_model_runs_both_groups(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    make_data(data)
    run = lm_eval(out, data, "--model", "dummy", "--tasks", "steer,steer_hint", "--limit", "2")
    assert run.returncode == 0, run.stderr[-3000:]
    results = results_of(out)["results"]
    assert {f"steer_{name}{kind}" for name in REASONING for kind in ("", "_hint")} <= set(results)
    assert results["steer_aqua"]["no_answer,none"] == 1


def test_a_missing_gpqa_ends_in_one_line(tmp_path):
    run = lm_eval(tmp_path, tmp_path, "--model", "dummy", "--tasks", "steer_gpqa_diamond")
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("sae_steered: error: ")
    assert "https://huggingface.co/datasets/Idavidrein/gpqa" in last
    assert "Traceback" not in run.stderr
