"""What `backend=vllm` generates, against `backend=hf`, whose hooks are tested by a reference."""

import pytest

from tests.vllm_lm.asked import SPECS, ask, compare, questions


def receipt(lm):
    return lm.get_model_info()["sae_steered"]["receipt"]


@pytest.mark.parametrize("name", SPECS)
def test_same_responses_fingerprint_and_counts(lm, hf, say, name):
    asked = questions(hf, 6)
    plain = ask(hf, asked)
    for model in (lm, hf):
        model.set_intervention(SPECS[name])
    assert lm.intervention == hf.intervention
    assert lm.plan.fingerprint == hf.plan.fingerprint
    ours, theirs = ask(lm, asked), ask(hf, asked)
    ties = compare(hf, asked, ours, theirs)
    changed = sum(str(a[0]) != str(b[0]) for a, b in zip(theirs, plain, strict=True))
    say(f"{changed} of {len(asked)} differ from unsteered, {ties} part from hf at a near tie")
    if name == "none":
        assert receipt(lm)["rows"] == 0
        return
    assert changed
    mine, reference = receipt(lm), receipt(hf)
    assert mine["rows"] == reference["rows"] == 6
    assert all(edit["selected"] == edit["expected"] for edit in mine["edits"])
    if not ties:
        for edit, same in zip(mine["edits"], reference["edits"], strict=True):
            # What came from the prefix cache was edited when it was computed.
            assert same["selected"] - mine["cached_tokens"] <= edit["selected"] <= same["selected"]
    if name == "generated" and not ties:
        assert mine["edits"] == reference["edits"]
        assert mine["edits"][0]["selected"] == sum(one.n_tokens - 1 for (one,) in ours)


def test_what_is_written_into_results(lm):
    lm.set_intervention(SPECS["two layers"])
    told = lm.get_model_info()["sae_steered"]
    assert told["backend"] == "vllm"
    assert told["intervention"] == lm.plan.fingerprint
    assert told["engine"]["dtype"] == "torch.float32"
    assert len(told["edits"]["edits"]) == 2
