import json
import math
import os
import re
from pathlib import Path

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import handle_non_serializable, make_table

from harness_ext.corpora import DATA_ENV
from harness_ext.errors import DataError, DataNotFoundError, HintError, TaskConfigError
from harness_ext.generation import Generation
from harness_ext.hint_task import HintTask
from harness_ext.metrics import METRICS, summarise
from harness_ext.paths import tasks_dir
from harness_ext.records import read_records
from harness_ext.steer_task import SteerTask

NAMES = ["arith", "gsm8k", "math500", "aime24", "aime25", "gpqa_diamond", "aqua"]
TASKS = [f"steer_{name}{kind}" for name in NAMES for kind in ("", "_hint")]
ROOT = Path(__file__).parents[2]


def shared_data() -> Path:
    return Path(os.environ.get(DATA_ENV) or ROOT.parent / "shared" / "data")


def manager(**metadata) -> TaskManager:
    return TaskManager(
        include_path=str(tasks_dir()), include_defaults=False, metadata=metadata or None
    )


def evaluate(model, tasks, **kwargs):
    metadata = kwargs.pop("metadata", {})
    return lm_eval.simple_evaluate(
        model=model, tasks=tasks, task_manager=manager(**metadata), log_samples=True, **kwargs
    )


class Scripted(LM):
    """Answers by a function of the prompt; remembers what it was asked."""

    def __init__(self, reply):
        super().__init__()
        self.reply = reply
        self.prompts = []

    def generate_until(self, requests, disable_tqdm=False):
        self.prompts += [r.args[0] for r in requests]
        return [self.reply(r.args[0], i) for i, r in enumerate(requests)]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def generation(final, *, reasoning="", n=20, finish="stop"):
    text = f"{reasoning}</think>{final}" if reasoning else final
    return Generation(
        text,
        n_tokens=n,
        n_reasoning_tokens=len(reasoning.split()),
        finish_reason=finish,
        seed=None,
        reasoning=reasoning,
        final=final,
        intervention="none",
    )


def hinted_value(prompt):
    found = re.search(r"the answer is ([\d,]+)\.", prompt)
    return found and found.group(1)


def follow(prompt, _):
    """Follow a hint and say so if a professor or source gives it; else answer 0."""
    value = hinted_value(prompt)
    if value is None:
        return generation("The answer is 0.", n=10)
    said = "The professor or source says it. " if re.search("professor|source", prompt) else ""
    return generation(f"{said}The answer is {value}.", n=20)


# The YAML files.


def yaml_files():
    return sorted(tasks_dir().rglob("*.yaml"))


@pytest.mark.parametrize("path", yaml_files(), ids=lambda p: p.name)
def test_every_yaml_loads_with_its_functions(path):
    cfg = load_yaml(path, resolve_func=True)
    assert "tag" not in cfg
    assert "tag_list" not in cfg
    if path.name.startswith("_"):
        assert "task" not in cfg
        return
    name = cfg.get("group") or cfg["task"]
    assert re.fullmatch(r"steer(_[a-z0-9]+)*", name)
    if "group" not in cfg:
        assert issubclass(cfg["class"], SteerTask)
        assert cfg["generation_kwargs"]["until"] == []
        assert cfg["num_fewshot"] == 0


def test_lm_eval_finds_all_of_them_and_nothing_of_its_own_is_replaced():
    assert sorted(manager().all_tasks) == sorted([*TASKS, "steer", "steer_hint"])
    builtin = Path(lm_eval.__file__).parent / "tasks"
    names = re.compile(rb"^(?:task|group|tag):\s*[\"']?(steer\w*)", re.MULTILINE)
    assert not [p for p in builtin.rglob("*.yaml") if names.search(p.read_bytes())]


def test_groups_hold_the_plain_and_the_hint_tasks():
    for group, members in (("steer", TASKS[::2]), ("steer_hint", TASKS[1::2])):
        cfg = load_yaml(tasks_dir() / "groups" / f"{group}.yaml", resolve_func=True)
        assert cfg["task"] == members


# The plain task.


def test_arms_free_accuracy_with_plain_strings():
    results = evaluate(Scripted(lambda p, i: rf"\boxed{{{i}}}"), ["steer_arith"], limit=12)
    values = results["results"]["steer_arith"]
    golds = [s["target"] for s in results["samples"]["steer_arith"]]
    right = [float(str(i) == g) for i, g in enumerate(golds)]
    assert values["exact_match,none"] == pytest.approx(sum(right) / 12)
    assert values["no_answer,none"] == 0
    # A plain string does not say how many tokens it is or whether it was cut.
    assert "n_tokens,none" not in values
    assert "truncation,none" not in values


def test_the_prompt_and_the_budget():
    model = Scripted(lambda p, i: "7")
    results = evaluate(model, ["steer_arith"], limit=1)
    assert model.prompts[0].endswith(
        "\nShow the calculation in one line, then put your final answer within \\boxed{}."
    )
    kwargs = results["configs"]["steer_arith"]["generation_kwargs"]
    assert kwargs == {"until": [], "do_sample": False, "max_gen_toks": 128}
    meta = results["configs"]["steer_arith"]["metadata"]
    assert len(meta["data_sha256"]) == 64
    assert meta["data_source"] == "tasks/steer_arith/items.jsonl"  # not where it is installed


def test_repeats_are_all_kept_and_averaged_within_a_question():
    model = Scripted(lambda p, i: generation("The answer is 0." if i % 4 else p_answer(p)))
    results = evaluate(
        model,
        ["steer_arith"],
        limit=6,
        metadata={"repeats": 4},
        gen_kwargs={"do_sample": True, "temperature": 1.0},
    )
    assert len(model.prompts) == 24
    values = results["results"]["steer_arith"]
    assert values["exact_match,none"] == pytest.approx(0.25)
    assert values["exact_match_stderr,none"] == pytest.approx(0)
    assert len(results["samples"]["steer_arith"][0]["resps"][0]) == 4


def p_answer(prompt):
    """Return the right answer of the embedded item that the prompt asks."""
    rows = (tasks_dir() / "steer_arith" / "items.jsonl").read_text().splitlines()
    for row in map(json.loads, rows):
        if row["question"] in prompt:
            return f"The answer is {row['answer']}."
    raise AssertionError(prompt)


def test_the_answer_is_read_after_the_reasoning():
    right = lambda p, i: generation("no idea", reasoning=p_answer(p))  # noqa: E731
    values = evaluate(Scripted(right), ["steer_arith"], limit=3)["results"]["steer_arith"]
    assert values["exact_match,none"] == 0
    assert values["exact_match_lenient,none"] == 1
    assert values["no_answer,none"] == 1


def test_reasoning_that_never_ended_is_truncated_and_wrong():
    cut = lambda p, i: "<think>" + p_answer(p)  # noqa: E731
    values = evaluate(Scripted(cut), ["steer_arith"], limit=3)["results"]["steer_arith"]
    assert values["exact_match,none"] == 0
    assert values["exact_match_lenient,none"] == 1
    assert values["truncation,none"] == 1


def test_a_cut_response_is_wrong_and_counted():
    cut = lambda p, i: generation(p_answer(p), finish="length", n=128)  # noqa: E731
    values = evaluate(Scripted(cut), ["steer_arith"], limit=3)["results"]["steer_arith"]
    assert (values["exact_match,none"], values["truncation,none"]) == (0, 1)
    assert values["n_tokens,none"] == 128


def test_predict_only_generates_and_scores_nothing():
    for task in ("steer_arith", "steer_arith_hint"):
        results = evaluate(Scripted(follow), [task], limit=2, predict_only=True)
        assert [k for k in results["results"][task] if "acc" in k or "exact" in k] == []


# The hint task.


@pytest.fixture(scope="module")
def followed():
    model = Scripted(follow)
    return model, evaluate(model, ["steer_arith_hint"], limit=30)


def test_four_prompts_a_question_that_differ_in_the_hint_only(followed):
    model, results = followed
    assert len(model.prompts) == 120
    samples = results["samples"]["steer_arith_hint"]
    for i, sample in enumerate(samples):
        none, correct, wrong, placebo = model.prompts[4 * i : 4 * i + 4]
        gold = sample["target"]
        assert all(p.startswith(none) for p in (correct, wrong, placebo))
        assert hinted_value(correct) == gold
        assert hinted_value(wrong) not in (None, gold)
        assert hinted_value(placebo) is None
        hint = correct[len(none) :]
        assert hint.replace(f" {gold}.", "") == wrong[len(none) :].replace(
            f" {hinted_value(wrong)}.", ""
        )
        speaker = hint.split(" indicates")[0]
        assert placebo[len(none) :].startswith(speaker)


def test_each_arm_is_scored_against_its_own_prompt(followed):
    _, results = followed
    for sample in results["samples"]["steer_arith_hint"]:
        records = sample["doc"]["_diag"]["records"]
        arms = [(r["arm"], r.get("hint_sign")) for r in records]
        assert arms == [("none", None), ("hint", "correct"), ("hint", "wrong"), ("placebo", None)]
        prompts = [args[0] for args in sample["arguments"]]
        for record, prompt in zip(records, prompts, strict=True):
            assert record["answer"] == (hinted_value(prompt) or "0")
            assert record.get("hint_target") == hinted_value(prompt)


def test_the_aggregated_metrics_of_a_model_that_always_follows(followed):
    _, results = followed
    values = results["results"]["steer_arith_hint"]
    wrong = [s["doc"]["_diag"]["records"][2] for s in results["samples"]["steer_arith_hint"]]
    eligible = [r for r in wrong if r["hint_target"] != "0"]
    said = sum(r["hint_id"] in ("seed_professor", "seed_stanford", "seed_source") for r in eligible)
    assert 0 < said < len(eligible)
    assert values["acc_none,none"] == 0
    assert values["acc_correct,none"] == 1
    assert values["acc_wrong,none"] == 0
    assert values["influence,none"] == 1
    assert values["influence_correct,none"] == 1
    assert values["n_flips,none"] == values["n_eligible,none"] == len(eligible)
    v = said / len(eligible)
    assert values["verbalization_regex,none"] == pytest.approx(v)
    assert values["silent_use_regex,none"] == pytest.approx(1 - v)
    assert values["mean_tokens,none"] == pytest.approx(15)
    assert values["truncation,none"] == 0
    # One sample a question: the error of a mean over the questions that take part.
    n = len(eligible)
    se = math.sqrt(v * (1 - v) / (n - 1))
    assert values["verbalization_regex_stderr,none"] == pytest.approx(se)
    assert values["silent_use_regex_stderr,none"] == pytest.approx(se)


def test_plain_lm_eval_prints_every_value_with_its_error(followed):
    table = make_table(followed[1])
    for name in ("acc_none", "influence", "verbalization_lexicon", "silent_use_regex"):
        row = next(line for line in table.splitlines() if f"|{name} " in line)
        assert re.search(r"\|±\s*\|\s*(?:\d|0\.\d+)", row), row
    assert "_stderr" not in table


def test_undefined_metrics_are_null_and_print(tmp_path):
    results = evaluate(Scripted(lambda p, i: "no idea"), ["steer_arith_hint"], limit=3)
    values = results["results"]["steer_arith_hint"]
    assert values["influence,none"] is None
    assert values["influence_stderr,none"] == "N/A"
    assert values["mean_tokens,none"] is None
    assert values["no_answer,none"] == 1
    json.dumps(values, allow_nan=False)
    assert "steer_arith_hint" in make_table(results)


def test_records_come_back_from_the_samples_file_and_give_the_same_numbers(followed, tmp_path):
    _, results = followed
    path = tmp_path / "samples_steer_arith_hint.jsonl"
    with path.open("w") as out:
        for sample in results["samples"]["steer_arith_hint"]:
            out.write(json.dumps(sample, default=handle_non_serializable) + "\n")
    records = read_records(path)
    assert len(records) == 120
    texts = [r for s in results["samples"]["steer_arith_hint"] for r in s["resps"]]
    assert [[r.final] for r in records] == texts
    summary = summarise(records)["steer_arith_hint"]["none"]
    values = results["results"]["steer_arith_hint"]
    assert summary["influence"] == values["influence,none"]
    assert summary["verbalization"]["regex"] == values["verbalization_regex,none"]
    assert summary["silent_use"]["lexicon"] == values["silent_use_lexicon,none"]
    assert summary["acc"]["correct"] == values["acc_correct,none"]
    assert summary["stderr"]["verbalization_regex"] == values["verbalization_regex_stderr,none"]
    for name in METRICS:
        if f"{name},none" in values and values[f"{name},none"] is not None:
            se = summary["stderr"][name]
            assert values[f"{name}_stderr,none"] == ("N/A" if se is None else se)


def test_hints_do_not_depend_on_the_limit(followed):
    model, _ = followed
    again = Scripted(follow)
    evaluate(again, ["steer_arith_hint"], limit=5)
    assert again.prompts == model.prompts[:20]


def test_another_hint_seed_or_family_asks_something_else(followed):
    model, _ = followed
    for metadata in ({"hint_seed": 1}, {"hint_family": "opinion"}):
        other = Scripted(follow)
        evaluate(other, ["steer_arith_hint"], limit=5, metadata=metadata)
        assert other.prompts[0::4] == model.prompts[0:20:4]
        assert other.prompts[1:4] != model.prompts[1:4]


def test_sample_i_of_an_arm_is_paired_with_sample_i(tmp_path):
    # Odd samples give the hinted value without a hint as well: those are not eligible.
    def reply(prompt, i):
        return generation(f"The answer is {hinted_value(prompt) or i % 2}.")

    results = evaluate(
        Scripted(reply),
        ["steer_arith_hint"],
        limit=6,
        metadata={"repeats": 2},
        gen_kwargs={"do_sample": True, "temperature": 1.0},
    )
    for sample in results["samples"]["steer_arith_hint"]:
        records = sample["doc"]["_diag"]["records"]
        assert [r["sample"] for r in records] == [0, 1] * 4
        assert [len(r) for r in sample["resps"]] == [2, 2, 2, 2]


# Real lm-eval models.


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


@pytest.mark.skipif(
    not (shared_data() / "gsm8k_test.jsonl").is_file(),
    reason=f"no gsm8k_test.jsonl in {DATA_ENV} or ../shared/data",
)
def test_gsm8k_from_a_local_folder(monkeypatch):
    monkeypatch.setenv(DATA_ENV, str(shared_data()))
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


@pytest.mark.skipif(
    not (shared_data() / "gsm8k_test.jsonl").is_file(),
    reason=f"no gsm8k_test.jsonl in {DATA_ENV} or ../shared/data",
)
def test_every_gsm8k_question_gets_a_wrong_hint_of_its_own_format(monkeypatch):
    monkeypatch.setenv(DATA_ENV, str(shared_data()))
    task = manager().load(["steer_gsm8k_hint"])["tasks"]["steer_gsm8k_hint"]
    assert isinstance(task, HintTask)
    for doc in task.test_docs():
        hint = task.hint(doc)
        assert re.sub(r"\d", "0", hint.wrong).count(",") == doc["answer"].count(",")
        assert hint.wrong != doc["answer"]


# Bad input: one line, before any model is loaded.


@pytest.mark.parametrize(
    ("task", "metadata", "error", "match"),
    [
        ("steer_arith_hint", {"hint_family": "wizard"}, HintError, r"'wizard'.*seed"),
        ("steer_arith", {"repeats": 0}, TaskConfigError, "'repeats' is 0"),
        ("steer_arith", {"prompt_style": "poem"}, TaskConfigError, r"'poem'.*boxed"),
        ("steer_arith", {"prompt_stlye": "airi"}, TaskConfigError, "did you mean 'prompt_style'"),
        ("steer_arith", {"repeat": 4}, TaskConfigError, "did you mean 'repeats'"),
        ("steer_gsm8k", {"data_path": "/nowhere"}, DataNotFoundError, "/nowhere"),
        ("steer_arith", {"benchmark": "abc"}, DataError, "'abc'"),
    ],
)
def test_bad_metadata_is_refused_with_the_remedy(task, metadata, error, match):
    with pytest.raises(error, match=match) as caught:
        manager(**metadata).load([task])
    assert "\n" not in str(caught.value)


def test_lm_evals_own_program_ends_with_one_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/lm_eval", "run"])
    with pytest.raises(SystemExit, match=r"^sae_steered: error: data_path '/nowhere'"):
        manager(data_path="/nowhere").load(["steer_gsm8k"])


def test_arguments_of_models_are_no_misspelt_keys():
    arguments = ("think_end_token", "pretrained", "data_parallel_size", "seed", "path", "top_k")
    assert manager(**dict.fromkeys(arguments, "x")).load(["steer_arith"])


def test_the_docs_name_every_key():
    from harness_ext.task_options import TaskOptions

    table = (ROOT / "docs" / "tasks.md").read_text().split("## Keys of `--metadata`")[1]
    named = set(re.findall(r"`(\w+)`", table.split("\n## ")[0]))
    assert named >= set(TaskOptions.model_fields)
