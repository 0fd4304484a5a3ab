"""`backend=server`: what is sent and what comes back."""

import json

import pytest

from tests.harness_ext.server.asking import (
    COMPLETIONS,
    EDIT,
    NEVER,
    PROMPTS,
    expected,
    generate,
    receipt,
)
from tests.lm_requests import generate_requests, loglikelihood_requests
from tests.steered_server import CACHED, POINT


def test_responses_in_order_with_a_receipt(server, load):
    lm = load()
    responses = generate(lm)
    for prompt, response in zip(PROMPTS, responses, strict=True):
        ids = expected(lm, prompt, 12)
        assert response == lm.tokenizer.decode(ids, skip_special_tokens=True)
        assert (response.n_tokens, response.finish_reason) == (12, "length")
        assert response.intervention == lm.plan.fingerprint
    rows = sum(len(lm.tokenizer(p).input_ids) + 12 - 1 - CACHED for p in PROMPTS)
    told = receipt(lm)
    assert told["rows"] == 3
    assert told["edits"][0]["selected"] == rows
    assert told["cached_tokens"] == 3 * CACHED


def test_what_a_server_adds_by_itself_is_sent_explicitly(server, load):
    generate(load(), PROMPTS[:1])
    (body,) = server.bodies(COMPLETIONS)
    assert body["temperature"] == 0
    assert body["top_p"] == 1
    assert body["top_k"] == 0
    assert body["repetition_penalty"] == 1
    assert body["min_p"] == 0
    assert body["return_token_ids"]
    assert body["model"] == "tiny"
    assert "seed" not in body


def test_sampling_sends_a_seed_of_each_response(server, load):
    lm = load()
    requests = generate_requests(PROMPTS[:1], {"do_sample": True, "temperature": 0.7, "top_k": 5})
    lm.generate_until(requests * 2, disable_tqdm=True)
    bodies = server.bodies(COMPLETIONS)
    assert len({body["seed"] for body in bodies}) == 2
    assert {(body["temperature"], body["top_k"]) for body in bodies} == {(0.7, 5)}


def test_the_baseline_says_nothing_of_an_intervention(server, load):
    lm = load(spec=None)
    generate(lm)
    assert not any("vllm_xargs" in body for body in server.bodies(COMPLETIONS))
    assert not server.bodies("/sae_steered/receipt")
    assert lm.intervention == "none"


def test_scores_of_a_prompt(server, load):
    lm = load()
    pairs = [("the cat", " sat"), ("the cat", " sat on the mat")]
    scores = lm.loglikelihood(loglikelihood_requests(pairs), disable_tqdm=True)
    for (context, continuation), (score, greedy) in zip(pairs, scores, strict=True):
        whole = lm.tokenizer(context + continuation).input_ids
        ids = whole[len(lm.tokenizer(context).input_ids) :]
        assert score == pytest.approx(-0.5 * len(ids))
        assert greedy
    body = server.bodies(COMPLETIONS)[-1]
    entry = json.loads(body["vllm_xargs"]["sae_steered"])
    assert body["prompt_logprobs"] == 1
    assert body["max_tokens"] == 1
    assert entry["prompt_len"] == len(lm.tokenizer("the cat").input_ids)


def test_stop_strings_of_an_answer_end_a_stream(server, load):
    """With delimiters that a token can write, the server's own stop strings would cut reasoning."""
    lm = load(**NEVER)
    ids = expected(lm, PROMPTS[0], 60)
    text = lm.tokenizer.decode(ids)
    stop = text[20:22]
    (response,) = generate(lm, PROMPTS[:1], until=[stop], max_gen_toks=60)
    assert response.finish_reason == "stop"
    assert response.n_tokens < 60
    assert stop not in response
    assert text.startswith(response)
    body = server.bodies(COMPLETIONS)[0]
    assert body["stream"]
    assert "stop" not in body
    assert receipt(lm)["rows"] == 1


def test_stop_strings_without_reasoning_are_the_servers(server, load):
    generate(load(think_start_token="<none>", think_end_token="</none>"), until=["zz"])
    bodies = server.bodies(COMPLETIONS)
    assert all(b["stop"] == ["zz"] and b["include_stop_str_in_output"] for b in bodies)


def test_requests_in_flight(server, load):
    generate(load(), [f"{p} {i}" for p in PROMPTS for i in range(8)])
    assert 4 < server.most_together <= 16  # 4 for each of max_num_seqs 4
    server.most_together = 0
    generate(load(batch_size=2), [f"{p} {i}" for p in PROMPTS for i in range(4)])
    assert server.most_together <= 2


def test_a_median_norm_is_measured_by_the_server(server, load, sae_folder):
    spec = {"sae": {"path": sae_folder()}, "edits": [EDIT]}
    lm = load(spec=spec)
    asked = server.bodies("/sae_steered/median_norm")
    stored = lm.plan.layers[0].median_norm
    assert (asked == [{"hook_points": [POINT]}] and stored == 5.0) or (not asked and stored)
    generate(lm)
