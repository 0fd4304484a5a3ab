import threading

import pytest

from harness_ext.errors import DataError
from harness_ext.verifier import compare, lenient_correct, same_answer, score


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("18", "18", "equal"),
        ("18", "$18.00", "equal"),
        ("1250", "1,250", "equal"),
        ("33", "033", "equal"),
        ("10", r"10\%", "equal"),
        ("0.5", r"\frac{1}{2}", "equal"),
        ("18", "19", "different"),
        ("0", "", "parse_error"),
        ("B", "(B)", "equal"),
        ("B", r"\text{C}", "different"),
        ("B", "nothing", "parse_error"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})", "equal"),
        (r"\left( 3, \frac{\pi}{2} \right)", "3", "different"),
        ("x^2+1", "1+x^2", "equal"),
        ("1,-2", "-2,1", "equal"),
        ("5", "x=5", "equal"),
        (r"\text{Evelyn}", r"\text{Evelyn}", "equal"),
        (r"\text{Evelyn}", r"\text{Ana}", "different"),
        ("5", "??", "parse_error"),
        ("5", r"2003^{2002^{2001}}", "limit"),
        ("5", "x+" + "9" * 61, "limit"),
        ("5", "9" * 61, "different"),
        ("5", "(" * 13 + "5" + ")" * 13, "limit"),
        ("5", "x" * 401, "limit"),
        ("5", "(2^{900})^{900}", "limit"),
        ("5", "2^{123456}", "limit"),
        ("5", "99999!", "limit"),
    ],
)
def test_an_answer_against_gold(gold, answer, expected):
    assert compare(gold, answer) == expected


def test_an_empty_gold_is_an_error_and_not_a_wrong_answer():
    with pytest.raises(DataError, match="gold answer is empty"):
        compare(" ", "3")


def test_a_gold_that_is_a_whole_solution_is_an_error():
    with pytest.raises(DataError, match="2001 characters, limit 2000"):
        compare("x" * 2001, "3")


def test_it_works_in_a_thread_where_alarms_do_not():
    out = []

    def work():
        out.append(compare("y^2+1", "1+y^2"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert out == ["equal"]


@pytest.mark.parametrize(
    ("final", "truncated", "status", "answer", "correct"),
    [
        (r"\boxed{7}", False, "answered", "7", True),
        (r"\boxed{8}", False, "answered", "8", False),
        (r"\boxed{7}", True, "truncated", None, False),
        ("", False, "no_answer", None, False),
        (r"\boxed{??}", False, "parse_error", "??", False),
        (r"\boxed{9^{8^{7}}}", False, "limit", "9^{8^{7}}", False),
    ],
)
def test_status_of_a_response(final, truncated, status, answer, correct):
    scored = score(final, "7", kind="number", truncated=truncated)
    assert (scored.status, scored.answer, scored.correct) == (status, answer, correct)


def test_lenient_scoring_reads_the_whole_response_even_if_cut():
    assert lenient_correct("so 3 + 4 = 7", "7", kind="number")
    assert not lenient_correct("so 3 + 4 = 8", "7", kind="number")
    assert not lenient_correct("", "7", kind="number")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("12", "12.0", True),
        ("12", "13", False),
        (None, "1", False),
        ("1", None, False),
        ("B", "(B)", True),
    ],
)
def test_same_answer(a, b, expected):
    assert same_answer(a, b) is expected
