"""One engine, many interventions: switching, refusing, lm-eval's own cache."""

from typing import Any

import pytest
from lm_eval import simple_evaluate

from interventions.errors import SAEError, SpecError
from tests.vllm_lm.asked import CLAMP, SPECS, ask, compare, facts, questions, spec


def test_feature_after_feature(lm, hf, say):
    asked, ties, texts = questions(hf, 2), 0, {}
    for feature in (3036, 100, 2000, 1444):
        wanted = spec({"op": "add", "feature": feature, "value": 80.0})
        for model in (lm, hf):
            model.set_intervention(wanted)
        assert lm.intervention == hf.intervention
        ours = ask(lm, asked)
        ties += compare(hf, asked, ours, ask(hf, asked))
        texts[feature] = [str(one) for (one,) in ours]
        told = lm.get_model_info()["sae_steered"]["receipt"]
        assert told["rows"] == 2
    lm.set_intervention(None)
    assert lm.intervention == "none"
    hf.set_intervention(None)
    plain = ask(lm, asked)
    compare(hf, asked, plain, ask(hf, asked))
    different = len({tuple(found) for found in [*texts.values(), [str(o) for (o,) in plain]]})
    say(f"{different} different pairs of texts of 5 interventions, {ties} near ties")
    assert different >= 4


def test_a_hook_point_that_is_not_declared(lm, hf):
    lm.set_intervention(SPECS["all"])
    before = lm.intervention
    for refused, kind, message in (
        (spec(CLAMP, hook_point="blocks.3.hook_resid_post"), SpecError, "declare it when"),
        (spec({"op": "ablate", "feature": 99999}), SAEError, "99999"),
        (spec(*({"op": "add", "feature": f, "value": 1.0} for f in range(9))), SpecError, "9 edit"),
    ):
        with pytest.raises(kind, match=message) as caught:
            lm.set_intervention(refused)
        assert "\n" not in str(caught.value)
        assert lm.intervention == before
    ask(lm, questions(hf, 1))  # and the engine lives


def test_use_cache_is_kept_apart(lm, tmp_path):
    def evaluate():
        run: Any = simple_evaluate  # its decorator hides its parameters from type checkers
        found = run(
            model=lm, tasks=["steer_arith"], limit=3, apply_chat_template=True, bootstrap_iters=0,
            gen_kwargs={"max_gen_toks": 16}, use_cache=str(tmp_path / "cache"),
        )  # fmt: skip
        rows = lm.get_model_info()["sae_steered"]["receipt"]["rows"]
        return [row["resps"][0][0] for row in found["samples"]["steer_arith"]], rows

    lm.set_intervention(SPECS["all"])
    first, rows = evaluate()
    assert rows == 3
    lm.set_intervention(SPECS["all"])
    again, rows = evaluate()
    assert rows == 0
    assert list(map(facts, again)) == list(map(facts, first))
    lm.set_intervention(SPECS["generated"])
    other, rows = evaluate()
    assert rows == 3
    assert list(map(str, other)) != list(map(str, first))
