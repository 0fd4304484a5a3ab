"""Prompts and responses as tokens, and which of these tokens a comparison counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interventions.errors import FeatureError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = Literal["prompt", "response", "reasoning", "final", "all"]
PARTS: tuple[Part, ...] = ("prompt", "response", "reasoning", "final", "all")
Span = tuple[int, int]
THINK_END = "</think>"


@dataclass(frozen=True)
class Example:
    """A prompt, a response, or both, and where in their characters to look.

    Attributes:
        group: what it belongs to, such as a question; examples of one group are one unit.
        prompt: the user's message; with `raw` the whole prompt as the model read it.
        reasoning: of the response, before the closing delimiter.
        final: of the response, after it; a text without a prompt stands here.
        raw: the prompt went through a chat template already, or goes through none.
        prompt_spans: characters of `prompt` that count, None for all of them.
        response_spans: characters of `response` that count, None for all of them.
        hidden: characters of `response` that do not count, whatever else is said.
        about: where it came from, plain data.
    """

    group: str
    prompt: str = ""
    reasoning: str = ""
    final: str = ""
    raw: bool = False
    prompt_spans: tuple[Span, ...] | None = None
    response_spans: tuple[Span, ...] | None = None
    hidden: tuple[Span, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def response(self, think_end: str = THINK_END) -> str:
        """Return the response as the model wrote it."""
        return f"{self.reasoning}{think_end}{self.final}" if self.reasoning else self.final


@dataclass(frozen=True)
class Counting:
    """Which tokens of an example count.

    Attributes:
        part: of the example.
        template: count what a chat template puts around the message, too.
        first: only the first so many of them; None for all.
        context: tokens of an example at most; the rest is cut off.
        think_end: what closes the reasoning.
    """

    part: Part = "all"
    template: bool = False
    first: int | None = None
    context: int = 4096
    think_end: str = THINK_END

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise FeatureError(f"unknown part '{self.part}'; use one of {', '.join(PARTS)}")
        if self.context < 1 or (self.first is not None and self.first < 1):
            raise FeatureError(
                f"context {self.context} and first {self.first} must be at least 1 token"
            )


@dataclass(frozen=True, eq=False)
class Passage:
    """Tokens that the model reads, and those among them that count.

    Attributes:
        group: of the example.
        ids: `(n,)` int64.
        counted: `(n,)` bool, before sinks and special tokens are left out.
        cut: whether its end did not fit.
    """

    group: str
    ids: Tensor
    counted: Tensor
    cut: bool = False


def make_passage(
    example: Example, tokenizer: "PreTrainedTokenizerBase", counting: Counting
) -> Passage:
    """Return the tokens of an example.

    Prompt and response are encoded apart, as they were when the response was generated.

    Raises:
        FeatureError: the tokenizer gives no character positions, or its chat template does not
            hold the message as it is.
    """
    text, content = _prompt_text(example, tokenizer)
    plain = bool(example.raw or not tokenizer.chat_template or not example.prompt)
    starts_with_bos = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    prompt_ids, prompt_at = _encode(tokenizer, text, special=plain and not starts_with_bos)
    response = example.response(counting.think_end)
    response_ids, response_at = (
        _encode(tokenizer, response, special=False) if response else ([], [])
    )
    wanted_prompt: Sequence[Span] = ()
    if counting.part in ("prompt", "all"):
        if counting.template:
            wanted_prompt = [(0, len(text))]
        elif example.prompt_spans is None:
            wanted_prompt = [content]
        else:
            wanted_prompt = [(content[0] + a, content[0] + b) for a, b in example.prompt_spans]
    ids = torch.tensor([*prompt_ids, *response_ids], dtype=torch.long)
    counted = torch.tensor(
        [*_inside(prompt_at, wanted_prompt), *_inside(response_at, _wanted(example, counting))],
        dtype=torch.bool,
    )
    hidden = [False] * len(prompt_ids) + _inside(response_at, example.hidden)
    counted &= ~torch.tensor(hidden, dtype=torch.bool)
    cut = len(ids) > counting.context
    ids, counted = ids[: counting.context], counted[: counting.context]
    if counting.first is not None:
        counted &= counted.cumsum(0) <= counting.first
    return Passage(example.group, ids, counted, cut)


def _wanted(example: Example, counting: Counting) -> list[Span]:
    """Return the characters of the response that count."""
    n_reasoning = len(example.reasoning)
    after = n_reasoning + len(counting.think_end) if n_reasoning else 0
    parts = {
        "reasoning": (0, n_reasoning),
        "final": (after, after + len(example.final)),
    }
    names = {"prompt": (), "response": tuple(parts), "all": tuple(parts)}.get(
        counting.part, (counting.part,)
    )
    spans = [parts[name] for name in names]
    if example.response_spans is None:
        return spans
    return [
        (max(a, c), min(b, d))
        for a, b in spans
        for c, d in example.response_spans
        if c < b and a < d
    ]


def _prompt_text(example: Example, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, Span]:
    """Return the prompt as the model reads it, and where the message stands in it."""
    message = example.prompt
    if example.raw or not message or not tokenizer.chat_template:
        return message, (0, len(message))
    text = str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
    )
    # The last place: a template's own system prompt may hold the same words.
    for form in (message, message.strip()):
        start = text.rfind(form)
        if start >= 0:
            return text, (start, start + len(form))
    raise FeatureError(
        f"the chat template does not hold the message {message[:40]!r} as it is; give prompts that"
        f" went through it, as raw ones"
    )


def _encode(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool
) -> tuple[list[int], list[Span]]:
    if not tokenizer.is_fast:
        raise FeatureError(
            f"{type(tokenizer).__name__} gives no character positions; use a fast tokenizer"
        )
    encoded: Any = tokenizer(
        text, add_special_tokens=special, return_offsets_mapping=True, verbose=False
    )
    return list(encoded["input_ids"]), [tuple(at) for at in encoded["offset_mapping"]]


def _inside(places: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    return [any(max(a, c) < min(b, d) for c, d in spans) for a, b in places]
