import pytest

from harness_ext.forms import assigned, form_of, split_top
from harness_ext.latex_text import canonical, clean, words


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (r"$\dfrac{1}{2}$", r"\frac{1}{2}"),
        (r"\( \left( 3, 4 \right] \)", "( 3, 4 ]"),
        (r"\frac43", r"\frac{4}{3}"),
        (r"\frac9{19}", r"\frac{9}{19}"),
        ("sqrt(x+1)", r"\sqrt{x+1}"),
        ("\u221a51", r"\sqrt{51}"),
        ("x**2", "x^2"),
        ("7pi", r"7\pi"),
        (r"90^{\circ}", r"90^\circ"),
        ("x \u2265 2", r"x \ge 2"),
        (r"x \leq 2", r"x \le 2"),
        (r"11,\! 111,\! 100", "11111100"),
        (r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\begin{vmatrix} 1 \end{vmatrix}", r"\begin{vmatrix} 1 \end{vmatrix}"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"\langle 1, 2 \rangle", "( 1, 2 )"),
        ("5.", "5"),
        ("sin(x)", r"\sin(x)"),
        ("", ""),
    ],
)
def test_one_spelling_of_many(text, cleaned):
    assert clean(text) == cleaned


def test_two_formulas_in_one_text_keep_their_delimiters_apart():
    assert clean("$a$ and $b$") == "a and b"


def test_canonical_text_has_no_spaces_fonts_and_spare_braces():
    assert canonical(r"x^{2} + \text{cm}") == canonical("x^2+cm")
    assert canonical(r"2 \cdot \pi") == canonical(r"2\pi")
    assert canonical("n") != canonical("N")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\text{Evelyn}", "evelyn"),
        ("Evelyn.", "evelyn"),
        ("the East", "east"),
        (r"\text{June 20}", "june 20"),
        ("p - q", None),
        ("2k", None),
        ("PQ", None),
        ("n", None),
        (r"\text{no}", "no"),
        (r"\pi", None),
        ("x^2", None),
    ],
)
def test_words_are_told_from_formulas(text, found):
    assert words(text) == found


@pytest.mark.parametrize(
    ("text", "shape", "items", "brackets"),
    [
        ("x^2+1", "scalar", [], ""),
        ("1, 2", "list", ["1", "2"], ""),
        (r"1 \text{ or } 2", "list", ["1", "2"], ""),
        (r"\{1, 2\}", "set", ["1", "2"], ""),
        (r"\{\}", "set", [], ""),
        (r"\emptyset", "set", [], ""),
        ("(1, 2)", "tuple", ["1", "2"], "()"),
        ("(1, 2]", "tuple", ["1", "2"], "(]"),
        ("x = (1, 2)", "tuple", ["1", "2"], "()"),
        (r"x \in [1, 2]", "tuple", ["1", "2"], "[]"),
        ("(1, f(2, 3), 4)", "tuple", ["1", "f(2, 3)", "4"], "()"),
        (r"\mathbb{R}", "tuple", [r"-\infty", r"\infty"], "()"),
        ("x > 2", "tuple", ["2", r"\infty"], "()"),
        (r"2 \le x", "tuple", ["2", r"\infty"], "[)"),
        (r"5 > x \ge 2", "tuple", ["2", "5"], "[)"),
        (r"1 \pm \sqrt{2}", "list", [r"1 + \sqrt{2}", r"1 - \sqrt{2}"], ""),
        (r"\pm 3", "list", ["3", "- 3"], ""),
        ("x^2 < 4", "scalar", [], ""),
        ("(a+5)(b+2)", "scalar", [], ""),
        ("((5))", "scalar", [], ""),
    ],
)
def test_the_shape_of_an_answer(text, shape, items, brackets):
    form = form_of(text)
    assert (form.shape, [i.text for i in form.items], form.brackets) == (shape, items, brackets)


def test_a_union_of_intervals_and_of_inequalities():
    for text in (r"(-\infty, 2) \cup [3, \infty)", r"x < 2 \text{ or } x \ge 3"):
        form = form_of(text)
        assert form.shape == "union"
        assert [i.brackets for i in form.items] == ["()", "[)"]


def test_a_matrix_has_rows():
    form = form_of(r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \\ \end{bmatrix}")
    assert form.shape == "matrix"
    assert [[cell.text for cell in row.items] for row in form.items] == [["1", "2"], ["3", "4"]]


@pytest.mark.parametrize(
    ("text", "symbol", "value"),
    [
        ("x = 5", "x", "5"),
        (r"\theta = 5", r"\theta", "5"),
        ("f(x) = 5", "f(x)", "5"),
        ("(x, y) = (1, 2)", "(x,y)", "(1, 2)"),
        ("2x = 5", None, "2x = 5"),
        ("x = y = 5", None, "x = y = 5"),
        ("5", None, "5"),
    ],
)
def test_what_is_named_and_its_value(text, symbol, value):
    assert assigned(text) == (symbol, value)


def test_separators_inside_of_brackets_and_matrices_do_not_split():
    assert split_top(r"(1,2), \{3,4\}, 5", ",") == ["(1,2)", r"\{3,4\}", "5"]
    assert split_top(r"\begin{pmatrix} 1, 2 \end{pmatrix}, 3", ",") == [
        r"\begin{pmatrix} 1, 2 \end{pmatrix}",
        "3",
    ]
