"""Limits that hold in every thread and process, on answers that static limits let through."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness_ext import math_process, verifier
from harness_ext.errors import VerifierError

# Two seconds and more of sympy each; no static limit names them.
SLOW = [r"\binom{999999}{499999}", r"(x+y+z+w)^{99}", r"\sin^{999}(x)\cos^{999}(x)"]


@pytest.fixture
def short_limit(monkeypatch):
    """Workers that may compute for half a second, and none left over from or for other tests."""
    math_process.close()
    monkeypatch.setattr(math_process, "CPU_SECONDS", 0.5)
    yield
    math_process.close()


def test_expressions_are_compared():
    assert math_process.compare("x+1", "1+x") == "equal"
    assert math_process.compare("x+1", "1-x") == "different"
    assert math_process.compare("x+1", "x+") == "answer_unreadable"
    assert math_process.compare("x+", "x+1") == "gold_unreadable"


def test_tiny_numbers_are_compared_relative_to_their_size():
    assert math_process.compare(r"\frac{1}{2^{99}}", r"2^{-99}") == "equal"
    assert math_process.compare(r"\frac{1}{2^{99}}", r"2^{-98}") == "different"


def test_a_slow_comparison_ends_and_the_next_one_works(short_limit):
    start = time.monotonic()
    assert math_process.compare("x+1", SLOW[0]) == "limit"
    assert time.monotonic() - start < 60  # half a second of processor time, on any machine
    assert math_process.compare("x+1", "1+x") == "equal"


def test_many_threads_share_a_few_workers(short_limit):
    pairs = [("y+1", "1+y"), ("y+1", "y+2"), ("y^2", "y y")] * 4
    pairs[1:1] = [("y+1", SLOW[1]), ("y+1", SLOW[2])]
    most = []

    def work(pair):
        most.append(len(math_process._pool.all))
        return math_process.compare(*pair)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(work, pairs))
    assert results[1:3] == ["limit", "limit"]
    assert results[:1] + results[3:] == ["equal", "different", "equal"] * 4
    assert 1 <= max(most) <= math_process.MAX_PROCESSES


def test_a_worker_that_somebody_killed_is_replaced():
    math_process.close()
    assert math_process.compare("x+1", "1+x") == "equal"
    (worker,) = math_process._pool.all
    worker.process.kill()
    worker.process.wait()
    assert math_process.compare("z+1", "1+z") == "equal"
    assert math_process._pool.all != [worker]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a POSIX matter")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_gets_workers_of_its_own():
    assert math_process.compare("x+1", "1+x") == "equal"
    ours = {w.process.pid for w in math_process._pool.all}
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_in_a_child, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    found = [queue.get(timeout=120) for _ in children]
    for child in children:
        child.join(60)
    assert [result for result, _ in found] == ["equal", "equal"]
    assert all(not ours & set(pids) for _, pids in found)
    assert math_process.compare("x+3", "3+x") == "equal"


def _in_a_child(queue):
    result = math_process.compare("x+2", "2+x")
    queue.put((result, [w.process.pid for w in math_process._pool.all]))
    math_process.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded():
    math_process.close()
    math_process.compare("x+1", "1+x")
    (worker,) = math_process._pool.all
    with open(f"/proc/{worker.process.pid}/limits") as file:
        line = next(line for line in file if line.startswith("Max address space"))
    assert int(line.split()[3]) <= math_process.MEMORY_BYTES


def test_workers_end_with_the_program():
    code = (
        "from harness_ext import math_process as m\n"
        "assert m.compare('x+1', '1+x') == 'equal'\n"
        "import sys; sys.stdout.write(str(m._pool.all[0].process.pid))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_workers_end_with_a_program_that_was_killed():
    code = (
        "import os, signal\nfrom harness_ext import math_process as m\n"
        "assert m.compare('x+1', '1+x') == 'equal'\n"
        "print(m._pool.all[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pid, deadline = int(done.stdout), time.monotonic() + 30
    while time.monotonic() < deadline and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"  # nobody waits for an orphan
    except OSError:
        return True


def test_the_callers_alarm_and_ctrl_c_are_left_alone():
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert math_process.compare("w^2+1", "1+w^2") == "equal"
        deadline = time.monotonic() + 10
        while not rang and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rang == [1]


def test_a_worker_that_cannot_start_says_why_and_what_to_check(monkeypatch, tmp_path):
    broken = tmp_path / "worker.py"
    broken.write_text(
        "import json\nprint(json.dumps({'failed': 'ImportError: no math_verify'}), flush=True)\n"
    )
    math_process.close()
    monkeypatch.setattr(math_process, "_WORKER", broken)
    with pytest.raises(VerifierError, match=r"ImportError: no math_verify.*import math_verify"):
        math_process.compare("x", "y")
    assert math_process._pool.all == []


def test_an_answer_from_a_thread_that_is_not_the_main_one(short_limit):
    found = {}

    def work():
        found["slow"] = verifier.compare(r"\frac{\pi}{7}", SLOW[0])
        found["fast"] = verifier.compare("v^2+1", "1+v^2")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert found == {"slow": "limit", "fast": "equal"}
