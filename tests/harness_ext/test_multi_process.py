"""accelerate: two processes give what one gives, and each checks its own receipt."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {docs}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
doc_to_target: {target}
{more}
metric_list: [{{metric: {metric}}}]
"""


@pytest.fixture
def tasks(tmp_path):
    docs = tmp_path / "docs.jsonl"
    questions = [f"the cat number {n} sat " + "on a mat " * (n % 4) for n in range(7)]
    docs.write_text("".join(json.dumps({"q": q, "a": 1}) + "\n" for q in questions))
    sampled = (
        "repeats: 2\n"
        "generation_kwargs: {until: [], max_gen_toks: 8, do_sample: true, temperature: 0.9}\n"
        "filter_list: [{name: all, filter: [{function: take_first_k, k: 2}]}]"
    )
    (tmp_path / "generate.yaml").write_text(
        TASK.format(
            name="two_generate",
            docs=docs,
            kind="generate_until",
            target='"{{a}}"',
            more=sampled,
            metric="exact_match",
        )
    )
    (tmp_path / "choose.yaml").write_text(
        TASK.format(
            name="two_choose",
            docs=docs,
            kind="multiple_choice",
            target="a",
            more="doc_to_choice: [' yes', ' no', ' in the end']",
            metric="acc",
        )
    )
    return tmp_path


def evaluate(tasks, launcher, model_args, repo_root, out):
    command = [*launcher, "-m", "harness_ext", "--model", "sae_steered", "--device", "cpu"]
    command += ["--tasks", "two_generate,two_choose", "--include_path", str(tasks)]
    command += ["--model_args", model_args, "--batch_size", "2"]
    command += ["--log_samples", "--output_path", str(out)]
    env = os.environ | {
        "PYTHONPATH": str(repo_root),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tasks,
        env=env,
        timeout=150,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (results,) = out.rglob("results_*.json")
    samples = {}
    for name in ("two_generate", "two_choose"):
        (file,) = out.rglob(f"samples_{name}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[name] = {row["doc_id"]: row["resps"] for row in rows}
    return json.loads(results.read_text()), samples


def test_two_processes_equal_one(tasks, model_folder, sae_folder, repo_root):
    arguments = (
        f"pretrained={model_folder()},dtype=float32,sae_path={sae_folder()},"
        "sae_feature_idx=3,sae_op=add,sae_value=5,sae_norm_guard=off"
    )
    one_results, one = evaluate(tasks, [sys.executable], arguments, repo_root, tasks / "one")
    # `accelerate launch` starts several processes on a CPU by mpirun only; torchrun is what it
    # uses elsewhere, and Accelerator then finds the same environment.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    two_results, two = evaluate(tasks, launcher, arguments, repo_root, tasks / "two")
    assert set(one["two_generate"]) == set(two["two_generate"]) == set(range(7))
    # Seven questions do not share out evenly: lm-eval gives the last rank a padding request,
    # whose responses it appends to that rank's last question.
    for doc, responses in one["two_generate"].items():
        assert two["two_generate"][doc][0][:2] == responses[0]
    for doc, responses in one["two_choose"].items():
        for ours, theirs in zip(responses, two["two_choose"][doc], strict=True):
            assert float(ours[0][0]) == pytest.approx(float(theirs[0][0]), abs=1e-4)
    assert one_results["results"].keys() == two_results["results"].keys()
    receipts = [r["config"]["sae_steered"]["receipt"] for r in (one_results, two_results)]
    assert receipts[0]["edits"][0]["selected"] > receipts[1]["edits"][0]["selected"] > 0
    prints = {r["config"]["sae_steered"]["intervention"] for r in (one_results, two_results)}
    assert len(prints) == 1
