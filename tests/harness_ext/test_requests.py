import pytest
from lm_eval.api.instance import Instance
from transformers import GenerationConfig

from harness_ext.requests import make_jobs, parse_decoding, refuse_cached_repeats
from interventions.errors import SpecError


def parse(gen_kwargs, **config):
    return parse_decoding(
        gen_kwargs,
        GenerationConfig(**config),
        max_gen_toks=256,
        seed=1234,
        eos_ids=[1],
        pad_id=2,
    )


@pytest.mark.parametrize(
    "kwargs", [{}, {"temperature": 0}, {"temperature": 0.0, "do_sample": False}]
)
def test_greedy(kwargs):
    decoding = parse({"until": "\n", **kwargs}, temperature=0.6, top_p=0.9, do_sample=True)
    assert decoding.sampling is None
    assert decoding.until == ["\n"]
    assert decoding.max_new_tokens == 256
    assert decoding.config.do_sample is False


def test_sampling_options_come_from_the_request_then_from_the_model():
    model = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert parse({"do_sample": True}, **model).sampling == {**model, "min_p": None}
    asked = parse({"temperature": 0.8, "top_k": 0, "min_p": 0.1, "seed": 0}, **model)
    assert asked.sampling == {"temperature": 0.8, "top_k": 0, "top_p": 0.95, "min_p": 0.1}
    assert asked.seed == 0
    assert parse({"do_sample": True}).sampling["temperature"] == 1.0
    assert parse({}).seed == 1234


@pytest.mark.parametrize(
    ("kwargs", "config", "message"),
    [
        ({"num_beams": 4}, {}, "'num_beams'=4 is not supported"),
        ({"num_return_sequences": 2}, {}, "'num_return_sequences'=2"),
        ({"do_sample": True, "temperature": 0}, {}, "temperature is 0"),
        ({"temperature": 0.6, "typical_p": 0.9}, {}, "'typical_p'=0.9"),
        ({"prompt_lookup_num_tokens": 3}, {}, "not supported: rows must stay in place"),
        ({"penalty_alpha": 0.6, "top_k": 4}, {}, "'penalty_alpha'=0.6"),
        ({"max_gen_toks": 0}, {}, "max_gen_toks 0"),
        ({"tempreature": 0.6}, {}, "unknown generation argument 'tempreature'=0.6"),
    ],
)
def test_what_cannot_be_done_is_refused(kwargs, config, message):
    with pytest.raises(SpecError, match=message) as caught:
        parse(kwargs, **config)
    assert "\n" not in str(caught.value)


def test_beams_of_the_models_own_config_are_not_taken_over():
    assert parse({}, num_beams=4).config.num_beams == 1


def test_other_options_are_passed_on():
    assert parse({"repetition_penalty": 1.2}).config.repetition_penalty == 1.2


def requests(kwargs=None, doc=None, prompt="ab"):
    return Instance("generate_until", doc or {}, (prompt, kwargs or {}), 0)


def jobs(instances, max_length=10):
    return make_jobs(instances, lambda text: list(text.encode()), max_length, "tiny")


def test_repeats_of_one_request_are_numbered():
    one, two = requests(), requests()
    assert [job.repeat for job in jobs([one, one, two, one])] == [0, 1, 0, 2]


def test_seeds_follow_the_question_where_it_has_an_id():
    plain, hinted = requests(doc={"qid": "q7"}), requests(doc={"qid": "q7"}, prompt="hint")
    assert [job.seed_key for job in jobs([plain, hinted, requests()])] == ["q7", "q7", "ab"]


def test_room_is_what_the_prompt_leaves():
    (job,) = jobs([requests(prompt="abcd")])
    assert (job.room, job.budget(3), job.budget(99)) == (6, 3, 6)


@pytest.mark.parametrize("prompt", ["a" * 10, "a" * 30])
def test_prompts_that_leave_no_room_are_refused(prompt):
    with pytest.raises(SpecError, match=f"prompt of {len(prompt)} tokens .* max_length 10 of tiny"):
        jobs([requests(prompt=prompt)])


def test_empty_prompts_are_refused():
    with pytest.raises(SpecError, match="0 tokens"):
        jobs([requests(prompt="")])


def test_repeats_that_the_cache_would_merge_are_refused():
    one = requests({"temperature": 0.6})
    refuse_cached_repeats(jobs([one]))
    with pytest.raises(SpecError, match="do_sample=true"):
        refuse_cached_repeats(jobs([one, one]))
    greedy, sampled = requests(), requests({"temperature": 0.6, "do_sample": True})
    refuse_cached_repeats(jobs([greedy, greedy, sampled, sampled]))
