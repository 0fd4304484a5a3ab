"""Verifier and judge in lm-eval runs, plain `lm_eval` included."""

import json
import logging
import os
import re
import subprocess
import sys

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from harness_ext.errors import LLMConfigError, LLMRequestError, TaskConfigError
from harness_ext.generation import Generation
from harness_ext.llm.task_hook import task_llm
from harness_ext.paths import tasks_dir
from harness_ext.records import read_records
from tests.llm_server import completion, failure, fields_of, serve

KEY = "sk-test-9876543210-secret-key"


class Words(LM):
    """Answers in words that the rules cannot read."""

    def generate_until(self, requests, disable_tqdm=False):
        return [self.answer(r) for r in requests]

    def answer(self, request):
        return generation("I think. ", "It is in words.")

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


class Spelling(Words):
    """Gives some right answers as a word, and else no number."""

    def answer(self, request):
        words = {"11": "eleven", "7": "seven"}
        gold = request.doc["answer"]
        return generation("", f"There are {words.get(gold, 'some')} of them.")


class Follower(Words):
    """Follows every hint and says so; without one it answers 0."""

    def answer(self, request):
        hinted = re.search(r"the answer is ([\d,]+)\.", request.args[0])
        if hinted is None:
            return generation("I think. ", "The answer is 0.")
        return generation("The professor says so. ", f"The answer is {hinted.group(1)}.")


def generation(reasoning, final):
    return Generation(
        f"{reasoning}</think>{final}", n_tokens=9, n_reasoning_tokens=4, finish_reason="stop",
        seed=None, reasoning=reasoning, final=final, intervention="none",
    )  # fmt: skip


def obliging(n, body):
    """Judge by the word professor; verify nothing."""
    fields = fields_of(body)
    known = {"request_id": fields["request_id"]}
    if "hint" in fields:
        piece = (fields["reasoning"] + fields["final"])[0]
        said = "professor" in piece
        return completion({
            **known, "evidence": piece if said else "", "mentions": said,
            "relies": "decisive" if said else "none", "channel": "none",
        })  # fmt: skip
    if not fields.get("reference_answer"):
        return completion({**known, "quote": "", "verdict": "no_answer"})
    return completion({**known, "quote": "in words", "verdict": "different"})


def evaluate(server, tmp_path, task, limit=6, model=Words, **metadata):
    metadata = {
        "llm_base_url": server.url, "llm_model": "judge", "llm_cache": str(tmp_path / "cache"),
        "verifier": "llm", "llm_timeout": 20, "llm_tries": 2, **metadata,
    }  # fmt: skip
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False, metadata=metadata)
    return lm_eval.simple_evaluate(
        model=model(), tasks=[task], task_manager=manager, log_samples=True, limit=limit
    )


def test_a_task_asks_about_all_failures_at_once_and_exact_match_stays(tmp_path):
    def behaviour(n, body):
        fields = fields_of(body)
        if not fields.get("reference_answer"):
            return obliging(n, body)
        answer = obliging(n, body)
        answer.delay = 0.2
        return answer

    with serve(behaviour) as server:
        results = evaluate(server, tmp_path, "steer_arith", limit=8)
        # One small question before anything is generated, and eight failures.
        assert len(server.bodies) == 9
        assert server.most_at_once > 2
        values = results["results"]["steer_arith"]
        assert values["exact_match,none"] == 0
        assert values["exact_match_verified,none"] == 0
        assert values["exact_match_verified_stderr,none"] == 0
        samples = results["samples"]["steer_arith"]
        kept = [s["doc"]["_diag"]["records"][0]["verified"] for s in samples]
        assert {v["status"] for v in kept} == {"different"}
        assert all(json.loads(v["replies"][0]["text"])["request_id"] for v in kept)
        # The same run again sends nothing.
        again = evaluate(server, tmp_path, "steer_arith", limit=8)
        assert len(server.bodies) == 9
    assert again["results"]["steer_arith"]["exact_match_verified,none"] == 0


def test_verified_answers_count_in_their_own_metric_alone(tmp_path):
    def behaviour(n, body):
        fields = fields_of(body)
        end = fields["response_end"]
        return completion({
            "request_id": fields["request_id"], "quote": end,
            "verdict": "equivalent" if end else "no_answer",
        })  # fmt: skip

    with serve(behaviour) as server:
        results = evaluate(server, tmp_path, "steer_arith", limit=30, model=Spelling)
    values = results["results"]["steer_arith"]
    golds = [s["target"] for s in results["samples"]["steer_arith"]]
    right = [float(g in ("11", "7")) for g in golds]
    assert sum(right) >= 2
    assert values["exact_match,none"] == 0
    assert values["exact_match_verified,none"] == pytest.approx(sum(right) / 30)
    p = sum(right) / 30
    assert values["exact_match_verified_stderr,none"] == pytest.approx((p * (1 - p) / 29) ** 0.5)
    statuses = {
        r["verified"]["status"]
        for s in results["samples"]["steer_arith"] for r in s["doc"]["_diag"]["records"]
    }  # fmt: skip
    # The model called all of them right; where no number is named it was not believed.
    assert statuses == {"equivalent", "refused"}


def test_a_hint_task_has_verified_accuracy_and_the_judges_metrics(tmp_path):
    with serve(obliging) as server:
        results = evaluate(
            server, tmp_path, "steer_arith_hint", limit=5, judge="llm", model=Follower
        )
    values = results["results"]["steer_arith_hint"]
    assert values["acc_correct,none"] == values["acc_verified_correct,none"] == 1
    assert values["acc_wrong,none"] == values["acc_verified_wrong,none"] == 0
    for sign in ("", "_correct"):
        assert values[f"n_flips{sign},none"] == 5
        assert values[f"verbalization_judge{sign},none"] == 1
        assert values[f"silent_use_judge{sign},none"] == 0
        assert values[f"dependence{sign},none"] == 1
    assert values["false_positive_rate_judge,none"] == 0
    judged = [
        r["judge"]["status"]
        for s in results["samples"]["steer_arith_hint"] for r in s["doc"]["_diag"]["records"]
        if "judge" in r
    ]  # fmt: skip
    assert judged == ["parsed"] * 20


def test_it_is_off_by_default_and_on_as_in_the_seed_project(tmp_path):
    assert task_llm("t", {}, {}) is None
    assert task_llm("t", {}, {"PROCESSOR": "m"}) is None
    assert task_llm("t", {}, {"OPENROUTER_API_KEY": KEY}) is None
    env = {"PROCESSOR": "m", "OPENROUTER_API_KEY": KEY}
    assert task_llm("t", {"verifier": "none"}, env) is None
    assert task_llm("t", {"verifier": None, "judge": None}, env) is None
    on = task_llm("t", {"llm_cache": tmp_path}, env)
    assert on is not None
    assert (on.verifier, on.judge) == (True, False)
    assert on.settings.base_url == "https://openrouter.ai/api/v1"


@pytest.mark.parametrize(
    ("metadata", "env", "error", "message"),
    [
        ({"verifier": "yes"}, {}, TaskConfigError, "t: metadata key 'verifier': Input should be"),
        ({"verifier": "llm"}, {}, LLMConfigError, "t: no model for the LLM endpoint"),
        ({"judge": "llm", "llm_model": "m"}, {}, LLMConfigError, "t: no LLM endpoint"),
        ({"llm_api_key": KEY}, {}, TaskConfigError, "take 'llm_api_key' out, and set"),
        (
            {"verifier": "llm", "llm_concurrency": "many"}, {}, TaskConfigError,
            "metadata key 'llm_concurrency'",
        ),
    ],
)  # fmt: skip
def test_bad_metadata_is_one_line_without_secrets(metadata, env, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        task_llm("t", metadata, env)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_key_ends_the_run_before_it_generates(tmp_path, monkeypatch):
    def never(self, requests, disable_tqdm=False):
        raise AssertionError("generated")

    monkeypatch.setattr(Words, "generate_until", never)
    with (
        serve(lambda n, body: failure(401, "bad key")) as server,
        pytest.raises(LLMRequestError, match="401 - bad key"),
    ):
        evaluate(server, tmp_path, "steer_arith")


def test_an_endpoint_that_dies_later_loses_no_responses(tmp_path, caplog):
    def behaviour(n, body):
        return obliging(n, body) if n == 0 else failure(402, "no credit left")

    with serve(behaviour) as server:
        results = evaluate(server, tmp_path, "steer_arith")
    values = results["results"]["steer_arith"]
    assert values["exact_match,none"] == 0
    assert values["exact_match_verified,none"] is None
    assert values["exact_match_verified_stderr,none"] == "N/A"
    assert "no credit left" in caplog.text
    assert "sae-steered judge" in caplog.text
    samples = results["samples"]["steer_arith"]
    assert not any("verified" in s["doc"]["_diag"]["records"][0] for s in samples)


@pytest.mark.slow
@pytest.mark.parametrize("outcome", ["works", "401"])
def test_plain_lm_eval_writes_the_key_nowhere(tmp_path, repo_root, outcome):
    """The whole program as a user starts it: results, samples, logs and cache are searched."""
    out = tmp_path / "out"

    def behaviour(n, body):
        if outcome == "401":
            return failure(401, f"Incorrect API key provided: {KEY}")
        return obliging(n, body)

    with serve(behaviour) as server:
        env = {
            **os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.url,
            "PROCESSOR": "judge", "SAE_STEERED_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(repo_root), "LMEVAL_LOG_LEVEL": "DEBUG", "OPENAI_LOG": "debug",
        }  # fmt: skip
        found = subprocess.run(
            [sys.executable, "-m", "harness_ext", "--model", "dummy", "--tasks", "steer_arith",
             "--include_path", str(tasks_dir()), "--limit", "4", "--metadata", "verifier=llm",
             "--output_path", str(out), "--log_samples"],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    if outcome == "401":
        assert found.returncode != 0
        assert "check the key in OPENAI_API_KEY" in found.stderr
    else:
        assert found.returncode == 0, found.stderr[-2000:]
        assert "exact_match_verified" in found.stdout
        [samples] = out.rglob("samples_*.jsonl")
        assert all(r.verified is not None for r in read_records(samples))
    written = [p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file()]
    assert outcome == "401" or len(written) >= 4
    assert not [t for t in [*written, found.stdout, found.stderr] if KEY in t]


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
