import time
from fractions import Fraction

import pytest

from harness_ext.extract import (
    choice_letter,
    extract,
    last_boxed,
    last_number,
    parse_number,
    stated_answer,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{25} then \boxed{204}", "204"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \text{B} }", r"\text{B}"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}"),
        (r"\boxed 7", "7"),
        (r"\boxed{5\}", None),
        (r"\boxed{a {b} \} c}", r"a {b} \} c"),
        (r"{\boxed{3}", "3"),
        (r"\fbox{9}", "9"),
        (r"first \boxed{3}, then \boxed{4 and so", "3"),
        (r"\boxed{18}, put within \boxed{} as asked", "18"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        ("no box", None),
        (r"\boxed", None),
        ("", None),
    ],
)
def test_the_last_balanced_box(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 12.", "12"),
        ("The final answer is: 12", "12"),
        ("Answer: B", "B"),
        ("#### 1,250", "1,250"),
        ("The answer is 3. No, the answer is 4.", "4"),
        ("the answers are in the book", None),
        ("nothing", None),
    ],
)
def test_the_stated_answer(text, expected):
    found = stated_answer(text)
    assert (found and found.rsplit("answer is ", 1)[-1]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12),
        ("033", 33),
        ("-5", -5),
        ("\u22125", -5),
        ("+5", 5),
        ("1,234", 1234),
        ("1,234,567.50", Fraction("1234567.5")),
        ("$1,234.50", Fraction("1234.5")),
        (r"\$18", 18),
        ("$18$", 18),
        (r"18\%", 18),
        ("50%", 50),
        ("12.", 12),
        ("12.0", 12),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"10{,}000", 10000),
        (r"18\text{ dollars}", 18),
        ("12 apples", 12),
        ("**7**", 7),
        (r"\(7\)", 7),
        (r"45^\circ", 45),
        ("1,23", None),
        ("x=5", None),
        ("3 + 4", None),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("twelve", 12),
        ("umpteen", None),
        ("", None),
        ("1 2", None),
        ("10 080", 10080),
        (r"10,\!080", 10080),
        (r"1\frac{4}{5}", Fraction(9, 5)),
        (r"-1\frac{4}{5}", Fraction(-9, 5)),
        (r"3\frac{7}{2}", None),
        ("1 4/5", Fraction(9, 5)),
        (r"\frac43", Fraction(4, 3)),
        (r"\frac{-2}{3}", Fraction(-2, 3)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"6.72 \times 10^{-5}", Fraction(672, 10**7)),
        ("2.5e3", 2500),
        ("1e999", None),
        ("5 million", 5_000_000),
        (r"15\mbox{ cm}^2", 15),
        ("126km", 126),
        ("Rs. 697.50", Fraction("697.5")),
        ("5 m", 5),
        ("2 x", None),
        ("4 or 2", None),
        ("4 and 3", None),
        ("4 to 2", None),
        ("4 cm^2", 4),
        ("4 cm^{3}", 4),
        ("2k", None),
        ("--5", None),
        ("(7)", 7),
        ("(3,4]", None),
        ("9" * 101, None),
    ],
)
def test_a_text_that_is_one_number(text, expected):
    assert parse_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("(B).", "B"),
        ("B) 12", "B"),
        (r"\text{B}", "B"),
        ("**C**", "C"),
        ("$D$", "D"),
        ("A man has", None),
        ("A", "A"),
        ("Because", None),
        ("K", None),
        ("b", "B"),
        ("b) 12", "B"),
        ("a lot", None),
        ("Option C", "C"),
        (r"\textbf{(B)}\ 12", "B"),
        (r"\(\text{(E)}\)", "E"),
        (r"\Delta E", None),
        (r"E = mc^2", None),
        ("A because it fits", "A"),
        ("I think so", None),
        ("BC", None),
        ("I'm not sure", None),
        ("", None),
    ],
)
def test_the_letter_of_an_option(text, expected):
    assert choice_letter(text) == expected


@pytest.mark.parametrize(
    ("text", "kind", "value", "how"),
    [
        (r"3 + 4 = 7, so \boxed{7}. The answer is 8.", "number", "7", "boxed"),
        (r"\boxed{x = 7}", "number", "7", "boxed"),
        (r"\boxed{7 \text{ apples}}", "number", r"7 \text{ apples}", "boxed"),
        ("#### 12", "number", "12", "stated"),
        ("So the answer is 12 apples.\nDone with 2 steps.", "number", "12 apples", "stated"),
        ("The answer is 3 + 4 = 7.", "number", "7", "stated"),
        ("The answer is 12, since 3 x 4 makes 12.", "number", "12", "stated"),
        ("The answer is about 12 apples.", "number", "12", "stated"),
        ("To answer: it has 3 and 4, so 7.", "number", "7", "last_number"),
        (r"\boxed{2^{3}}", "number", "2^{3}", "boxed"),
        (r"\boxed{3+4}", "number", "3+4", "boxed"),
        ("He has 3 + 4 = 7 apples.", "number", "7", "last_number"),
        ("He pays $1,250.50.", "number", "1,250.50", "last_number"),
        ("no number here", "number", None, "none"),
        ("", "number", None, "none"),
        ("it is 7", "math", None, "none"),
        (r"\boxed{x^2+1}", "math", "x^2+1", "boxed"),
        ("Answer: (C)", "choice", "C", "stated"),
        ("I think\n\n**D**", "choice", "D", "stated"),
        ("A man walked", "choice", None, "none"),
        (r"\boxed{\text{B}}", "choice", "B", "boxed"),
    ],
)
def test_what_a_response_gives_as_its_answer(text, kind, value, how):
    found = extract(text, kind=kind)
    assert (found.value, found.how) == (value, how)


def test_last_number_keeps_separators_and_ignores_word_digits():
    assert last_number("first 3, then 1,250.") == "1,250"
    assert last_number("x2 v1.5b") is None


@pytest.mark.parametrize(
    "unit",
    [
        r"\boxed",
        r"\boxed{",
        r"\boxed{7}",
        r"\boxed ",
        "{",
        "}",
        "\\",
        "answer is ",
        "answer (",
        "answer ",
        "answer is\n",
        "#### ",
        "#",
        "9",
        "999,",
        "1.",
        "$",
        r"\(",
        "*",
        "_",
        "\n",
        " ",
        "A ",
        "option A is ",
        "**A",
        "\0",
        "\ud800",
        "-",
        r"\frac{",
        "answer is $",
    ],
)
@pytest.mark.parametrize("kind", ["number", "math", "choice"])
def test_a_long_response_of_anything_is_read_in_linear_time(unit, kind):
    def seconds(length):
        text = "The answer is " + unit * (length // len(unit))
        start = time.process_time()
        extract(text, kind=kind, options=["1", "2"] if kind == "choice" else None)
        return time.process_time() - start

    # A quadratic pattern takes half a minute on this, a linear one a tenth of a second.
    assert seconds(200_000) < 3


def test_a_response_that_repeats_an_open_box_for_ever_is_read_in_one_pass():
    assert last_boxed(r"\boxed{7} " + r"\boxed{" * 50_000) == "7"
    assert last_boxed(r"\boxed{7} " * 50_000) == "7"
    assert extract("answer " * 50_000, kind="number").value is None


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("number", "The answer is 5 or 6.", "5 or 6"),
        ("number", r"\boxed{5, 6}", "5, 6"),
        ("number", r"\boxed{5 \text{ or } 6}", r"5 \text{ or } 6"),
        ("number", "The answer is 5, 5.", "5"),
        ("number", "The answer is 12, 5 of which are red.", "12"),
        ("choice", r"\boxed{A, B}", None),
        ("choice", "Answer: (A), (C)", None),
        ("choice", "The answer is $A$, $C$.", None),
        ("choice", "Answer: A, B is wrong", "A"),
    ],
)
def test_several_answers_are_not_one_of_them(kind, text, value):
    assert extract(text, kind=kind).value == value


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("math", r"The final answer is $\$18.90$. I hope it is correct.", r"\$18.90"),
        ("math", "The final answer is:\n\n$$\nx^2\n$$\n", "x^2"),
        ("math", "The final answer is\n\\[\nx^2\n\\]", "x^2"),
        ("choice", "The final answer is $B$. I hope it is correct.", "B"),
    ],
)
def test_a_stated_formula(kind, text, value):
    assert extract(text, kind=kind).value == value
