from itertools import islice

import pytest
import torch
from transformers import AutoTokenizer

from interventions.errors import TrainingError
from interventions.train import generated_text
from interventions.train.config import DocsConfig, GenerateConfig
from interventions.train.docs_text import find_package, module_documents, module_text, write_docs
from interventions.train.files import StepFolder
from interventions.train.generate import Sampling, chat_tokens, sample_answers
from interventions.train.generated_text import read_documents, write_generated
from interventions.train.prompts import iter_prompts


def test_prompts_are_a_function_of_the_seed_and_fill_every_slot():
    first = list(islice(iter_prompts(1), 2000))
    assert first[:500] == list(islice(iter_prompts(1), 500))
    assert first[:500] != list(islice(iter_prompts(2), 500))
    assert not [p for p in first if "{" in p.text or "}" in p.text]
    assert len({p.family for p in first}) == 7
    assert len({p.text for p in first}) > 1500


def test_top_1_equals_greedy_of_transformers_in_a_padded_batch(tiny_model, tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    prompts = [chat_tokens(tokenizer, text) for text in ("a", "some longer words", "hm?")]
    found = sample_answers(tiny_model, prompts, Sampling(1.0, 1, 24, 0), stop_id=2)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        whole = tiny_model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
        )
        assert answer == whole[0, len(prompt) :].tolist()


def test_rows_that_stopped_leave_the_batch_without_changing_the_others(tiny_model):
    prompts = [[1, 40 + i, 60] for i in range(8)]
    # A token that greedy decoding of some, but not all, rows comes to is the stop.
    free = sample_answers(tiny_model, prompts, Sampling(1.0, 1, 30, 0), stop_id=-1)
    stop = next(
        token
        for token in free[0]
        if 0 < sum(token in row for row in free) < len(free) or token == free[0][-1]
    )
    found = sample_answers(tiny_model, prompts, Sampling(1.0, 1, 30, 0), stop_id=stop)
    for row, cut in zip(free, found, strict=True):
        want = row[: row.index(stop) + 1] if stop in row else row
        assert cut == want


def test_draws_follow_the_softmax_of_the_kept_words(tiny_model):
    prompts = [[1, 50]] * 4000
    drawn = sample_answers(tiny_model, prompts, Sampling(0.7, 5, 1, 3), stop_id=-1)
    logits = tiny_model(torch.tensor([[1, 50]])).logits[0, -1].detach()
    top, index = logits.topk(5)
    want = torch.softmax(top / 0.7, -1)
    got = torch.bincount(torch.tensor(drawn)[:, 0], minlength=len(logits))[index] / 4000
    torch.testing.assert_close(got, want, atol=0.03, rtol=0)


def test_killed_generation_ends_with_the_same_files(
    tiny_model, tiny_model_dir, tmp_path, monkeypatch
):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    config = GenerateConfig(tokens=1500, batch_size=4, max_new_tokens=8)
    whole = StepFolder(tmp_path / "whole", "k")
    report = write_generated(whole, config, 5, tiny_model, tokenizer)
    assert report["files"] >= 2
    calls = []

    def killed(*arguments: object) -> list[list[int]]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample_answers(*arguments)  # pyright: ignore[reportArgumentType]

    broken = StepFolder(tmp_path / "broken", "k")
    monkeypatch.setattr(generated_text, "sample_answers", killed)
    with pytest.raises(KeyboardInterrupt):
        write_generated(broken, config, 5, tiny_model, tokenizer)
    calls.extend([1, 1])
    assert write_generated(broken, config, 5, tiny_model, tokenizer) == report
    for path in sorted(whole.path.glob("*.safetensors")):
        assert path.read_bytes() == (broken.path / path.name).read_bytes()
    documents = read_documents(whole.path / "generated_00000.safetensors")
    text = tokenizer.decode(documents[0])
    assert text.startswith("<|im_start|>user")
    assert "<|im_start|>assistant" in text


def test_module_text_holds_docstrings_and_signatures_and_no_code(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(
        '"""About m."""\nimport nothing_that_exists\n\n'
        'def area(width, height=2):\n    """Return the area."""\n    return width * height\n\n'
        'def _hidden():\n    """Not shown."""\n\nclass Box:\n    """A box."""\n'
    )
    text = module_text(path, "m")
    assert (
        text
        == "m\n\nAbout m.\n\n\narea(width, height=2)\n\nReturn the area.\n\n\nclass Box\n\nA box."
    )
    path.write_text("def broken(:\n")
    assert module_text(path, "m") == ""


def test_docs_are_capped_named_and_the_same_each_time(tiny_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    config = DocsConfig(tokens=20_000, packages=("stdlib", "safetensors", "pydantic"))
    folders = [StepFolder(tmp_path / name, "k") for name in "ab"]
    reports = [write_docs(folder, config, tokenizer) for folder in folders]
    assert reports[0] == reports[1]
    assert reports[0]["tokens"] <= 20_000
    stdlib, _, pydantic = reports[0]["sources"]
    assert stdlib["licence"] == "PSF-2.0"
    assert pydantic["licence"] == "MIT"
    assert stdlib["tokens"] == 20_000 // 3
    for path in sorted(folders[0].path.glob("*.safetensors")):
        assert path.read_bytes() == (folders[1].path / path.name).read_bytes()


def test_docs_leave_tests_out_and_name_what_is_missing(tiny_model_dir, tmp_path):
    names = [name for name, _ in islice(module_documents(find_package("stdlib")), 30)]
    assert not [name for name in names if {"test", "site-packages"} & set(name.split("."))]
    with pytest.raises(TrainingError, match="'no_such_package', which is not an installed"):
        find_package("no_such_package")
    with pytest.raises(TrainingError, match="'json' belongs to no installed distribution"):
        find_package("json")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    config = DocsConfig(tokens=10_000_000, packages=("safetensors",))
    with pytest.raises(TrainingError, match="name more packages"):
        write_docs(StepFolder(tmp_path / "d", "k"), config, tokenizer)
