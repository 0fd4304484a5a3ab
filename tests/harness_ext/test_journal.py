"""The response journal by itself: what comes back, what never does, and what damage costs."""

import json
import math
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time

import pytest

from harness_ext.errors import HarnessError
from harness_ext.generation import Generation
from harness_ext.journal import Entry, Journal, JournalError, response_key
from interventions.editor import EditCounts

REQUEST = {
    "backend": "hf",
    "model": "0123456789abcdef",
    "intervention": "none",
    "prompt": [1, 2, 3],
    "decoding": {"max_tokens": 5, "until": ["\n"], "sampling": {"temperature": 0.6}},
    "seed": 7,
}


def generation(text="a <think>b</think> c", **changes) -> Generation:
    facts = {
        "n_tokens": 9,
        "n_reasoning_tokens": 4,
        "finish_reason": "stop",
        "seed": 2**62 + 1,
        "reasoning": "a <think>b",
        "final": " c",
        "intervention": "fedcba9876543210",
    }
    return Generation(text, **(facts | changes))


def key(number: int) -> str:
    return response_key(**{**REQUEST, "seed": number})


def fill(path, numbers, text="response"):
    with Journal.open(path) as journal:
        journal.put_many([(key(n), Entry(generation(f"{text} {n}"))) for n in numbers])


def files(path):
    return sorted(path.glob("*.jsonl"))


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


@pytest.mark.parametrize("cut", [1, 2, 40, 90, -1])
def test_a_cut_off_last_record_is_dropped_and_said(tmp_path, cut, caplog):
    fill(tmp_path, [1, 2, 3])
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    last = len(whole) - whole.rstrip(b"\n").rfind(b"\n") - 1
    kept = len(whole) - last + (cut if cut > 0 else last - 1)
    os.truncate(file, kept)
    with Journal.open(tmp_path) as journal:
        assert len(journal) == 2
        assert journal.get(key(3)) is None
        (problem,) = journal.problems
        assert "cut off" in problem
        assert str(file) in problem
        assert problem in caplog.text
        journal.put(key(3), Entry(generation("response 3")))
    assert file.read_bytes() == whole[:kept]
    with Journal.open(tmp_path) as journal:
        assert [journal.get(key(n)).response for n in (1, 2, 3)] == [
            f"response {n}" for n in (1, 2, 3)
        ]


def test_any_flipped_byte_costs_its_own_record_and_is_said(tmp_path):
    """Every bit pattern of damage: no damaged text is ever returned, all others are."""
    fill(tmp_path, range(3))
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    starts = [sum(map(len, lines[:n])) for n in range(len(lines))]
    generator = random.Random(0)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= generator.choice([1, 2, 4, 8, 16, 32, 64, 128])
        file.write_bytes(damaged)
        line = max(n for n, start in enumerate(starts) if start <= place)
        with Journal.open(tmp_path) as journal:
            assert journal.problems
            lost = {n for n in range(3) if journal.get(key(n)) is None}
            for n in set(range(3)) - lost:
                assert vars(journal.get(key(n)).response) == vars(generation(f"response {n}"))
        # A lost line end takes the next record with it; line 0 holds no response.
        allowed = {line - 1} | ({line} if whole[place] == 10 else set())
        assert lost <= allowed
        assert line == 0 or line - 1 in lost


def test_damage_after_opening_is_noticed(tmp_path):
    fill(tmp_path, [1, 2])
    (file,) = files(tmp_path)
    with Journal.open(tmp_path) as journal:
        file.write_bytes(file.read_bytes().replace(b"response 1", b"response 9"))
        assert journal.get(key(1)) is None
        assert key(1) not in journal
        assert "damaged" in journal.problems[0]
        assert journal.get(key(2)).response == "response 2"


def test_a_file_that_vanishes_is_noticed(tmp_path):
    fill(tmp_path, [1])
    (first,) = files(tmp_path)
    fill(tmp_path, [2])
    with Journal.open(tmp_path) as journal:
        assert journal.get(key(2)).response == "response 2"
        journal.get(key(1))
        journal.get(key(2))
        first.unlink()
        assert journal.get(key(1)) is None
        assert "cannot be read" in journal.problems[0]


def test_garbage_and_zeros_in_a_file(tmp_path):
    fill(tmp_path, [1])
    fill(tmp_path, [2])
    (tmp_path / "20260101-x.jsonl").write_bytes(b"\x00" * 5000 + b"\n{}\n" + b"\xff" * 10)
    with Journal.open(tmp_path) as journal:
        assert len(journal) == 2
        assert len(journal.problems) == 3


def test_a_newer_format_is_refused(tmp_path):
    from harness_ext.journal_lines import FACTS_KEY, to_line

    (tmp_path / "new.jsonl").write_bytes(to_line(FACTS_KEY, {"format": 2, "facts": {}}))
    with pytest.raises(JournalError, match="journal format 2 and this version reads 1"):
        Journal.open(tmp_path)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "j").write_text("")
    with pytest.raises(JournalError, match="is a file; name a folder"):
        Journal.open(tmp_path / "j")
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal.open(tmp_path / "j" / "k")


def test_a_name_that_lm_eval_took_for_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Journal.open(1) as journal:  # pyright: ignore[reportArgumentType]
        journal.put(key(1), Entry(generation()))
    assert files(tmp_path / "1")
    with pytest.raises(JournalError, match="has no name"):
        Journal.open("")


def open_as_nobody(folder) -> str:
    """Return what another user is told who opens the journal; root may write everywhere."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            Journal.open(".")
            told = "opened"
        except JournalError as error:
            told = str(error)
        os.write(writing, told.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return pipe.read()


def test_a_read_only_folder_is_refused_before_anything_is_generated(tmp_path):
    fill(tmp_path, [1])
    for file in tmp_path.iterdir():
        file.chmod(0o666)
    tmp_path.chmod(0o555)
    told = open_as_nobody(tmp_path)
    assert told == (
        "journal '.' cannot be opened: Permission denied; name a folder that can be written"
    )
    tmp_path.chmod(0o777)
    assert open_as_nobody(tmp_path) == "opened"


def test_a_full_disk_keeps_what_was_written(tmp_path):
    """RLIMIT_FSIZE stops a write in the middle of a record, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal.open(tmp_path)
    journal.put(key(0), Entry(generation("response 0")))
    (file,) = files(tmp_path)
    record = len(file.read_bytes().splitlines(keepends=True)[-1])
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (file.stat().st_size + 2 * record + 50, limits[1])
        )
        rows = [(key(n), Entry(generation(f"response {n}"))) for n in range(1, 6)]
        with pytest.raises(JournalError, match="all 3 responses in it are kept: make room"):
            journal.put_many(rows)
        with pytest.raises(JournalError, match="File too large"):
            journal.put(*rows[3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    with Journal.open(tmp_path) as other:
        assert other.problems == []
        assert [n for n in range(6) if key(n) in other] == [0, 1, 2]
    # The same journal goes on when there is room again.
    journal.put_many(rows[2:])
    journal.close()
    with Journal.open(tmp_path) as other:
        assert other.problems == []
        assert [other.get(key(n)).response for n in range(6)] == [f"response {n}" for n in range(6)]


def test_a_disk_that_is_full_from_the_start(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Journal.open(tmp_path) as journal:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
            with pytest.raises(JournalError, match="all 0 responses"):
                journal.put(key(1), Entry(generation()))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        assert files(tmp_path) == []
        journal.put(key(1), Entry(generation()))
    with Journal.open(tmp_path) as journal:
        assert (len(journal), journal.problems) == (1, [])


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
