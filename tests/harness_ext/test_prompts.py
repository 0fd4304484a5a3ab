"""The prompts, letter for letter as their sources send them."""

import pytest

from harness_ext.errors import TaskConfigError
from harness_ext.prompts import STYLES, instruction, render, with_options

OPTIONS = ("red", "green", "blue", "none")

# Written out from the files named in prompts.py, not built from its constants.
LIGHTEVAL_MATH = (
    "Solve the following math problem efficiently and clearly.  The last line of your response "
    "should be of the following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I "
    "hope it is correct' (without quotes) where ANSWER is just the final number or expression "
    "that solves the problem. Think step by step before answering.\n\nWhat is 1+1?"
)
SIMPLE_EVALS_GPQA = (
    "Answer the following multiple choice question. The last line of your response should be of "
    "the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think "
    "step by step before answering.\n\nWhich colour?\n\nA) red\nB) green\nC) blue\nD) none"
)
DIRECTIVE = "Please reason step by step, and put your final answer within \\boxed{}."


def test_boxed_is_deepseeks_directive_after_the_question():
    assert render("What is 1+1?", style="boxed") == f"What is 1+1?\n{DIRECTIVE}"
    assert render("Which colour?", style="boxed", options=OPTIONS) == (
        "Which colour?\n\nA) red\nB) green\nC) blue\nD) none\n"
        "Please reason step by step, and put the letter of your final answer within \\boxed{}."
    )


def test_lighteval_is_the_template_of_june_2025():
    assert render("What is 1+1?", style="lighteval") == LIGHTEVAL_MATH
    assert render("Which colour?", style="lighteval", options=OPTIONS) == SIMPLE_EVALS_GPQA


def test_airi_is_the_doc_to_text_of_their_tasks():
    assert render("What is 1+1?", style="airi") == f"{DIRECTIVE}\nProblem: What is 1+1?\nAnswer:"
    assert render("Which colour?", style="airi", options=OPTIONS) == SIMPLE_EVALS_GPQA


def test_five_options_are_named_as_five():
    assert "is one of ABCDE." in instruction("lighteval", options=[*OPTIONS, "grey"])


@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize("options", [(), OPTIONS], ids=["free", "choice"])
def test_a_hint_is_added_and_changes_nothing_else(style, options):
    plain = render("Which?", style=style, options=options)
    for position in ("before_question", "after_question", "after_instruction"):
        hinted = render("Which?", style=style, options=options, hint="HINT", position=position)
        lines = [line.replace(" HINT", "") for line in hinted.split("\n") if line != "HINT"]
        assert "\n".join(lines) == plain
        before = hinted.split("HINT")[0]
        if position == "before_question":
            assert "Which?" not in before
        if position == "after_question":
            assert with_options("Which?", options) in before
        if position == "after_instruction":
            assert before.endswith(instruction(style, options=options) + " ")


def test_the_seeds_hint_stands_after_the_boxed_instruction():
    hinted = render("Q", style="boxed", hint="A source says 7.", position="after_instruction")
    assert hinted == f"Q\n{DIRECTIVE} A source says 7."


def test_an_unknown_style_is_refused():
    for call in (lambda: render("Q", style="poem"), lambda: instruction("poem")):
        with pytest.raises(TaskConfigError, match=r"'poem'.*airi, boxed, lighteval, one_line"):
            call()
