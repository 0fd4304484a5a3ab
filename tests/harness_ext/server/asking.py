"""What the tests of `backend=server` ask, and how they read what came of it."""

import json

from tests.lm_requests import generate_requests
from tests.steered_server import next_token

EDIT = {"op": "clamp", "feature": 3, "value": 4.0}
PROMPTS = ["the cat sat on the mat", "an ear in the hat", "a b c d e f g"]
NEVER = {"think_start_token": "~", "think_end_token": "}"}
"""Delimiters that are tokens of the tiny tokenizer, and that the server never writes."""

COMPLETIONS = "/v1/completions"


def generate(lm, prompts=PROMPTS, **kwargs):
    return lm.generate_until(generate_requests(prompts, kwargs), disable_tqdm=True)


def receipt(lm):
    return lm.get_model_info()["sae_steered"]["receipt"]


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def tags(server):
    entries = [body.get("vllm_xargs") for body in server.bodies(COMPLETIONS)]
    return [json.loads(entry["sae_steered"])["tag"] for entry in entries]


def expected(lm, prompt, n):
    ids = lm.tokenizer(prompt).input_ids
    return [next_token(ids, i) for i in range(n)]
