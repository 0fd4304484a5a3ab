r"""How a question is put to a model, and where in it a hint stands."""

from harness_ext.errors import TaskConfigError
from harness_ext.hints import Position

# {question} is replaced; the hint goes before or after the question, or after the instruction.
STYLES: dict[str, str] = {
    # What DeepSeek recommends for R1, and what the published steering numbers used.
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
    # Small models lose their way in free step-by-step reasoning; one line keeps them on track.
    "one_line": ("Show the calculation in one line, then put your final answer within \\boxed{}."),
}


def render(question: str, *, style: str, hint: str = "", position: Position | None = None) -> str:
    """Return the user message of a question.

    Args:
        question: its text.
        style: key of `STYLES`.
        hint: text of the hint or placebo, '' for none.
        position: where the hint stands; needed if there is one.

    Raises:
        TaskConfigError: The style is unknown.
    """
    if style not in STYLES:
        raise TaskConfigError(
            f"unknown prompt_style {style!r}; known are {', '.join(sorted(STYLES))}"
        )
    instruction = STYLES[style]
    if not hint:
        return f"{question}\n{instruction}"
    if position == "before_question":
        return f"{hint}\n{question}\n{instruction}"
    if position == "after_question":
        return f"{question}\n{hint}\n{instruction}"
    return f"{question}\n{instruction} {hint}"
