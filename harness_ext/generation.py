"""The text a model returned, with what the model knows about how it was made.

`Generation` is a `str`, so every lm-eval task, filter and logger handles it as text. Tasks that
know it read the attributes; they survive keep-all filters and pickling, and plain `str`
responses of other models simply lack them.
"""

from typing import Literal, cast

FinishReason = Literal["stop", "length"]


class Generation(str):
    """A response: the whole text, reasoning included, and its metadata.

    Attributes:
        n_tokens: generated tokens, the end-of-text token included.
        n_reasoning_tokens: those up to and including the closing reasoning delimiter; all of
            them when reasoning was opened and never closed; 0 for a model that does not reason.
        finish_reason: `stop` (end-of-text or a stop string) or `length` (budget used up).
        seed: the sampling seed of this response, or None for greedy decoding.
        reasoning: the text before the closing delimiter, '' if there is none.
        final: the text after it, the whole text if the model does not reason, '' if the
            reasoning never ended.
        intervention: fingerprint of the intervention, or 'none'.
    """

    n_tokens: int
    n_reasoning_tokens: int
    finish_reason: FinishReason
    seed: int | None
    reasoning: str
    final: str
    intervention: str

    def __new__(
        cls,
        text: object,
        *,
        n_tokens: int | None = None,
        n_reasoning_tokens: int = 0,
        finish_reason: FinishReason = "stop",
        seed: int | None = None,
        reasoning: str = "",
        final: str = "",
        intervention: str = "none",
    ) -> "Generation":
        """Return `text` with its metadata attached; a plain string where there are none.

        lm-eval makes a task's target the type of the response, by calling that type with it: a
        target is no generation, and becomes the plain string that it is.
        """
        if n_tokens is None:
            return cast("Generation", str(text))
        self = super().__new__(cls, text)
        self.n_tokens = n_tokens
        self.n_reasoning_tokens = n_reasoning_tokens
        self.finish_reason = finish_reason
        self.seed = seed
        self.reasoning = reasoning
        self.final = final
        self.intervention = intervention
        return self

    def __reduce__(self):
        """Return what pickle (lm-eval's response cache) needs to rebuild this object."""
        return _rebuild, (str(self), dict(self.__dict__))


def _rebuild(text: str, metadata: dict) -> Generation:
    return Generation(text, **metadata)


def split_reasoning(text: str, *, think_end: str, opened: bool) -> tuple[str, str]:
    """Return `(reasoning, final)` of a response.

    The last closing delimiter decides: templates often put the opening one into the prompt.

    Args:
        text: the whole response.
        think_end: closing delimiter, such as `</think>`; '' for a model that does not reason.
        opened: whether the prompt, or the response, opened a reasoning span. An opened span that
            never closes makes everything reasoning and the final answer ''.
    """
    if think_end and think_end in text:
        reasoning, _, final = text.rpartition(think_end)
        return reasoning, final
    return (text, "") if opened else ("", text)
