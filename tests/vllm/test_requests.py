"""What a request may ask: several outputs, scores of its prompt, nonsense."""

import pytest
import torch

from tests.vllm.conftest import ALL_LAYERS
from tests.vllm.receipts import check_receipt
from tests.vllm.reference import CLOSE

pytestmark = pytest.mark.real


def test_the_worker_is_a_process_of_its_own(compiled):
    host, *workers = compiled.call("inside", "pids")
    assert workers
    assert host not in workers


def test_several_outputs_of_one_request(compiled, world, ask, say):
    """The outputs of n=3 are those of three requests with the seeds that vLLM gives them."""
    prompt, changed = world.prompts[4], 0
    for name in ("add", "add generated", "gated units"):
        spec = world.specs[name]
        sampled = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 16}
        together = ask(prompt, spec, n=3, seed=11, **sampled)
        (answer,) = compiled.generate([together])
        assert len({tuple(output) for output in answer["outputs"]}) > 1
        check_receipt(compiled, world.reference, [together], [answer], points=ALL_LAYERS)
        single = [ask(prompt, spec, seed=11 + i, **sampled) for i in range(3)]
        plain = [ask(prompt, seed=11 + i, **sampled) for i in range(3)]
        answers = [a["outputs"][0] for a in compiled.generate(single)]
        assert answers == answer["outputs"]
        unsteered = [a["outputs"][0] for a in compiled.generate(plain)]
        changed += sum(a != b for a, b in zip(answers, unsteered, strict=True))
    say(f"{changed} of 9 steered samples differ from unsteered ones")
    assert changed >= 6


def test_scores_of_a_continuation_equal_the_reference(compiled, world, ask, say):
    """What loglikelihood needs: the tokens after `prompt_len` count as generated."""
    texts = [world.prompts[i] for i in (0, 3, 8)]
    ends = [world.tokenizer.encode(end) for end in (" I went to a concert.", " Light, of course.")]
    names = [None, "add", "add generated", "clamp last prompt", "clamp thinking", "three layers"]
    requests = []
    for name in names:
        for prompt in texts:
            for end in ends:
                requests.append(
                    ask(
                        [*prompt, *end],
                        world.specs.get(name),
                        prompt_logprobs=1,
                        max_tokens=1,
                        prompt_len=len(prompt),
                    )
                )
    results = compiled.generate(requests)
    scores, changed = [], 0
    for request, result in zip(requests, results, strict=True):
        ids, first = request["prompt"], request["prompt_len"]
        rows = result["prompt_logprobs"]
        got = torch.tensor([rows[i][ids[i]] for i in range(first, len(ids))])
        logits, _ = world.reference.run(ids, first, request.get("spec"))
        wanted = logits.log_softmax(1)[first - 1 : -1]
        wanted = wanted.gather(1, torch.tensor(ids[first:]).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(got, wanted, atol=2e-3, rtol=0)
        scores.append(float(got.sum()))
        assert result["cached"] == 0
    n = len(texts) * len(ends)
    for i, score in enumerate(scores[n:]):
        changed += abs(score - scores[i % n]) > 0.05
    say(f"{changed} of {len(scores) - n} steered scores differ from unsteered ones by over 0.05")
    assert changed >= 20
    check_receipt(compiled, world.reference, requests[n:], results[n:], points=ALL_LAYERS)


BAD = [
    ({"sae": "default", "edits": [{"feature": 4608, "value": 1}]}, "outside 0..4607"),
    ({"sae": "default", "edits": [{"feature": 9, "op": "boost", "value": 1}]}, "op"),
    ({"sae": "default", "edits": [{"feature": 9}]}, "needs either `value` or `strength`"),
    ({"sae": "default", "edits": [{"feature": 9, "value": float("nan")}]}, "finite"),
    ({"sae": "default", "edit": []}, "unknown key"),
    ({"sae": "missing-folder", "edits": [{"feature": 9, "value": 1}]}, "missing-folder"),
    (
        {"sae": "default", "edits": [{"feature": f, "value": 1} for f in range(9)]},
        "9 edits",
    ),
    (
        {
            "sae": "default",
            "hook_point": "blocks.3.hook_resid_post",
            "norm_guard": None,
            "edits": [{"feature": 9, "value": 1}],
        },
        "not at blocks.3.hook_resid_post",
    ),
    (
        {
            "sae": "default",
            "hook_point": "blocks.40.hook_resid_post",
            "edits": [{"feature": 9, "value": 1}],
        },
        "layer 40 is outside 0..29",
    ),
    (
        {"sae": "default", "positions": "thinking", "edits": [{"feature": 9, "value": 1}]},
        "<think>",
    ),
    ("add", "`spec` is a mapping"),
]

RAW = [
    ("{", "is not JSON"),
    ("x" * (1 << 20 | 1), "1048577 characters"),
    (["add"], "not list"),
    ({"spec": {"edits": []}, "name": "x"}, "unknown key 'name'"),
    ({"spec": BAD[0][0] | {"edits": [{"value": 1}]}, "prompt_len": 0}, "`prompt_len` 0"),
]


@pytest.mark.parametrize(("spec", "words"), BAD, ids=[words for _, words in BAD])
def test_nonsense_is_refused_and_the_engine_lives(compiled, world, ask, spec, words):
    refused = compiled.call("refusal", ask(world.prompts[0], spec))
    assert words in refused
    (answer,) = compiled.generate([ask(world.prompts[0], world.specs["add"], max_tokens=3)])
    output = answer["outputs"][0]
    assert world.reference.misfit(world.prompts[0], output, world.specs["add"]) < CLOSE


@pytest.mark.parametrize(("raw", "words"), RAW, ids=[words for _, words in RAW])
def test_a_malformed_entry_is_refused(compiled, world, raw, words):
    request = {"prompt": world.prompts[0], "params": {"max_tokens": 2}, "raw": raw}
    assert words in compiled.call("refusal", request)
    assert compiled.generate([{**request, "raw": None}])


def test_nothing_to_edit_is_unsteered(compiled, world, ask):
    nothing = ask(world.prompts[1], {"edits": []}, max_tokens=8)
    plain = ask(world.prompts[1], max_tokens=8)
    (one,), (other,) = compiled.generate([nothing]), compiled.generate([plain])
    assert one["outputs"] == other["outputs"]
