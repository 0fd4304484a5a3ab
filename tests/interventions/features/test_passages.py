"""Which tokens count: parts, templates, spans, limits."""

import dataclasses

import pytest

from interventions.errors import FeatureError
from interventions.features.passages import Counting, Example, make_passage
from tests.tiny_models import make_tokenizer

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def counted_text(example, *, chat=CHAT, **settings):
    tokenizer = make_tokenizer(chat_template=chat)
    passage = make_passage(example, tokenizer, Counting(**settings))
    return tokenizer.decode(passage.ids[passage.counted]), tokenizer.decode(passage.ids)


REASONED = Example(group="q", prompt="the sum?", reasoning="an inner view", final="7 then")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("prompt", "the sum?"),
        ("reasoning", "an inner view"),
        ("final", "7 then"),
        ("response", "an inner view7 then"),
        ("all", "the sum?an inner view7 then"),
    ],
)
def test_each_part_is_its_own_characters(part, expected):
    counted, everything = counted_text(REASONED, part=part)
    assert counted == expected
    assert everything == "[user]the sum?\n[assistant]an inner view</think>7 then"


def test_the_template_counts_on_request():
    assert counted_text(REASONED, part="prompt", template=True)[0] == (
        "[user]the sum?\n[assistant]"
    )


def test_a_raw_prompt_goes_through_no_template_and_has_one_bos():
    raw = Example(group="q", prompt="<s>[x] the sum?", raw=True, final="7")
    _, everything = counted_text(raw, part="prompt")
    assert everything == "<s>[x] the sum?7"
    assert everything.count("<s>") == 1
    plain = Example(group="q", prompt="the sum?", final="7")
    assert counted_text(plain, chat=None, part="prompt") == ("the sum?", "<s>the sum?7")


def test_spans_of_prompt_and_response_narrow_what_counts():
    example = Example(group="q", prompt="Hints: the sum?", final="an error. the end", raw=True)
    spans = {"prompt_spans": ((7, 15),), "response_spans": ((0, 9),)}
    narrowed = dataclasses.replace(example, **spans)
    assert counted_text(narrowed, part="prompt")[0] == " the sum?"  # one token with its space
    assert counted_text(narrowed, part="response")[0] == "an error."
    hidden = dataclasses.replace(example, hidden=((3, 8),))
    assert counted_text(hidden, part="response")[0] == "an . the end"


def test_first_and_context_limit_the_tokens():
    tokenizer = make_tokenizer()
    example = Example(group="q", prompt="the", final="abcdefgh", raw=True)
    passage = make_passage(example, tokenizer, Counting(part="response", first=3))
    assert tokenizer.decode(passage.ids[passage.counted]) == "abc"
    short = make_passage(example, tokenizer, Counting(part="response", context=4))
    assert short.cut
    assert tokenizer.decode(short.ids[short.counted]) == "ab"
    assert not passage.cut


def test_a_template_that_changes_the_message_is_refused():
    upper = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(FeatureError, match="does not hold the message 'the sum"):
        counted_text(REASONED, chat=upper, part="prompt")


@pytest.mark.parametrize("settings", [{"part": "middle"}, {"first": 0}, {"context": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(FeatureError):
        Counting(**settings)
