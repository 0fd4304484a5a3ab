import pytest

from harness_ext.choices import match_option, named_option

OPTIONS = ["A)226", "B) 230 km", "C)$24.00", "(D) 26%", "E)None of these"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("226", "A"),
        ("226.0", "A"),
        ("230", "B"),
        (r"230\text{ km}", "B"),
        (r"\$24", "C"),
        (r"26\%", "D"),
        (r"\text{None of these}", "E"),
        ("none of these.", "E"),
        ("227", None),
        ("", None),
        ("x" * 5000, None),
    ],
)
def test_the_option_whose_text_or_number_it_is(text, letter):
    assert match_option(text, OPTIONS) == letter


def test_formulas_match_without_spaces_and_delimiters():
    options = [r"\frac{1}{2} \hbar", r"$\frac{12}{\hbar}$", "CH3-CH2-OH"]
    assert match_option(r"\dfrac{1}{2}\hbar", options) == "A"
    assert match_option(r"\frac{12}{\hbar}", options) == "B"
    assert match_option("CH3\u2013CH2\u2013OH", options) == "C"


def test_two_options_that_read_alike_name_none():
    assert match_option("20", ["20", "20%", "30"]) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Hence option (B) is correct.", "B"),
        ("Option A is wrong, so choice C is the right one.", "C"),
        ("**Option D** is the best", "D"),
        ("Option A is wrong.", None),
        ("x = 5\nAnswer D", "D"),
        ("Answer D\nAns: E", "E"),
        ("5*4 equals 20, answer E.", "E"),
        ("Hence (A) is correct answer.", "A"),
        ("40 sales\nD is the correct choice", "D"),
        ("Answer choice E", "E"),
        ("The answer depends on vitamin C", None),
        ("A is wrong and B is not the answer we want", None),
        ("a plan B", None),
        ("an optional B is correct", None),
    ],
)
def test_the_option_that_is_called_correct(text, letter):
    assert named_option(text) == letter
