"""Every operator, position, gate and guard in one batch says what the reference says."""

import copy

import pytest
import torch

from interventions.backends.vllm.identity import checkpoint_digest
from interventions.backends.vllm.ledger import check_request
from interventions.errors import ReceiptError
from interventions.hook_points import parse_hook_point
from interventions.plan import ModelFacts, make_plan
from interventions.receipt import TokenFacts
from interventions.spec import parse_spec
from tests.vllm.conftest import ALL_LAYERS, point
from tests.vllm.receipts import check_receipt
from tests.vllm.reference import CLOSE

pytestmark = pytest.mark.real


def test_a_mixed_batch_equals_the_reference(compiled, world, ask, say):
    """Compiled, fp32, 64 tokens, at least 20 specifications beside unsteered requests."""
    names = list(world.specs)
    assert len(names) >= 20
    requests, plain = [], []
    for number, name in enumerate(names):
        prompt = world.prompts[number % len(world.prompts)]
        requests.append(ask(prompt, world.specs[name], max_tokens=64))
        if number < len(world.prompts):
            plain.append(ask(prompt, max_tokens=64))
    # Steered and unsteered ones share steps.
    mixed = [q for pair in zip(requests, plain, strict=False) for q in pair]
    mixed += requests[len(plain) :]
    results = {id(q): a for q, a in zip(mixed, compiled.generate(mixed), strict=True)}
    unsteered = {tuple(q["prompt"]): results[id(q)]["outputs"][0] for q in plain}
    differ, worst = [], {}
    for name, request in [*zip(names, requests, strict=True), *(("", q) for q in plain)]:
        (output,) = results[id(request)]["outputs"]
        assert len(output) == 64
        worst[name] = world.reference.misfit(request["prompt"], output, request.get("spec"))
        if name and output != unsteered[tuple(request["prompt"])]:
            differ.append(name)
    ties = {name: round(gap, 5) for name, gap in worst.items() if gap > 0}
    say(
        f"{len(differ)} of {len(names)} steered outputs differ from unsteered ones, in one batch"
        f" with {len(plain)} unsteered requests; not: {sorted(set(names) - set(differ)) or 'none'};"
        f" margins over 0: {ties or 'none'}"
    )
    assert max(worst.values()) < CLOSE, {n: gap for n, gap in worst.items() if gap >= CLOSE}
    assert len(differ) >= 20
    answers = [results[id(q)] for q in requests]
    receipts = check_receipt(compiled, world.reference, requests, answers, points=ALL_LAYERS)
    check_ledger(world, requests, answers, receipts)


def check_ledger(world, requests, answers, receipts):
    """The package's own check agrees, and notices one row too many, an edit less, a missing row."""
    points = [parse_hook_point(point(layer)) for layer in ALL_LAYERS]
    facts = ModelFacts(world.path, 576, 30, checkpoint_digest(world.path, torch.float32))
    start, end = world.reference.delimiters
    tokens = TokenFacts(world.reference.bos, start, end)
    for request, answer in zip(requests, answers, strict=True):
        arguments = {
            "prompt": request["prompt"],
            "generated": answer["outputs"][0],
            "cached": answer["cached"],
            "tokens": tokens,
        }
        plan, tag = make_plan(parse_spec(request["spec"]), facts), request["tag"]
        counts, expected = check_request(plan, points, receipts, tag, **arguments)
        assert [count.selected for count in counts] == expected
        assert len(counts) == len(request["spec"]["edits"])
        for spoil in (_one_row_more, _no_counts, _rows_lost):
            wrong = copy.deepcopy(receipts)
            spoil(wrong[0]["requests"][tag][0])
            with pytest.raises(ReceiptError):
                check_request(plan, points, wrong, tag, **arguments)


def _one_row_more(facts):
    next(iter(facts["counts"].values()))[0][0] += 1


def _no_counts(facts):
    facts["counts"].popitem()


def _rows_lost(facts):
    facts["spans"][-1][1] -= 1
