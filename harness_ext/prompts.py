r"""How a question is put to a model, and where in it a hint stands.

A style is what one published protocol sends, word for word, for free-form answers and for
options. Sources, each at a fixed commit:

- `boxed`: DeepSeek's directive for R1.
  https://github.com/deepseek-ai/DeepSeek-R1/blob/0cf78561f1d51c84a21b2190626b21116d5c68bb/README.md#usage-recommendations
- `lighteval`: what open-r1 measured R1's numbers with.
  https://github.com/huggingface/lighteval/blob/50c78a2eb78d7ea717c15b8d832c0f6da0604e77/src/lighteval/tasks/default_prompts.py#L133
  and `gpqa_instruct` in the same file, line 897 (OpenAI's simple-evals template).
- `airi`: what Galichin et al. 2025 steered with.
  https://github.com/AIRI-Institute/SAE-Reasoning/blob/2cbfbff469eef1a64318c7076af9398fb6ab9e98/evaluation/lm-evaluation-harness/lm_eval/tasks/aime/aime2024_nofigures.yaml
  and gpqa/openai/utils.py beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from harness_ext.choices import LETTERS
from harness_ext.errors import TaskConfigError
from harness_ext.hints import Position


@dataclass(frozen=True)
class Form:
    """How an instruction and a question are joined.

    Attributes:
        instruction: may hold `{letters}`, the option letters in a row.
        joint: between instruction and question.
        instruction_first: whether the instruction comes before the question.
        lead: before the question.
        tail: after the question (only where the instruction comes first).
    """

    instruction: str
    joint: str = "\n"
    instruction_first: bool = False
    lead: str = ""
    tail: str = ""


@dataclass(frozen=True)
class Style:
    """The prompt of a free-form question, and that of a question with options."""

    free: Form
    choice: Form


_DEEPSEEK = "Please reason step by step, and put your final answer within \\boxed{}."
_SIMPLE_EVALS = Form(
    "Answer the following multiple choice question. The last line of your response should be of "
    "the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of {letters}. "
    "Think step by step before answering.",
    joint="\n\n",
    instruction_first=True,
)

STYLES: dict[str, Style] = {
    # DeepSeek gives no wording for options: theirs, with the letter asked for.
    "boxed": Style(
        free=Form(_DEEPSEEK),
        choice=Form(
            "Please reason step by step, and put the letter of your final answer within \\boxed{}."
        ),
    ),
    "lighteval": Style(
        free=Form(
            "Solve the following math problem efficiently and clearly.  The last line of your "
            "response should be of the following format: 'Therefore, the final answer is: "
            "$\\boxed{ANSWER}$. I hope it is correct' (without quotes) where ANSWER is just the "
            "final number or expression that solves the problem. Think step by step before "
            "answering.",
            joint="\n\n",
            instruction_first=True,
        ),
        choice=_SIMPLE_EVALS,
    ),
    "airi": Style(
        free=Form(_DEEPSEEK, instruction_first=True, lead="Problem: ", tail="\nAnswer:"),
        choice=_SIMPLE_EVALS,
    ),
    # Small models lose their way in free step-by-step reasoning; one line keeps them on track.
    "one_line": Style(
        free=Form("Show the calculation in one line, then put your final answer within \\boxed{}."),
        choice=Form(
            "Show the calculation in one line, then put the letter of your final answer within "
            "\\boxed{}."
        ),
    ),
}


def with_options(question: str, options: Sequence[str]) -> str:
    """Return the question followed by its options, `A) …` on a line each, if it has any."""
    if not options:
        return question
    lines = (f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question}\n\n" + "\n".join(lines)


def instruction(style: str, *, options: Sequence[str] = ()) -> str:
    """Return how a style asks for an answer, free-form or as one of `options`.

    Raises:
        TaskConfigError: The style is unknown.
    """
    form = _form(style, options)
    return form.instruction.replace("{letters}", LETTERS[: len(options)])


def _form(style: str, options: Sequence[str]) -> Form:
    if style not in STYLES:
        raise TaskConfigError(
            f"unknown prompt_style {style!r}; known are {', '.join(sorted(STYLES))}"
        )
    return STYLES[style].choice if options else STYLES[style].free


def render(
    question: str,
    *,
    style: str,
    options: Sequence[str] = (),
    hint: str = "",
    position: Position | None = None,
) -> str:
    """Return the user message of a question.

    Args:
        question: its text.
        style: key of `STYLES`.
        options: texts of its options, none for a free-form answer.
        hint: text of the hint or placebo, '' for none.
        position: where the hint stands; needed if there is one.

    Raises:
        TaskConfigError: The style is unknown.
    """
    form = _form(style, options)
    how = instruction(style, options=options)
    body = f"{form.lead}{with_options(question, options)}"
    if hint and position == "before_question":
        body = f"{hint}\n{body}"
    elif hint and position == "after_question":
        body = f"{body}\n{hint}"
    elif hint:
        how = f"{how} {hint}"
    if form.instruction_first:
        return f"{how}{form.joint}{body}{form.tail}"
    return f"{body}{form.joint}{how}"
