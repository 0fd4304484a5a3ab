"""Stop strings: those of the engine where nobody reasons, ours where reasoning must stay whole."""

import pytest

from harness_ext.stopping import Delimiters
from tests.vllm_lm.asked import SPECS, ask, compare, questions


@pytest.fixture
def delimited(lm, hf):
    """Give both models delimiters; their own come back afterwards."""
    before = lm._delimiters, hf._delimiters
    yield lambda made: [setattr(model, "_delimiters", made) for model in (lm, hf)]
    lm._delimiters, hf._delimiters = before


@pytest.mark.parametrize("name", ["none", "all"])
def test_plain_stop_strings(lm, hf, say, name):
    asked = questions(hf, 6)
    for model in (lm, hf):
        model.set_intervention(SPECS[name])
    until = [" =", ".\n"]
    ours, theirs = (ask(model, asked, until=until) for model in (lm, hf))
    ties = compare(hf, asked, ours, theirs)
    stopped = [one for (one,) in ours if one.finish_reason == "stop" and one.n_tokens > 1]
    say(f"{len(stopped)} of 6 ended by a stop string or end of text, {ties} near ties")
    assert not any(stop in one for (one,) in ours for stop in until)
    assert len(stopped) >= 3


@pytest.mark.parametrize("name", ["none", "all"])
def test_reasoning_is_never_cut(lm, hf, delimited, say, name):
    """The prompt leaves a span open, and ' =' closes it: digits stop the answer after it alone."""
    delimited(Delimiters("assistant", " ="))
    asked = questions(hf, 6)
    for model in (lm, hf):
        model.set_intervention(SPECS[name])
    until = ["1", "0", " is"]
    streamed = []
    submit = lm._engine.submit
    lm._engine.submit = lambda request: streamed.append(request.watch) or submit(request)
    try:
        ours, theirs = (ask(model, asked, until=until) for model in (lm, hf))
    finally:
        del lm._engine.submit
    ties = compare(hf, asked, ours, theirs)
    whole = [one for (one,) in ours if any(stop in one.reasoning for stop in until)]
    ended = [one for (one,) in ours if one.reasoning and one.finish_reason == "stop"]
    say(f"{len(whole)} reasonings hold a stop string, {len(ended)} answers ended; {ties} near ties")
    assert whole
    assert ended
    assert None not in streamed
    assert not any(stop in one.final for (one,) in ours for stop in until if one.reasoning)


def test_delimiters_that_the_model_may_write(lm, hf, delimited, say):
    """Nothing is open in the prompt; a response may open a span by itself."""
    delimited(Delimiters(" =", "."))
    asked = questions(hf, 6)
    ours, theirs = (ask(model, asked, until=["1", " "]) for model in (lm, hf))
    compare(hf, asked, ours, theirs)
    ours, theirs = (ask(model, asked, until=["1"]) for model in (lm, hf))
    ties = compare(hf, asked, ours, theirs)
    say(f"{sum(bool(one.n_reasoning_tokens) for (one,) in ours)} of 6 reason; {ties} near ties")
