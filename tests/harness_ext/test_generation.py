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
