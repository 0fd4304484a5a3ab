"""What holds on models that return plain text, and what lm-eval's own would do without a word."""

import pytest
from lm_eval.models.huggingface import HFLM

from harness_ext.errors import TaskConfigError
from harness_ext.metrics import summarise
from harness_ext.records import records_of_sample
from tests.tasks.reasoning import Scripted, evaluate
from tests.tiny_models import save_model

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


def every_fourth_never_ends(prompt, doc, i):
    return "<think> and so on" if i % 4 == 3 else rf"<think> 1 </think> \boxed{{{doc['answer']}}}"


@pytest.mark.parametrize("task", ["steer_arith", "steer_arith_hint"])
def test_truncation_is_a_share_of_the_responses_that_reasoned(task):
    results = evaluate(Scripted(every_fourth_never_ends), [task], limit=8)
    assert results["results"][task]["truncation,none"] == 0.25
    assert isinstance(results["results"][task]["truncation_stderr,none"], float)
    records = [r for sample in results["samples"][task] for r in records_of_sample(sample)]
    assert summarise(records)[task]["none"]["truncation"] == 0.25


@pytest.mark.parametrize("task", ["steer_arith", "steer_arith_hint"])
def test_of_plain_responses_without_reasoning_truncation_is_not_known(task):
    results = evaluate(Scripted(lambda *_: "It is 7."), [task], limit=3)
    assert results["results"][task].get("truncation,none") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("m"), chat_template=CHAT,
                          max_position_embeddings=1024))  # fmt: skip


def ask(model, task, **generation):
    return evaluate(model, [task], limit=2, apply_chat_template=True, gen_kwargs=generation)


def test_a_model_that_drops_its_reasoning_is_refused(folder):
    model = HFLM(pretrained=folder, dtype="float32", device="cpu", think_end_token="</think>")
    with pytest.raises(TaskConfigError, match=r"think_end_token='</think>' .*drop the reasoning"):
        ask(model, "steer_arith", max_gen_toks=4)


def test_a_prompt_that_would_be_cut_is_refused(folder):
    model = HFLM(pretrained=folder, dtype="float32", device="cpu")
    for new in (1020, 5000):
        with pytest.raises(TaskConfigError, match=rf"and {new} new ones do not fit .* 1024, and"):
            ask(model, "steer_arith_hint", max_gen_toks=new)
    assert ask(model, "steer_arith_hint", max_gen_toks=4)["results"]


class Answering(HFLM):
    """An `hf` model whose responses are known."""

    def generate_until(self, requests, disable_tqdm=False):
        return ["Let us see.</think>It is 7." for _ in requests]


@pytest.mark.parametrize("task", ["steer_arith", "steer_arith_hint"])
def test_tokens_of_plain_responses_are_counted_by_the_models_tokenizer(folder, task):
    model = Answering(pretrained=folder, dtype="float32", device="cpu")
    results = ask(model, task, max_gen_toks=4)
    (first, *_) = (r for sample in results["samples"][task] for r in records_of_sample(sample))
    whole = model.tokenizer("Let us see.</think>It is 7.", add_special_tokens=False).input_ids
    assert first.n_tokens == len(whole)
    assert first.n_reasoning_tokens == whole.index(model.tokenizer.vocab["</think>"]) + 1
    values = results["results"][task]
    assert values.get("n_tokens,none", values.get("mean_tokens,none")) == len(whole)
    if task == "steer_arith":
        assert values["n_answer_tokens,none"] == len(whole) - first.n_reasoning_tokens
    else:
        assert values["seed_flips,none"] is not None
