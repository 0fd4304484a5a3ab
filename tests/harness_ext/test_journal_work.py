"""Sharing out jobs: each once, whoever does it, in whatever order it is finished."""

import os
import signal
import time

import pytest

from harness_ext.generation import Generation
from harness_ext.journal import Entry, Journal
from harness_ext.journal_work import Work


class Job:
    """A job whose name is its key."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def response(job) -> list[Entry]:
    facts = {"n_tokens": 1, "n_reasoning_tokens": 0, "finish_reason": "stop", "seed": None}
    made = Generation(f"of {job.name}", reasoning="", final="", intervention="none", **facts)
    return [Entry(made)]


def key(name: str) -> str:
    return name.rjust(32, "0")


def jobs(names):
    return [Job(name) for name in names]


def work_on(journal, items, stored):
    return Work(
        journal,
        items,
        lambda job: [key(job.name)],
        lambda job, entries: stored.append((job.name, str(entries[0].response))),
    )


def test_without_a_journal_all_is_handed_out_in_order():
    items, batches, stored = jobs("abcab"), [], []
    with work_on(None, items, stored) as work:
        while batch := work.take(lambda left: 2):
            work.finish(batch, [response(job) for job in batch])
            batches.append(batch)
    assert batches == [items[:2], items[2:4], items[4:]]
    assert (work.made, work.resumed, stored) == (5, 0, [])


def test_jobs_of_one_key_are_done_once(tmp_path):
    with Journal.open(tmp_path) as journal:
        stored, done = [], []
        with work_on(journal, jobs("aabca"), stored) as work:
            while batch := work.take(lambda left: 3):
                work.finish(batch, [response(job) for job in batch])
                done += batch
        assert str(done) == "[a, b, c]"
        assert stored == [("a", "of a")] * 2
        assert (work.made, work.resumed) == (3, 2)


def test_an_engine_that_answers_out_of_order(tmp_path):
    with Journal.open(tmp_path) as journal:
        stored = []
        with work_on(journal, jobs("abcda"), stored) as work:
            batch = work.take(len)
            assert str(batch) == "[a, b, c, d]"
            assert work.take(len) == []  # the second `a` hangs on the first
            for job in reversed(batch[1:]):
                work.finish([job], [response(job)])
                assert key(job.name) in journal
            assert work.take(len) == []
            work.finish(batch[:1], [response(batch[0])])
            assert work.take(len) == []
        assert stored == [("a", "of a")]


def test_the_size_is_asked_of_what_is_really_handed_out(tmp_path):
    """The long jobs are another process's: how many fit is asked of the others."""
    names = ["aaaa", "aaa", "b", "c", "d"]
    with Journal.open(tmp_path) as journal:
        child = os.fork()
        if child == 0:
            mine = Journal.open(tmp_path)
            mine.claim(key("aaaa"))
            mine.claim(key("aaa"))
            (tmp_path / "claimed").touch()
            time.sleep(60)
            os._exit(0)
        try:
            while not (tmp_path / "claimed").exists():
                time.sleep(0.01)
            asked = []

            def size_of(left):
                asked.append([job.name for job in left])
                return 3 if len(left[0].name) > 1 else 2

            with work_on(journal, jobs(names), []) as work:
                assert str(work.take(size_of)) == "[b, c]"
                assert asked == [names, ["b", "c", "d"]]
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.mark.parametrize("fate", ["finishes", "dies"])
def test_what_another_process_is_at_is_waited_for(tmp_path, fate):
    with Journal.open(tmp_path) as journal:
        child = os.fork()
        if child == 0:
            mine = Journal.open(tmp_path)
            mine.claim(key("b"))
            (tmp_path / "claimed").touch()
            time.sleep(0.7)
            if fate == "finishes":
                mine.put(key("b"), response(Job("b"))[0])
            os.kill(os.getpid(), signal.SIGKILL)
        while not (tmp_path / "claimed").exists():
            time.sleep(0.01)
        stored, done = [], []
        with work_on(journal, jobs("abc"), stored) as work:
            while batch := work.take(len):
                work.finish(batch, [response(job) for job in batch])
                done.append(str(batch))
        os.waitpid(child, 0)
        if fate == "finishes":
            assert (done, stored) == (["[a, c]"], [("b", "of b")])
        else:
            assert (done, stored) == (["[a, c]", "[b]"], [])


def test_a_failure_gives_the_claims_back(tmp_path):
    def fails():
        with Journal.open(tmp_path) as journal, work_on(journal, jobs("ab"), []) as work:
            work.take(len)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    child = os.fork()
    if child == 0:
        other = Journal.open(tmp_path)
        os._exit(0 if other.claim(key("a")) and other.claim(key("b")) else 1)
    assert os.waitpid(child, 0)[1] == 0
