"""Every operator, position, gate and guard in one batch says what the reference says."""

import pytest

from tests.vllm.conftest import ALL_LAYERS
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
    ours = [(q, results[id(q)]) for q in requests]
    check_receipt(
        compiled, world.reference, requests, [answer for _, answer in ours], points=ALL_LAYERS
    )
