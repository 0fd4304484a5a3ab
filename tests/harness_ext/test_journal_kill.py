"""The command line with a journal: killed at any moment and started again, or run twice at once."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from harness_ext.journal import Journal

pytestmark = pytest.mark.slow

N_DOCS, REPEATS, BATCH = 20, 3, 4
N_TOKENS = 24

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
GENERATE = """repeats: {repeats}
generation_kwargs: {{until: ["zz"], max_gen_toks: {n}, {more}}}
filter_list: [{{name: all, filter: [{{function: take_first_k, k: {repeats}}}]}}]"""
# lm-eval's command line without the index of its own 14,000 tasks: it takes longer than the rest.
RUNNER = """
import functools, sys
from lm_eval.tasks import TaskManager
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
from harness_ext.__main__ import main
sys.exit(main())
"""
TASKS = ("kill_sampled", "kill_greedy", "kill_choose")
# What a run must hold in the end: samples, answers, and scores (three options, of which two
# share a row with another one).
NEEDED = N_DOCS * (REPEATS + 1 + 3)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("kill")
    docs = tmp_path / "docs.jsonl"
    questions = [f"the cat number {n} sat " + "on a mat " * (n % 4) for n in range(N_DOCS)]
    docs.write_text("".join(json.dumps({"q": q, "a": 1}) + "\n" for q in questions))
    sampled = GENERATE.format(repeats=REPEATS, n=N_TOKENS, more="do_sample: true, temperature: 0.9")
    greedy = GENERATE.format(repeats=1, n=N_TOKENS, more="do_sample: false")
    choose = "doc_to_choice: [' yes', ' no', ' in the end']"
    for name, kind, target, more, metric in (
        ("kill_sampled", "generate_until", '"{{a}}"', sampled, "exact_match"),
        ("kill_greedy", "generate_until", '"{{a}}"', greedy, "exact_match"),
        ("kill_choose", "multiple_choice", "a", choose, "acc"),
    ):
        text = TASK.format(name=name, docs=docs, kind=kind, target=target, more=more, metric=metric)
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def start(tasks, model_folder, sae_folder, repo_root):
    """Return a function that starts lm-eval's command line with a journal, or without."""

    def run(out, journal=None, launcher=(sys.executable,), **options):
        arguments = (
            f"pretrained={model_folder()},dtype=float32,sae_path={sae_folder()},"
            "sae_feature_idx=3,sae_op=clamp,sae_value=5,sae_norm_guard=off"
        )
        if journal:
            arguments += f",journal={journal}"
        command = [*launcher, "-c", RUNNER, "--model", "sae_steered"]
        command += ["--device", "cpu", "--tasks", ",".join(TASKS), "--include_path", str(tasks)]
        command += ["--model_args", arguments, "--batch_size", str(BATCH)]
        command += ["--log_samples", "--output_path", str(out)]
        env = os.environ | {
            "PYTHONPATH": str(repo_root),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "HF_DATASETS_CACHE": str(tasks / "datasets"),
        }
        with out.with_suffix(".err").open("w") as errors:
            return subprocess.Popen(
                command,
                cwd=tasks,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                **options,
            )

    return run


@pytest.fixture(scope="module")
def plain(start, tasks):
    """Return the run that has no journal and is never killed."""
    run = ended(start(tasks / "plain"), tasks / "plain")
    assert "resumed" not in run[2]["receipt"]
    return run


def ended(process, out):
    assert process.wait(timeout=150) == 0, out.with_suffix(".err").read_text()[-4000:]
    (results,) = out.rglob("results_*.json")
    samples = {}
    for name in TASKS:
        (file,) = out.rglob(f"samples_{name}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[name] = {row["doc_id"]: (row["resps"], row["filtered_resps"]) for row in rows}
    found = json.loads(results.read_text())
    return found["results"], samples, found["config"]["sae_steered"]


def written(folder):
    """Return how many responses were ever written, duplicates included."""
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_bytes().splitlines()]
    return sum(not line.startswith(b'{"key":"' + b"0" * 32) for line in lines)


def scores_of(samples):
    return [float(score) for resps, _ in samples["kill_choose"].values() for ((score, _),) in resps]


def check_equal(run, plain):
    for name in ("kill_sampled", "kill_greedy"):
        assert run[1][name] == plain[1][name]
    assert scores_of(run[1]) == pytest.approx(scores_of(plain[1]), abs=1e-4)
    assert run[0].keys() == plain[0].keys()
    receipt = dict(run[2]["receipt"])
    receipt.pop("resumed", None)
    assert receipt == plain[2]["receipt"]


def test_killed_at_random_moments_and_resumed(plain, start, tasks):
    generator, folder = random.Random(os.environ.get("KILL_SEED", "3")), tasks / "killed"
    kills = sorted(generator.sample(range(1, N_DOCS * (REPEATS + 1)), 3))
    held = []
    for number, moment in enumerate(kills):
        out = tasks / f"killed{number}"
        process = start(out, folder)
        while written(folder) < moment and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, out.with_suffix(".err").read_text()[-3000:]
        with Journal.open(folder) as journal:
            held.append(len(journal))
    resumed = ended(start(tasks / "last", folder), tasks / "last")
    check_equal(resumed, plain)
    with Journal.open(folder) as journal:
        assert len(journal) == NEEDED
    # Nothing was generated twice; only what was in flight at a kill is not in a file.
    assert written(folder) - NEEDED <= len(kills)
    facts = resumed[2]["journal"]
    # Scores are counted by row: 2 of 3 options share one.
    assert facts["made"] + facts["resumed"] <= NEEDED
    assert facts["resumed"] >= held[-1] > 0
    assert held == sorted(held)
    print("kills at", kills, "responses held", held, "written", written(folder))  # noqa: T201


def test_two_processes_fill_one_journal_at_once(plain, start, tasks):
    folder, outs = tasks / "shared", [tasks / "a", tasks / "b"]
    first = start(outs[0], folder)
    while not written(folder) and first.poll() is None:
        time.sleep(0.002)
    # Held up in the middle of a batch, which it has claimed, until the other one is at work too.
    first.send_signal(signal.SIGSTOP)
    second = start(outs[1], folder)
    while len(list(folder.glob("*.jsonl"))) < 2 and second.poll() is None:
        time.sleep(0.002)
    first.send_signal(signal.SIGCONT)
    runs = [ended(process, out) for process, out in zip((first, second), outs, strict=True)]
    for run in runs:
        check_equal(run, plain)
        assert run[2]["journal"]["problems"] == []
    with Journal.open(folder) as journal:
        assert len(journal) == NEEDED
    # Shared out, not done twice.
    assert written(folder) == NEEDED
    made = [run[2]["journal"]["made"] for run in runs]
    assert min(made) > BATCH
    print("made", made)  # noqa: T201


def small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, 1 << 15))


def test_a_full_disk_ends_in_one_clear_line_and_loses_nothing(plain, start, tasks):
    out, folder = tasks / "full", tasks / "small"
    process = start(out, folder, preexec_fn=small_files)
    assert process.wait(timeout=150) == 2
    error = out.with_suffix(".err").read_text()
    told = re.search(r"journal '.*' cannot be written: File too large; all (\d+) responses", error)
    assert told, error[-3000:]
    with Journal.open(folder) as journal:
        assert (len(journal), journal.problems) == (int(told[1]), [])
        assert 10 < len(journal) < NEEDED
    run = ended(start(tasks / "again", folder), tasks / "again")
    check_equal(run, plain)
    assert written(folder) == NEEDED


def test_ranks_of_one_run_fill_one_journal_and_one_process_reads_it(plain, start, tasks):
    out, folder = tasks / "ranks", tasks / "ranked"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    launcher += ["--no_python", sys.executable]
    ended(start(out, folder, launcher), out)
    assert len(list(folder.glob("*.jsonl"))) == 2
    one = ended(start(tasks / "one", folder), tasks / "one")
    check_equal(one, plain)
    assert one[2]["journal"]["made"] == 0
    assert written(folder) == NEEDED
