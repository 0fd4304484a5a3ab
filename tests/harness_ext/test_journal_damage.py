"""What damage, a full disk and a bad folder cost a response journal: never a wrong response."""

import os
import random
import resource
import signal

import pytest

from harness_ext.journal import Entry, Journal, JournalError
from tests.journal_entries import files, fill, generation, key


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
