"""What docs/tasks.md says of lm-eval's own tasks is what they do."""

import importlib.util
import random
from pathlib import Path

import lm_eval
import pytest
import yaml

from harness_ext.verifier import score

TASKS = Path(lm_eval.__file__).parent / "tasks"


def module(path: str):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), TASKS / f"{path}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def config(path: str) -> dict:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: str(node.value))
    return yaml.load((TASKS / path).read_text(), Loader=Loader)


def test_their_aime_compares_strings():
    theirs = module("aime/utils").process_results
    assert theirs({"Answer": "33"}, [r"\boxed{033}"]) == {"exact_match": 0}
    assert theirs({"answer": "033"}, [r"\boxed{33}"]) == {"exact_match": 0}
    assert score(r"\boxed{033}", "33", kind="number", truncated=False).correct


def test_their_aime_reads_the_reasoning():
    theirs = module("aime/utils").process_results
    response = r"<think>maybe \boxed{33}</think>I do not know."
    assert theirs({"Answer": "33"}, [response]) == {"exact_match": 1}
    final = response.split("</think>")[1]
    assert score(final, "33", kind="number", truncated=False).status == "no_answer"


def test_their_math500_does_not_see_the_box():
    theirs = module("hendrycks_math/utils").process_results
    doc = {"solution": r"so \boxed{5}."}
    assert theirs(doc, [r"The answer is \boxed{5}."]) == {"exact_match": 0}
    assert theirs(doc, ["$5$"]) == {"exact_match": 1}
    assert score(r"The answer is \boxed{5}.", "5", kind="math", truncated=False).correct


def test_their_gpqa_options_are_in_another_order_each_time():
    import datasets

    rows = [
        {
            "Correct Answer": f"right {i}",
            **{f"Incorrect Answer {j}": f"wrong {i}.{j}" for j in (1, 2, 3)},
        }
        for i in range(40)
    ]
    datasets.disable_caching()
    try:
        theirs = module("gpqa/cot_zeroshot/utils").process_docs
        random.seed(1)
        first, second = (theirs(datasets.Dataset.from_list(rows))["answer"] for _ in range(2))
    finally:
        datasets.enable_caching()
    assert list(first) != list(second)


@pytest.mark.parametrize(
    ("path", "stops", "budget"),
    [
        ("aime/aime24.yaml", "Question:", 32768),
        ("aime/aime25.yaml", "Question:", 32768),
        ("hendrycks_math/hendrycks_math_algebra.yaml", "Problem:", None),
        ("gpqa/cot_zeroshot/_gpqa_cot_zeroshot_yaml", "</s>", None),
        ("gsm8k/gsm8k.yaml", "Question:", None),
    ],
)
def test_they_decode_greedily_and_stop_at_words(path, stops, budget):
    kwargs = config(path)["generation_kwargs"]
    assert kwargs["do_sample"] is False
    assert stops in kwargs["until"]
    assert kwargs.get("max_gen_toks") == budget
