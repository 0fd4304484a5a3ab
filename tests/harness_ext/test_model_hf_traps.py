"""The traps that lm-eval sets for a steered model."""

import json
import logging

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM

from harness_ext.generation import Generation
from harness_ext.model import SAESteeredLM
from interventions.errors import SpecError
from tests.lm_requests import generate_requests, loglikelihood_requests

EDIT = {"op": "add", "feature": 3, "value": 6.0}
OTHER = {"op": "add", "feature": 9, "value": 6.0}
PROMPTS = ["the cat sat on the mat", "What is 3 + 4 in the end?", "x"]
SAMPLED = {"do_sample": True, "temperature": 0.9}
R1_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
)


def test_a_shared_cache_never_crosses_interventions(steered, tmp_path):
    """One path, three interventions, and back: each reads what it wrote and nothing else."""
    lm = steered([EDIT])
    sae = {"path": lm.plan.spec.sae.path}
    specs = {
        "edit": {"sae": sae, "edits": [EDIT], "norm_guard": None},
        "other": {"sae": sae, "edits": [OTHER], "norm_guard": None},
        "none": None,
    }
    path = str(tmp_path / "cache.db")
    pairs = loglikelihood_requests([("the cat", " sat on"), ("x", " y z")])
    requests = generate_requests(PROMPTS)
    fresh, cached = {}, {}
    for name, spec in specs.items():
        lm.set_intervention(spec)
        fresh[name] = (
            lm.generate_until(requests, disable_tqdm=True),
            lm.loglikelihood(pairs, disable_tqdm=True),
        )
    assert len({str(value) for value in fresh.values()}) == 3
    for _ in range(2):
        for name, spec in specs.items():
            # A new process: a new model object and a new connection to the same file.
            model = steered([], spec=spec or {})
            caching = CachingLM(model, path)
            calls = []
            real = model._generate_batch
            model._generate_batch = lambda *args, real=real, calls=calls: (
                calls.append(1) or real(*args)
            )
            result = (caching.generate_until(requests), caching.loglikelihood(pairs))
            assert result == fresh[name]
            assert bool(calls) == (name not in cached)
            cached[name] = result
            assert all(
                isinstance(response, Generation) and response.intervention == model.intervention
                for response in result[0]
            )
            caching.dbdict.close()


def test_switching_the_intervention_switches_the_cache(steered, tmp_path):
    lm = steered([EDIT])
    caching = CachingLM(lm, str(tmp_path / "cache.db"))
    requests = generate_requests(PROMPTS)
    steered_text = caching.generate_until(requests)
    lm.set_intervention(None)
    assert caching.generate_until(requests) != steered_text
    lm.set_intervention({"sae": {"path": steered([EDIT]).plan.spec.sae.path}, "edits": [EDIT]})
    assert lm.intervention != "none"


def test_a_shared_cache_never_crosses_models_seeds_or_delimiters(steered, tmp_path):
    def table(**options):
        lm = steered([EDIT], **options)
        caching = CachingLM(lm, str(tmp_path / "cache.db"))
        try:
            return caching.dbdict.tablename
        finally:
            caching.dbdict.close()

    base = table()
    assert base == table()
    different = [
        table(seed=5),
        table(think_end_token="</thought>"),
        table(max_length=64),
        table(dtype="bfloat16"),
        table(model={"seed": 1}),
        table(spec={"positions": "prompt"}),
    ]
    assert len({base, *different}) == 7


def test_plain_hf_tables_are_not_read(steered, tmp_path, model_folder):
    """A cache that `hf` filled holds unsteered text under the very same keys."""
    path = str(tmp_path / "cache.db")
    requests = generate_requests(PROMPTS)
    plain = CachingLM(HFLM(model_folder(), dtype="float32", device="cpu", batch_size=3), path)
    unsteered = plain.generate_until(requests)
    plain.dbdict.close()
    caching = CachingLM(steered([EDIT]), path)
    responses = caching.generate_until(requests)
    assert responses != unsteered
    assert all(isinstance(response, Generation) for response in responses)


def test_sampled_repeats_without_do_sample_are_refused_with_a_cache(steered, tmp_path):
    lm = steered([EDIT])
    (request,) = generate_requests(PROMPTS[:1], {"temperature": 0.9})
    assert len(set(lm.generate_until([request] * 4, disable_tqdm=True))) > 1
    caching = CachingLM(lm, str(tmp_path / "cache.db"))
    with pytest.raises(SpecError, match="do_sample=true"):
        caching.generate_until([request] * 4)


def test_prompts_are_never_truncated(steered, generate):
    lm = steered([EDIT], max_length=40)
    prompt = "the cat sat on a mat " * 2
    n_prompt = len(lm._encode_prompt(prompt))
    assert n_prompt < 40
    # lm-eval's own `hf` would cut the prompt to make room for this budget.
    (response,) = generate(lm, [prompt], {"max_gen_toks": 39})
    assert response.n_tokens == 40 - n_prompt
    assert response.finish_reason == "length"
    free = steered([EDIT])
    assert generate(free, [prompt], {"max_gen_toks": 40 - n_prompt}) == [response]
    with pytest.raises(SpecError, match="never truncated"):
        generate(lm, [prompt * 3])


def test_until_never_cuts_reasoning_and_both_parts_are_kept(steered, generate):
    lm = steered([EDIT], model={"chat_template": R1_TEMPLATE})
    prompt = lm.apply_chat_template([{"role": "user", "content": "Why?"}])
    assert prompt.endswith("<think>\n")
    script = "the end\n\nand on</think>42\n\nQuestion"
    tokens = lm.tok_encode(script, add_special_tokens=False)
    force(lm, tokens)
    (response,) = generate(lm, [prompt], {"until": ["\n\n"], "max_gen_toks": 60})
    assert response == "the end\n\nand on</think>42"
    assert (response.reasoning, response.final) == ("the end\n\nand on", "42")
    assert response.finish_reason == "stop"
    kept = lm.tok_encode("the end\n\nand on</think>42\n\n", add_special_tokens=False)
    assert response.n_tokens == len(kept)
    force(lm, lm.tok_encode("never the end\n\nand on and on", add_special_tokens=False))
    (cut,) = generate(lm, [prompt], {"until": ["\n\n"], "max_gen_toks": 8})
    assert (cut.final, cut.finish_reason, cut.n_reasoning_tokens) == ("", "length", 8)


def force(lm, tokens):
    """Make the model say `tokens`, whatever its residual stream holds."""
    head = lm.model.get_output_embeddings()
    head._forward_hooks.clear()
    step = [0]

    def push(module, args, output):
        output[..., -1, tokens[min(step[0], len(tokens) - 1)]] = 1e4
        step[0] += 1

    head.register_forward_hook(push)


def test_seeds_are_shared_by_baseline_and_steered(steered, generate):
    lm, free = steered([EDIT]), steered([])
    doc = {"qid": "q1"}
    pairs = zip(
        generate(lm, PROMPTS, SAMPLED, doc), generate(free, PROMPTS, SAMPLED, doc), strict=True
    )
    for ours, base in pairs:
        assert ours.seed == base.seed is not None
    assert len({r.seed for r in generate(lm, PROMPTS, SAMPLED)}) == len(PROMPTS)
    # The arms of one question share it, too.
    assert len({r.seed for r in generate(lm, PROMPTS, SAMPLED, doc)}) == 1
    # An edit that writes nothing leaves the same luck: the same text.
    zero = steered([{"op": "add", "feature": 3, "value": 0.0}])
    assert generate(zero, PROMPTS, SAMPLED) == generate(free, PROMPTS, SAMPLED)
    assert all(r.seed is None for r in generate(lm, PROMPTS))


def test_seeds_follow_the_models_seed_and_the_requests(steered, generate):
    base, other = steered([EDIT]), steered([EDIT], seed=77)
    texts = [generate(lm, PROMPTS, SAMPLED) for lm in (base, other)]
    assert texts[0] != texts[1]
    assert generate(base, PROMPTS, {**SAMPLED, "seed": 77}) == texts[1]
    assert generate(base, PROMPTS, {**SAMPLED, "seed": 0}) != texts[0]


def test_repeats_are_different_samples(steered):
    lm = steered([EDIT])
    (request,) = generate_requests(PROMPTS[:1], SAMPLED)
    responses = lm.generate_until([request] * 5, disable_tqdm=True)
    assert len({r.seed for r in responses}) == 5
    assert len(set(responses)) > 2
    again = lm.generate_until([request] * 5, disable_tqdm=True)
    assert again == responses


def test_different_settings_in_one_call_are_kept_apart(steered):
    lm = steered([EDIT])
    short = generate_requests(PROMPTS, {"max_gen_toks": 3})
    long = generate_requests(PROMPTS, {"max_gen_toks": 9})
    mixed = lm.generate_until([*short, *long], disable_tqdm=True)
    assert [r.n_tokens for r in mixed] == [3] * 3 + [9] * 3


@pytest.mark.parametrize("given", [1, "1"])
def test_batch_size_1_of_the_command_line_is_auto(model_folder, given, caplog):
    arguments = {"pretrained": model_folder(), "dtype": "float32"}
    extra = {"batch_size": given, "max_batch_size": None, "device": "cpu"}
    with caplog.at_level(logging.INFO):
        lm = SAESteeredLM.create_from_arg_obj(arguments, extra)
    assert lm.batch_size == "auto"
    assert "auto" in caplog.text
    generate = lm.generate_until(generate_requests(PROMPTS), disable_tqdm=True)
    assert len(generate) == len(PROMPTS)
    assert lm.loglikelihood(loglikelihood_requests([("a", "b")]), disable_tqdm=True)


def test_other_batch_sizes_are_kept(model_folder):
    arguments = {"pretrained": model_folder(), "dtype": "float32"}
    lm = SAESteeredLM.create_from_arg_obj(dict(arguments), {"batch_size": 5, "device": "cpu"})
    assert lm.batch_size == 5
    lm = SAESteeredLM.create_from_arg_obj(
        {**arguments, "batch_size": 1}, {"batch_size": 4, "device": "cpu"}
    )
    assert lm.batch_size == 1


def test_model_info_is_json_and_says_what_was_done(steered, generate):
    lm = steered([EDIT], spec={"name": "mine", "positions": "generated"})
    generate(lm, PROMPTS)
    info = json.loads(json.dumps(lm.get_model_info()["sae_steered"], allow_nan=False))
    assert info["intervention"] == lm.intervention != "none"
    assert info["name"] == "mine"
    assert info["backend"] == "hf"
    assert info["spec"]["positions"] == "generated"
    assert info["edits"]["edits"][0]["feature"] == 3
    assert info["receipt"]["edits"][0]["selected"] == 11 * len(PROMPTS)
    assert info["seed"] == 1234
    assert info["versions"]["lm-eval"].startswith("0.4")


def test_a_loaded_model_may_be_passed(model_folder, sae_folder, generate):
    from harness_ext.model_hf import SteeredHF
    from tests.tiny_models import make_model, make_tokenizer

    spec = {"sae": {"path": sae_folder()}, "edits": [EDIT]}
    lm = SteeredHF(make_model(), tokenizer=make_tokenizer(), spec=spec, batch_size=4)
    assert lm.get_model_info()["sae_steered"]["model"]
    named = SteeredHF(model_folder(), spec=spec, dtype="float32", device="cpu", batch_size=4)
    assert generate(lm, PROMPTS) == generate(named, PROMPTS)
    assert lm.intervention == named.intervention


def test_no_arguments_mean_the_default_model(monkeypatch):
    """And the defaults are filled in place: lm-eval writes this dictionary into its results."""
    from harness_ext import model

    asked = {}
    monkeypatch.setattr(model, "_backend", lambda name: lambda **kwargs: asked.update(kwargs))
    arguments = {}
    SAESteeredLM.create_from_arg_obj(arguments, {"batch_size": 1, "device": None})
    assert arguments == {"backend": "hf", "pretrained": "default"}
    assert asked == {"pretrained": "default", "batch_size": "auto"}
    SAESteeredLM.create_from_arg_string("pretrained=x,sae_strength=2.5", {"batch_size": 7})
    assert asked == {"pretrained": "x", "sae_strength": 2.5, "batch_size": 7}


def test_other_backends_are_refused():
    with pytest.raises(SpecError, match="unknown backend 'nope'; use one of: hf, vllm, server"):
        SAESteeredLM.create_from_arg_obj({"backend": "nope"})


def test_generation_survives_simple_evaluate(model_folder, sae_folder, tmp_path):
    """The whole of lm-eval: a task file, sample logging, results with the model's info."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from harness_ext.autoload import install

    install()

    docs = tmp_path / "docs.jsonl"
    docs.write_text("".join(json.dumps({"q": q, "a": "4"}) + "\n" for q in PROMPTS))
    (tmp_path / "tiny.yaml").write_text(
        f"""
task: tiny_steered
dataset_path: json
dataset_kwargs: {{data_files: {{test: {docs}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
repeats: 2
generation_kwargs: {{until: [], max_gen_toks: 6, do_sample: true, temperature: 0.8}}
filter_list:
  - name: all
    filter: [{{function: take_first_k, k: 2}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    spec = {"sae": {"path": sae_folder()}, "edits": [EDIT]}
    out = lm_eval.simple_evaluate(
        model="sae_steered",
        model_args={"pretrained": model_folder(), "dtype": "float32", "spec": json.dumps(spec)},
        tasks=["tiny_steered"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )
    assert out is not None
    info = out["config"]["sae_steered"]
    assert info["intervention"] not in ("none", "")
    assert info["receipt"]["rows"] == 6
    samples = out["samples"]["tiny_steered"]
    responses = [response for sample in samples for response in sample["resps"][0]]
    assert all(isinstance(response, Generation) for response in responses)
    assert all(r.intervention == info["intervention"] for r in responses)
    assert len({r.seed for r in responses}) == 6
    json.dumps(samples, default=str)


def test_instances_are_not_changed(steered):
    lm = steered([EDIT])
    requests = generate_requests(PROMPTS, {"until": "\n", "temperature": 0})
    before = [json.dumps(request.args) for request in requests]
    lm.generate_until(requests, disable_tqdm=True)
    assert [json.dumps(request.args) for request in requests] == before
    assert isinstance(requests[0], Instance)
