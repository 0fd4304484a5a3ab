import pytest

from harness_ext.limits import over_limit


@pytest.mark.parametrize(
    "text",
    [
        "2^{10}",
        "x^2 + y^2",
        r"\frac{3^{12}}{2}",
        "10^{-3}",
        r"45^\circ",
        "5!",
        r"\frac{1}{2004!}",
        "e^{-x^2}",
        "2^{2^n}",
        "2^{3^2}",
        "2^{10^{2}}",
        "x^{999}",
        "(" * 12 + "x" + ")" * 12,
        "x" * 400,
        "9" * 60,
    ],
)
def test_ordinary_expressions_pass(text):
    assert over_limit(text) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x" * 401, "401 characters, limit 400"),
        ("(" * 13 + "x" + ")" * 13, "nested 13 deep"),
        ("{" * 13, "nested 13 deep"),
        ("9" * 61, "61 digits"),
        ("x^{1000}", "exponent over 999"),
        ("x^1000", "exponent over 999"),
        ("x**1000", "exponent over 999"),
        ("2^{123456}", "exponent over 999"),
        ("9^9^9", "power in an exponent"),
        ("9^{9^9}", "power in an exponent"),
        (r"9^{9^{9 \cdot 9}}", "power in an exponent"),
        ("2^{(3)^9}", "power in an exponent"),
        ("2003^{2002^{2001}}", "power in an exponent"),
        (r"5^{\left(5^{\left(5^5\right)}\right)}", "power in an exponent"),
        ("(2^{900})^{900}", "power of a power"),
        ("99999!", "factorial"),
        ("(99999)!", "factorial"),
        ("(9!)!", "factorial"),
        ("9!!", "factorial"),
    ],
)
def test_what_is_too_large_says_why(text, why):
    assert why in over_limit(text)
