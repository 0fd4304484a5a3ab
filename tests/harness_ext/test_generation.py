import copy
import json
import pickle

from harness_ext.generation import Generation

FACTS = {
    "n_tokens": 7,
    "n_reasoning_tokens": 3,
    "finish_reason": "stop",
    "seed": 5,
    "reasoning": "why",
    "final": "42",
    "intervention": "abc",
}


def test_it_is_text_with_facts():
    made = Generation("why</think>42", **FACTS)
    assert made == "why</think>42"
    assert json.dumps([made]) == '["why</think>42"]'
    assert vars(made) == FACTS


def test_facts_survive_pickle_and_copies():
    made = Generation("why</think>42", **FACTS)
    for other in (
        pickle.loads(pickle.dumps(made)),
        pickle.loads(pickle.dumps(made, protocol=2)),
        copy.copy(made),
        copy.deepcopy([made])[0],
    ):
        assert isinstance(other, Generation)
        assert other == made
        assert vars(other) == FACTS


def test_lm_eval_may_make_a_target_the_type_of_a_response():
    response = Generation("7", n_tokens=1, n_reasoning_tokens=0, finish_reason="stop", seed=None,
                          reasoning="", final="7", intervention="none")  # fmt: skip
    target = type(response)(7)  # what lm-eval's `exact_match` does with a number as the target
    assert type(target) is str
    assert target == response
