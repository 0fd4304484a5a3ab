"""Where nothing is steered, vLLM with the plugin is vLLM to the last bit."""

import pytest

pytestmark = pytest.mark.real


def test_unsteered_rows_are_bit_equal_to_plain_vllm(plain_answers, compiled, world, ask, say):
    """Alone, and in steps whose other rows are steered; the ten best logprobs of every token."""
    questions, plain = plain_answers
    idle = [ask(prompt, logprobs=10, max_tokens=24) for prompt in questions]
    names = ["clamp", "ablate", "early layer", "gated units", "no guard", "three layers"]
    mixed = [
        ask(prompt, world.specs[names[i % 6]] if i % 2 else None, logprobs=10, max_tokens=24)
        for i, prompt in enumerate(questions)
    ]
    for number, requests in enumerate((idle, mixed)):
        assert compiled.call("reset")
        answers = compiled.generate(requests)
        # The same steps as without the plugin, so the same shapes.
        assert all(answer["cached"] == 0 for answer in answers)
        changed = 0
        for request, answer, reference in zip(requests, answers, plain, strict=True):
            if "spec" in request:
                changed += answer["outputs"] != reference["outputs"]
            else:
                assert answer["outputs"] == reference["outputs"]
                assert answer["logprobs"] == reference["logprobs"]
        steered = sum("spec" in request for request in requests)
        say(f"{changed} of {steered} steered outputs differ from unsteered ones")
        assert changed >= steered // 2
        assert steered == number * (len(questions) // 2)
