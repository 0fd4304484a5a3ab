"""Entries and keys for tests of the response journal."""

from harness_ext.generation import Generation
from harness_ext.journal import Entry, Journal, response_key

REQUEST = {
    "backend": "hf",
    "model": "0123456789abcdef",
    "intervention": "none",
    "prompt": [1, 2, 3],
    "decoding": {"max_tokens": 5, "until": ["\n"], "sampling": {"temperature": 0.6}},
    "seed": 7,
}


def generation(text="a <think>b</think> c", **changes) -> Generation:
    facts = {
        "n_tokens": 9,
        "n_reasoning_tokens": 4,
        "finish_reason": "stop",
        "seed": 2**62 + 1,
        "reasoning": "a <think>b",
        "final": " c",
        "intervention": "fedcba9876543210",
    }
    return Generation(text, **(facts | changes))


def key(number: int) -> str:
    return response_key(**{**REQUEST, "seed": number})


def fill(path, numbers, text="response"):
    with Journal.open(path) as journal:
        journal.put_many([(key(n), Entry(generation(f"{text} {n}"))) for n in numbers])


def files(path):
    return sorted(path.glob("*.jsonl"))
