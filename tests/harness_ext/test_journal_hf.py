"""backend=hf with a journal: what is resumed, what never is, and what the receipt says of it."""

import logging

import pytest
from lm_eval.api.instance import Instance

from harness_ext.journal import Journal, JournalError
from interventions.errors import ReceiptError
from tests.lm_requests import generate_requests, loglikelihood_requests

EDIT = {"op": "clamp", "feature": 3, "value": 4.0}
EDITS = [EDIT, {"op": "add", "feature": 5, "value": 2.0, "positions": "generated"}]
SAMPLED = {"do_sample": True, "temperature": 0.9}
PROMPTS = ["the cat sat on the mat", "x", "What is it?", "in the end", "a man ran"]


@pytest.fixture
def journaled(steered, tmp_path):
    """Return a function that loads a model with the one journal of the test."""

    def load(edits=EDITS, **options):
        return steered(edits, journal=tmp_path / "j", **options)

    return load


def count_batches(lm):
    sizes, real = [], lm._generate_batch
    lm._generate_batch = lambda batch, decoding: sizes.append(len(batch)) or real(batch, decoding)
    return sizes


def receipt_of(lm, resumed=None):
    receipt = lm.get_model_info()["sae_steered"]["receipt"]
    assert receipt.pop("resumed", 0) == (resumed or 0)
    return receipt


def attributes(responses):
    return [(str(r), vars(r)) for r in responses]


def repeated(prompts, gen_kwargs, k=3):
    return [request for r in generate_requests(prompts, gen_kwargs) for request in [r] * k]


@pytest.mark.parametrize("gen_kwargs", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_second_run_generates_nothing_and_says_the_same(steered, journaled, gen_kwargs):
    requests = repeated(PROMPTS, gen_kwargs)
    plain = steered(EDITS)
    wanted = plain.generate_until(requests, disable_tqdm=True)
    first = journaled()
    fresh = first.generate_until(requests, disable_tqdm=True)
    again = journaled()
    sizes = count_batches(again)
    resumed = again.generate_until(requests, disable_tqdm=True)
    assert sizes == []
    assert attributes(resumed) == attributes(fresh) == attributes(wanted)
    # Three greedy answers to one prompt are one response.
    shared = 0 if gen_kwargs else 10
    assert receipt_of(again, 15) == receipt_of(first, shared) == receipt_of(plain)
    assert receipt_of(plain)["rows"] == 15
    assert receipt_of(plain)["edits"][0]["fired"] > 0
    info = again.get_model_info()["sae_steered"]["journal"]
    assert (info["resumed"], info["made"], info["problems"]) == (15, 0, [])
    assert len(info["made_by"]) == 1
    with Journal.open(info["path"]) as journal:
        assert len(journal) == 15 - shared
    if gen_kwargs:
        assert len(set(fresh[:3])) > 1


def test_only_what_is_missing_is_generated(steered, journaled):
    journaled().generate_until(generate_requests(PROMPTS[1:3], SAMPLED), disable_tqdm=True)
    plain, lm = steered(EDITS), journaled()
    sizes = count_batches(lm)
    responses = lm.generate_until(generate_requests(PROMPTS, SAMPLED), disable_tqdm=True)
    assert sizes == [3]
    wanted = plain.generate_until(generate_requests(PROMPTS, SAMPLED), disable_tqdm=True)
    assert attributes(responses) == attributes(wanted)
    assert receipt_of(lm, 2) == receipt_of(plain)


def test_each_batch_is_kept_before_the_next_one(journaled, monkeypatch):
    lm = journaled(batch_size=2)
    real, calls = lm.model.generate, []

    def third_fails(**kwargs):
        calls.append(1)
        return real(**kwargs) if len(calls) < 3 else 1 / 0

    monkeypatch.setattr(lm.model, "generate", third_fails)
    with pytest.raises(ZeroDivisionError):
        lm.generate_until(generate_requests(PROMPTS), disable_tqdm=True)
    again = journaled(batch_size=2)
    sizes = count_batches(again)
    again.generate_until(generate_requests(PROMPTS), disable_tqdm=True)
    assert sizes == [1]


def test_a_batch_that_fails_its_receipt_is_not_kept(journaled, tmp_path, monkeypatch):
    from interventions.backends.hf import HFSteering

    lm = journaled()
    monkeypatch.setattr(HFSteering, "finish_rows", lambda self, done, column: None)
    lm.model.generation_config.eos_token_id = list(range(1, 200))
    with pytest.raises(ReceiptError):
        lm.generate_until(
            generate_requests(PROMPTS, {**SAMPLED, "max_gen_toks": 20}), disable_tqdm=True
        )
    with Journal.open(tmp_path / "j") as journal:
        assert len(journal) == 0


def test_an_edit_without_effect_is_refused_when_resumed_too(journaled, tmp_path):
    edits = [{**EDIT, "positions": "thinking"}]
    for _ in range(2):
        with pytest.raises(ReceiptError, match="'thinking' never occurred in 5 inputs"):
            journaled(edits).generate_until(generate_requests(PROMPTS), disable_tqdm=True)
    with Journal.open(tmp_path / "j") as journal:
        assert len(journal) == 5


OTHERS = {
    "no spec": ({"edits": []}, {}),
    "another value": ({"edits": [{**EDIT, "value": 4.5}]}, {}),
    "another model": ({"model": {"seed": 1}}, {}),
    "another dtype": ({"dtype": "bfloat16"}, {}),
    "another seed": ({"seed": 5}, {}),
    "another delimiter": ({"think_end_token": "</thought>"}, {}),
    "another tokenizer": ({"model": {"special_think": True}}, {}),
    "another prompt": ({}, {"prompt": "the cat sat on the map"}),
    "another stop string": ({}, {"until": ["e"]}),
    "another budget": ({}, {"max_gen_toks": 11}),
    "another temperature": ({}, {"temperature": 0.8}),
    "top_p": ({}, {"top_p": 0.9}),
    "greedy": ({}, {"do_sample": False, "temperature": 0.0}),
    "seed of the request": ({}, {"seed": 9}),
    "another option": ({}, {"repetition_penalty": 1.2}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_request_never_hits(journaled, steered, name):
    model, request = OTHERS[name]
    prompt = request.get("prompt", PROMPTS[0])
    options = {k: v for k, v in request.items() if k != "prompt"}
    journaled([EDIT]).generate_until(generate_requests(PROMPTS[:1], SAMPLED), disable_tqdm=True)
    lm = journaled(**{"edits": [EDIT], **model})
    wanted = steered(**{"edits": [EDIT], **model})
    sizes = count_batches(lm)
    requests = generate_requests([prompt], {**SAMPLED, **options})
    got = lm.generate_until(requests, disable_tqdm=True)
    assert sizes == [1]
    assert attributes(got) == attributes(wanted.generate_until(requests, disable_tqdm=True))


def test_question_and_repeat_count_by_their_seed(journaled):
    """Two questions with one prompt are two samples; greedy, they are one response."""
    requests = [
        request
        for qid in ("a", "b")
        for more in (SAMPLED, {})
        for request in generate_requests(PROMPTS[:1], more, {"qid": qid})
    ]
    lm = journaled()
    responses = lm.generate_until(requests, disable_tqdm=True)
    assert lm.get_model_info()["sae_steered"]["journal"]["made"] == 3
    assert responses[1] == responses[3]
    assert responses[0].seed != responses[2].seed


def test_switching_the_intervention_switches_the_responses(journaled, steered):
    lm = journaled([EDIT])
    wanted = {}
    sae = lm.plan.spec.sae.model_dump(exclude_none=True)
    for value in (4.0, 9.0, None, 4.0, None):
        spec = None if value is None else {
            "sae": sae, "norm_guard": None, "edits": [{**EDIT, "value": value}]
        }  # fmt: skip
        lm.set_intervention(spec)
        sizes = count_batches(lm)
        got = lm.generate_until(generate_requests(PROMPTS), disable_tqdm=True)
        assert bool(sizes) == (value not in wanted)
        assert wanted.setdefault(value, got) == got
    assert len({str(v) for v in wanted.values()}) == 3


PAIRS = [
    ("the cat", " sat"),
    ("the cat", " s"),
    ("the cat", " t"),
    ("x", "yz"),
    ("in the", " end of it"),
    ("the cat", " sat"),
    ("a b", "c"),
]


@pytest.mark.parametrize("batch_size", [2, "auto"])
@pytest.mark.parametrize("logits_cache", [True, False])
def test_scores_are_resumed_too(steered, journaled, tmp_path, logits_cache, batch_size):
    edits = [EDIT, {**EDIT, "feature": 9}]
    options = {"logits_cache": logits_cache, "batch_size": batch_size}
    pairs = loglikelihood_requests(PAIRS)
    plain = steered(edits, **options)
    wanted = plain.loglikelihood(pairs, disable_tqdm=True)
    first = journaled(edits, **options)
    assert first.loglikelihood(pairs[:4], disable_tqdm=True) == wanted[:4]
    second = journaled(edits, **options)
    got = second.loglikelihood(pairs, disable_tqdm=True)
    assert [g for _, g in got] == [g for _, g in wanted]
    assert [s for s, _ in got] == pytest.approx([s for s, _ in wanted], abs=1e-5)
    third = journaled(edits, **options)
    third._model_call = None
    assert third.loglikelihood(pairs, disable_tqdm=True) == got
    receipts = [lm.get_model_info()["sae_steered"]["receipt"] for lm in (plain, second, third)]
    assert receipts[1].pop("resumed") > 0
    assert receipts[2].pop("resumed") == receipts[2]["rows"]
    assert receipts[0] == receipts[1] == receipts[2]


def test_scores_equal_those_without_a_journal(steered, journaled):
    pairs = loglikelihood_requests(PAIRS)
    wanted = steered([EDIT], batch_size=3).loglikelihood(pairs, disable_tqdm=True)
    assert journaled([EDIT], batch_size=3).loglikelihood(pairs, disable_tqdm=True) == wanted


def test_rolling_scores_are_resumed(steered, journaled):
    texts = [
        Instance("loglikelihood_rolling", {}, ("the cat sat on the mat " * n,), n) for n in (1, 9)
    ]
    wanted = steered([EDIT]).loglikelihood_rolling(texts, disable_tqdm=True)
    fresh = journaled([EDIT]).loglikelihood_rolling(texts, disable_tqdm=True)
    assert fresh == pytest.approx(wanted, abs=1e-4)
    again = journaled([EDIT])
    again._model_call = None
    assert again.loglikelihood_rolling(texts, disable_tqdm=True) == fresh


def test_other_scores_never_hit(journaled):
    lm = journaled([EDIT])
    lm.loglikelihood(loglikelihood_requests([("the cat", " sat")]), disable_tqdm=True)
    others = [("the", " cat sat"), ("the cat", " sit"), ("a cat", " sat")]
    for pair in others:
        lm.loglikelihood(loglikelihood_requests([pair]), disable_tqdm=True)
    lm.set_intervention(None)
    lm.loglikelihood(loglikelihood_requests([("the cat", " sat")]), disable_tqdm=True)
    info = lm.get_model_info()["sae_steered"]["journal"]
    assert (info["made"], info["resumed"]) == (5, 0)


def test_a_row_that_ends_in_token_zero(steered, journaled):
    """lm-eval pads with 0, a real token: two rows of one batch look alike."""
    requests = [(None, [5], [6, 0, 7]), (None, [5], [6, 8]), (None, [5, 6, 0], [0])]
    plain, lm = steered([EDIT]), journaled([EDIT])
    wanted = plain._loglikelihood_tokens(requests, disable_tqdm=True)
    assert lm._loglikelihood_tokens(requests, disable_tqdm=True) == wanted
    again = journaled([EDIT])
    assert again._loglikelihood_tokens(requests, disable_tqdm=True) == wanted
    assert receipt_of(again, 2) == receipt_of(lm) == receipt_of(plain)


def test_responses_of_another_version_are_named(journaled, monkeypatch, caplog):
    from harness_ext import model_hf

    monkeypatch.setattr(model_hf, "versions", lambda: {"torch": "1.0"})
    journaled().generate_until(generate_requests(PROMPTS), disable_tqdm=True)
    monkeypatch.undo()
    lm = journaled()
    with caplog.at_level(logging.WARNING):
        lm.generate_until(generate_requests(PROMPTS), disable_tqdm=True)
    assert "some responses were made with {'torch': '1.0'}" in caplog.text
    made_by = lm.get_model_info()["sae_steered"]["journal"]["made_by"]
    assert [facts["torch"] == "1.0" for facts in made_by] == [False, True]


def test_damage_in_the_middle_is_generated_again(journaled, tmp_path):
    wanted = journaled().generate_until(generate_requests(PROMPTS), disable_tqdm=True)
    (file,) = (tmp_path / "j").glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"n_tokens":12', b'"n_tokens":13')
    file.write_bytes(b"".join(lines))
    lm = journaled()
    sizes = count_batches(lm)
    got = lm.generate_until(generate_requests(PROMPTS), disable_tqdm=True)
    assert attributes(got) == attributes(wanted)
    assert sizes == [1]
    (problem,) = lm.get_model_info()["sae_steered"]["journal"]["problems"]
    assert "is damaged, its checksum is wrong" in problem


def test_a_bad_journal_is_refused_before_the_model_is_loaded(steered, tmp_path, monkeypatch):
    import transformers

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(JournalError, match="is a file; name a folder"):
        steered(EDITS, journal=tmp_path / "file")


def test_the_results_cache_and_the_journal_do_not_meet(journaled, tmp_path):
    from lm_eval.api.model import CachingLM

    requests = generate_requests(PROMPTS)
    wanted = journaled().generate_until(requests, disable_tqdm=True)
    lm = journaled()
    caching = CachingLM(lm, str(tmp_path / "cache.db"))
    assert caching.generate_until(requests) == wanted
    assert lm.get_model_info()["sae_steered"]["journal"]["resumed"] == 5
    # Resumed responses went into the cache, which answers before the journal is asked.
    assert caching.generate_until(requests) == wanted
    assert lm.get_model_info()["sae_steered"]["journal"]["resumed"] == 5
    caching.dbdict.close()


def test_without_a_journal_nothing_is_kept_or_said(steered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm = steered(EDITS)
    lm.generate_until(generate_requests(PROMPTS), disable_tqdm=True)
    assert list(tmp_path.iterdir()) == []
    assert lm.get_model_info()["sae_steered"]["journal"] is None
