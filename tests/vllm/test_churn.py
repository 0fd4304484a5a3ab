"""Requests come and go, with more interventions than slots: nobody gets another one's."""

import random

import pytest

from tests.vllm.conftest import ALL_LAYERS
from tests.vllm.receipts import check_receipt
from tests.vllm.reference import CLOSE

pytestmark = pytest.mark.real
N, LONGEST = 500, 12


def test_500_requests_and_fewer_slots_than_interventions(compiled, world, ask, say):
    specs = dict(world.specs)
    real = world.reference.saes["default"]
    # Features that fire often somewhere, from the counts stored with the SAE.
    loud = real.stats["count"].argsort(descending=True)[50:80].tolist()
    for feature in loud:
        edit = {"op": "add", "feature": feature, "value": 120.0}
        specs[f"feature {feature}"] = {"sae": "default", "edits": [edit]}
    (state,) = compiled.call("inside", "state")
    assert state["slots"] < len(specs)
    # Every specification has one prompt; unsteered requests have all of them.
    cases = [(None, i) for i in range(8)] + [(name, i % 8) for i, name in enumerate(specs)]
    generator = random.Random(5)
    requests = []
    for number in range(N):
        case = cases[generator.randrange(8)] if number % 7 == 0 else generator.choice(cases)
        prompt, spec = world.prompts[case[1]], specs.get(case[0])
        request = ask(prompt, spec, max_tokens=generator.randint(1, LONGEST))
        # More at once than fit, and ids come back.
        request |= {"at": number // 6, "name": f"c{generator.randrange(150)}", "case": case}
        if generator.random() < 0.12:
            request["abort"] = generator.choice([0, 0, 1, 2, 4])
        requests.append(request)
    solo = {}
    for name, prompt in cases:
        request = ask(world.prompts[prompt], specs.get(name), max_tokens=LONGEST)
        (answer,) = compiled.generate([request])
        (solo[name, prompt],) = answer["outputs"]
    differ = sum(solo[case] != solo[None, case[1]] for case in cases[8:])
    results = compiled.call("churn", requests)
    done = [(q, a) for q, a in zip(requests, results, strict=True) if a is not None]
    aborted = N - len(done)
    ties = []
    for request, answer in done:
        case, (output,) = request["case"], answer["outputs"]
        assert len(output) == request["params"]["max_tokens"]
        if output != solo[case][: len(output)]:
            # A tie that another batch decided otherwise?
            gap = world.reference.misfit(request["prompt"], output, request.get("spec"))
            assert gap < CLOSE, f"{case}: {output}, alone {solo[case]}"
            ties.append(case)
    say(
        f"{len(done)} requests done, {aborted} aborted, {len(specs)} specifications on"
        f" {state['slots']} slots; {differ} of {len(specs)} steered outputs differ from unsteered"
        f" ones; {len(ties)} ties"
    )
    assert aborted >= 20
    assert len(ties) <= 2
    assert differ >= len(specs) // 2
    steered = [(q, a) for q, a in done if q.get("tag")]
    check_receipt(
        compiled,
        world.reference,
        [q for q, _ in steered],
        [a for _, a in steered],
        points=ALL_LAYERS,
        acts=False,
    )
    # One more step, in which the worker hears of the last ones that ended.
    (answer,) = compiled.generate([ask(world.prompts[0], max_tokens=LONGEST)])
    assert answer["outputs"] == [solo[None, 0]]
    (state,) = compiled.call("inside", "state")
    assert state["live"] == []
    assert state["rows"] == 0


def test_every_slot_is_free_again(compiled, world, ask):
    """As many new interventions at once as there are slots, after all the others."""
    (state,) = compiled.call("inside", "state")
    n = state["slots"]
    requests = []
    for number in range(n):
        edit = {"op": "add", "feature": 100 + number, "value": 100.0}
        spec = {"sae": "default", "edits": [edit]}
        requests.append(ask(world.prompts[number % 16], spec, max_tokens=6))
    results = compiled.generate(requests)
    check_receipt(compiled, world.reference, requests, results, points=ALL_LAYERS, acts=False)
    for request, result in list(zip(requests, results, strict=True))[:: n // 4]:
        (output,) = result["outputs"]
        assert world.reference.misfit(request["prompt"], output, request["spec"]) < CLOSE
