"""Both tasks on models of lm-eval's own, and on GSM8K from a local folder."""

import re

import pytest

from harness_ext.corpora import DATA_ENV
from harness_ext.hint_task import HintTask
from tests.tasks.reasoning import SHARED, Scripted, evaluate, follow, manager

with_gsm8k = pytest.mark.skipif(
    not (SHARED / "gsm8k_test.jsonl").is_file(),
    reason=f"no gsm8k_test.jsonl in {DATA_ENV} or ../shared/data",
)


def test_with_lm_evals_dummy_model():
    results = evaluate("dummy", ["steer_arith", "steer_arith_hint"], limit=3)
    assert results["results"]["steer_arith"]["exact_match,none"] == 0
    assert results["results"]["steer_arith_hint"]["acc_none,none"] == 0


def test_with_a_tiny_random_hf_model():
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(["<eos>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>", model_max_length=1024
    )
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = HFLM(pretrained=LlamaForCausalLM(config), tokenizer=tokenizer, batch_size=4)
    results = evaluate(
        model, ["steer_arith_hint"], limit=2, gen_kwargs={"max_gen_toks": 8, "do_sample": False}
    )
    samples = results["samples"]["steer_arith_hint"]
    assert [len(s["resps"]) for s in samples] == [4, 4]
    assert samples[0]["arguments"][0][1]["max_gen_toks"] == 8
    assert 0 <= results["results"]["steer_arith_hint"]["no_answer,none"] <= 1


@with_gsm8k
def test_gsm8k_from_a_local_folder(monkeypatch):
    monkeypatch.setenv(DATA_ENV, str(SHARED))
    model = Scripted(follow)
    results = evaluate(model, ["steer_gsm8k", "steer_gsm8k_hint"], limit=40)
    assert len(model.prompts) == 200
    assert results["n-samples"]["steer_gsm8k"]["original"] == 1319
    values = results["results"]["steer_gsm8k_hint"]
    assert values["acc_correct,none"] == 1
    assert values["influence,none"] == 1
    kwargs = results["configs"]["steer_gsm8k"]["generation_kwargs"]
    assert kwargs == {
        "until": [],
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "max_gen_toks": 32768,
    }


@with_gsm8k
def test_every_gsm8k_question_gets_a_wrong_hint_of_its_own_format(monkeypatch):
    monkeypatch.setenv(DATA_ENV, str(SHARED))
    task = manager().load(["steer_gsm8k_hint"])["tasks"]["steer_gsm8k_hint"]
    assert isinstance(task, HintTask)
    for doc in task.test_docs():
        hint = task.hint(doc)
        assert re.sub(r"\d", "0", hint.wrong).count(",") == doc["answer"].count(",")
        assert hint.wrong != doc["answer"]
