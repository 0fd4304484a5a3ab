"""The response journal by itself: what comes back, what never does, and who may write at once."""

import json
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from harness_ext.errors import HarnessError
from harness_ext.generation import Generation
from harness_ext.journal import Entry, Journal, JournalError, response_key
from interventions.editor import EditCounts
from tests.journal_entries import REQUEST, files, fill, generation, key


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text": "\ud800 lone surrogate, \u2028 separator, \x00, \n, 日本 🦊"},
        {"text": "", "reasoning": "", "final": "", "n_tokens": 1},
        {"seed": None, "finish_reason": "length"},
    ],
)
def test_a_generation_comes_back_equal_in_every_attribute(tmp_path, changes):
    wanted = generation(**changes)
    counts = (EditCounts(12, 1, None), EditCounts(3, 0, 2))
    with Journal.open(tmp_path) as journal:
        journal.put(key(1), Entry(wanted, counts, {"qid": "q1"}))
        at_once = journal.get(key(1))
    with Journal.open(tmp_path) as journal:
        later = journal.get(key(1))
    for entry in (at_once, later):
        assert entry is not None
        assert isinstance(entry.response, Generation)
        assert entry.response == wanted
        assert vars(entry.response) == vars(wanted)
        assert pickle.dumps(entry.response) == pickle.dumps(wanted)
        assert (entry.counts, entry.info) == (counts, {"qid": "q1"})


@pytest.mark.parametrize("score", [-1 / 3, -math.inf, 0.0, -1e-300])
def test_a_score_comes_back_to_the_last_bit(tmp_path, score):
    with Journal.open(tmp_path) as journal:
        journal.put(key(1), Entry((score, True)))
    with Journal.open(tmp_path) as journal:
        assert journal.get(key(1)) == Entry((score, True))


def test_what_would_not_come_back_equal_is_refused(tmp_path):
    with Journal.open(tmp_path) as journal:
        with pytest.raises(JournalError, match="would not come back equal"):
            journal.put(key(1), Entry(generation(seed=(1, 2))))
        with pytest.raises(JournalError, match="plain data"):
            journal.put(key(1), Entry(generation(seed=object())))
        with pytest.raises(JournalError, match="plain data"):
            journal.put(key(1), Entry(generation(), info={"x": math.nan}))
        assert len(journal) == 0


@pytest.mark.parametrize("bad", ["", "a", "0" * 32, "a" * 33, "a" * 31 + '"'])
def test_only_keys_of_response_key_are_taken(tmp_path, bad):
    with Journal.open(tmp_path) as journal:
        with pytest.raises(JournalError, match="make it with response_key"):
            journal.put(bad, Entry(generation()))
        assert journal.get(bad) is None


OTHERS = {
    "backend": "vllm",
    "model": "0123456789abcdee",
    "intervention": "fedcba9876543210",
    "prompt": [1, 2, 4],
    "decoding": {"max_tokens": 6, "until": ["\n"], "sampling": {"temperature": 0.6}},
    "seed": 8,
    "continuation": [5],
}


def test_every_part_of_a_request_is_in_its_key():
    keys = {response_key(**REQUEST)}
    keys |= {response_key(**{**REQUEST, name: other}) for name, other in OTHERS.items()}
    for changed in (
        {"until": []},
        {"until": ["\n", "Q:"]},
        {"sampling": None},
        {"sampling": {"temperature": 0.6000001}},
    ):
        keys.add(response_key(**{**REQUEST, "decoding": {**REQUEST["decoding"], **changed}}))
    keys.add(response_key(**{**REQUEST, "seed": None}))
    keys.add(response_key(**{**REQUEST, "prompt": [1, 23]}))
    assert len(keys) == 1 + len(OTHERS) + 6
    assert all(len(k) == 32 for k in keys)


def test_the_key_is_the_same_in_every_version_and_process():
    """A changed key makes every journal of every user useless: change it on purpose only."""
    turned = {**REQUEST, "decoding": dict(reversed(REQUEST["decoding"].items()))}
    assert response_key(**turned) == response_key(**REQUEST) == "2c732f6ff002f248212dfa8d68d2a85a"


def test_a_key_of_something_that_has_no_text_is_refused():
    with pytest.raises(JournalError, match="cannot be a journal key"):
        response_key(**{**REQUEST, "decoding": {"processor": object()}})


def test_the_first_response_to_a_request_holds(tmp_path):
    fill(tmp_path, [1], "first")
    fill(tmp_path, [1, 2], "second")
    with Journal.open(tmp_path) as journal:
        assert [journal.get(key(n)).response for n in (1, 2)] == ["first 1", "second 2"]
    assert sum(len(file.read_text().splitlines()) for file in files(tmp_path)) == 2 + 2


def test_of_two_processes_that_made_one_response_every_later_one_reads_the_same(tmp_path):
    with Journal.open(tmp_path) as one, Journal.open(tmp_path) as two:
        one.put(key(1), Entry(generation("one")))
        two.put(key(1), Entry(generation("two")))
    read = set()
    for _ in range(3):
        with Journal.open(tmp_path) as journal:
            assert len(journal) == 1
            read.add(journal.get(key(1)).response)
    assert len(read) == 1


def test_files_are_json_lines_that_say_who_wrote_them(tmp_path):
    with Journal.open(tmp_path, {"torch": "2.13"}) as journal:
        journal.put(key(1), Entry(generation("x")))
        assert journal.sources() == []
    (file,) = files(tmp_path)
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert first["entry"] == {"format": 1, "facts": {"torch": "2.13"}}
    assert (second["key"], second["entry"]["text"]) == (key(1), "x")
    with Journal.open(tmp_path, {"torch": "2.14"}) as journal:
        journal.get(key(1))
        journal.put(key(2), Entry(generation("y")))
        journal.get(key(2))
        assert journal.sources() == [{"torch": "2.13"}]


def test_a_journal_that_gets_nothing_leaves_no_file(tmp_path):
    with Journal.open(tmp_path / "a" / "b"):
        pass
    assert files(tmp_path / "a" / "b") == []


def write_many(path, first, step, n, barrier):
    with Journal.open(path) as journal:
        barrier.wait(timeout=60)
        for number in range(first, n, step):
            journal.put(key(number), Entry(generation(f"response {number} " * 50)))


def test_several_processes_write_one_journal_at_once(tmp_path):
    spawn = multiprocessing.get_context("fork")
    n, barrier = 400, spawn.Barrier(4)
    # Two of the four write the same records.
    workers = [
        spawn.Process(target=write_many, args=(tmp_path, first, 3, n, barrier))
        for first in (0, 1, 2, 2)
    ]
    for worker in workers:
        worker.start()
    with Journal.open(tmp_path) as journal:
        while any(worker.is_alive() for worker in workers):
            journal.refresh()
            time.sleep(0.01)
        journal.refresh()
        # A record that is being written is no damage.
        assert (len(journal), journal.problems) == (n, [])
        for number in range(n):
            assert journal.get(key(number)).response == f"response {number} " * 50
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(files(tmp_path)) == 4


def test_a_fork_writes_its_own_file(tmp_path):
    journal = Journal.open(tmp_path)
    journal.put(key(1), Entry(generation("parent")))
    child = os.fork()
    if child == 0:
        journal.put(key(2), Entry(generation("child")))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    journal.put(key(3), Entry(generation("parent")))
    assert journal.refresh() == 1
    journal.close()
    assert len(files(tmp_path)) == 2
    with Journal.open(tmp_path) as journal:
        assert (len(journal), journal.problems) == (3, [])


CLAIM = """
import sys, time
from harness_ext.journal import Journal
journal = Journal.open(sys.argv[1])
print([journal.claim(key) for key in sys.argv[2:]], flush=True)
time.sleep(60)
"""


def test_a_claim_ends_with_the_process(tmp_path, repo_root):
    with Journal.open(tmp_path) as journal:
        assert journal.claim("b")
        assert journal.claim("b")
        other = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path), "a", "b", "c"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(repo_root)},
        )
        try:
            assert other.stdout.readline() == "[True, False, True]\n"
            assert not journal.claim("a")
            assert journal.claim("d")
        finally:
            other.send_signal(signal.SIGKILL)
            other.wait()
            other.stdout.close()
        assert journal.claim("a")
        journal.release("a")


def test_errors_are_of_both_families():
    error = pickle.loads(pickle.dumps(JournalError("one line")))
    assert isinstance(error, HarnessError)
    assert isinstance(error, OSError)
    assert str(error) == "one line"
