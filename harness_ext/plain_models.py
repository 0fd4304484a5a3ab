"""lm-eval's own models under our tasks: what they would do in silence, and what they do not say.

Its `hf` and `vllm` drop the text before `think_end_token` and cut a prompt that does not fit
beside the new tokens, both without an error: every number of the run would be another one. And
they return text alone, so its tokens are counted anew.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness_ext.errors import TaskConfigError

_CUTTING = {"lm_eval.models.huggingface", "lm_eval.models.vllm_causallms"}
_LONGEST = 8  # prompts whose tokens are counted


def plain_model(chat_template: Any) -> Any:
    """Return the model whose chat template this is, None where it is one of ours or not known.

    Args:
        chat_template: what lm-eval hands to tasks: a method of the model.
    """
    model = getattr(chat_template, "__self__", None)
    ours = any(kind.__module__.startswith("harness_ext.") for kind in type(model).__mro__)
    return None if ours else model


def refuse_dropped_reasoning(model: Any, task: str) -> None:
    """Return nothing if the model hands over what it wrote before its answer.

    Raises:
        TaskConfigError: It was told to drop its reasoning: a cut one could not be told from an
            answer, and no mention of a hint in it would be seen.
    """
    delimiter = getattr(model, "think_end_token", None)
    if delimiter:
        raise TaskConfigError(
            f"{task}: think_end_token={delimiter!r} makes lm-eval's own models drop the reasoning; "
            "leave it out, the task splits at its metadata key think_end"
        )


def refuse_cut_prompts(
    model: Any, prompts: Sequence[str], generation: Mapping[str, Any], task: str
) -> None:
    """Return nothing if the longest prompts fit the model beside the new tokens.

    Args:
        model: lm-eval's model; others than `hf` and `vllm` are not looked at.
        prompts: of all requests.
        generation: the task's generation_kwargs.
        task: its name.

    Raises:
        TaskConfigError: A prompt does not fit.
    """
    if not prompts or not _known(model):
        return
    if getattr(model, "backend", None) == "seq2seq":
        return  # its prompt has the whole context to itself
    from lm_eval.models.utils import normalize_gen_kwargs

    default = model.max_gen_toks
    new = normalize_gen_kwargs(dict(generation), default).get("max_gen_toks", default)
    longest = sorted(set(prompts), key=len)[-_LONGEST:]
    tokens = max(len(model.tok_encode(prompt)) for prompt in longest)
    if tokens + new > model.max_length:
        raise TaskConfigError(
            f"{task}: a prompt of {tokens} tokens and {new} new ones do not fit the model's "
            f"{model.max_length}, and lm-eval would cut the prompt; give fewer "
            "(--gen_kwargs max_gen_toks=…) or a longer context (max_model_len of vllm)"
        )


def token_counter(model: Any) -> Callable[[str], int] | None:
    """Return what counts the tokens of a response, None for other models than `hf` and `vllm`.

    It tokenizes the text anew: without the end-of-text token, and another number where the model
    spelled a word with other tokens than its tokenizer would.
    """
    if not _known(model):
        return None
    return lambda text: len(model.tok_encode(text, add_special_tokens=False)) if text else 0


def _known(model: Any) -> bool:
    return bool(_CUTTING & {kind.__module__ for kind in type(model).__mro__})
