import re
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from harness_ext.errors import DataError, DataNotFoundError, HintError, TaskConfigError
from harness_ext.paths import tasks_dir
from harness_ext.steer_task import SteerTask
from tests.tasks.reasoning import ROOT, Scripted, evaluate, follow, generation, manager

NAMES = ["arith", "gsm8k", "math500", "aime24", "aime25", "gpqa_diamond", "aqua"]
TASKS = [f"steer_{name}{kind}" for name in NAMES for kind in ("", "_hint")]


def right_answer(doc):
    return f"The answer is {doc['answer']}."


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
    results = evaluate(Scripted(lambda p, doc, i: rf"\boxed{{{i}}}"), ["steer_arith"], limit=12)
    values = results["results"]["steer_arith"]
    golds = [s["target"] for s in results["samples"]["steer_arith"]]
    right = [float(str(i) == g) for i, g in enumerate(golds)]
    assert values["exact_match,none"] == pytest.approx(sum(right) / 12)
    assert values["no_answer,none"] == 0
    # A plain string does not say how many tokens it is or whether it was cut.
    assert "n_tokens,none" not in values
    assert "truncation,none" not in values


def test_the_prompt_and_the_budget():
    model = Scripted(lambda p, doc, i: "7")
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
    model = Scripted(
        lambda p, doc, i: generation("The answer is 0." if i % 4 else right_answer(doc))
    )
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


def test_the_answer_is_read_after_the_reasoning():
    right = lambda p, doc, i: generation("no idea", reasoning=right_answer(doc))  # noqa: E731
    values = evaluate(Scripted(right), ["steer_arith"], limit=3)["results"]["steer_arith"]
    assert values["exact_match,none"] == 0
    assert values["exact_match_lenient,none"] == 1
    assert values["no_answer,none"] == 1


def test_reasoning_that_never_ended_is_truncated_and_wrong():
    cut = lambda p, doc, i: "<think>" + right_answer(doc)  # noqa: E731
    values = evaluate(Scripted(cut), ["steer_arith"], limit=3)["results"]["steer_arith"]
    assert values["exact_match,none"] == 0
    assert values["exact_match_lenient,none"] == 1
    assert values["truncation,none"] == 1


def test_a_cut_response_is_wrong_and_counted():
    cut = lambda p, doc, i: generation(right_answer(doc), finish="length", n=128)  # noqa: E731
    values = evaluate(Scripted(cut), ["steer_arith"], limit=3)["results"]["steer_arith"]
    assert (values["exact_match,none"], values["truncation,none"]) == (0, 1)
    assert values["n_tokens,none"] == 128


def test_predict_only_generates_and_scores_nothing():
    for task in ("steer_arith", "steer_arith_hint"):
        results = evaluate(Scripted(follow), [task], limit=2, predict_only=True)
        assert [k for k in results["results"][task] if "acc" in k or "exact" in k] == []


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
