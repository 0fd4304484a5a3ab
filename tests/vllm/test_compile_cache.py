"""Graphs of plain vLLM, of the plugin and of other layers are kept apart in one cache.

The order is plain, plugin, other layers, plain, each in a new process with one cache on disk. A
graph that was compiled without the operator would leave everything unsteered.
"""

from pathlib import Path

from tests.vllm import tiny
from tests.vllm.engine import IN_PROCESS, PLAIN
from tests.vllm.receipts import check_receipt
from tests.vllm.reference import CLOSE


def keys(cache: Path) -> set[str]:
    """Return the keys of the graphs in the cache: folders named by a sha256."""
    return {p.name for p in cache.rglob("*") if p.is_dir() and len(p.name) == 64}


def test_plain_then_plugin_then_other_layers_then_plain(engines, tmp_path, ask, say):
    model = tiny.make(tmp_path, "llama")
    compiled = {"enforce_eager": False, "max_num_seqs": 32}
    requests = [
        ask(prompt, spec, max_tokens=12, logprobs=5)
        for spec in (None, *model.specs.values())
        for prompt in model.prompts
    ]
    n = len(model.prompts)
    plain, differ, found, seconds = [], [], [], []
    for number, layers in enumerate((None, (1, 2), (2,), None)):
        environment = IN_PROCESS | (PLAIN if layers is None else {})
        engine = engines.host(f"cache {number}", **environment)
        arguments = tiny.arguments(model.path, *(layers or ()), **compiled)
        if layers is None:
            del arguments["additional_config"]
        seconds.append(engine.call("start", **arguments))
        found.append(keys(engines.cache))
        if layers is None:
            answers = engine.generate(requests[:n])
            plain.append([(answer["outputs"], answer["logprobs"]) for answer in answers])
            continue
        saes = [sae for sae, files in model.reference.saes.items() if files.layer in layers]
        fits = [
            q
            for q in requests
            if all(edit["sae"] in saes for edit in (q.get("spec") or {}).get("edits", ()))
        ]
        answers = engine.generate(fits)
        for request, answer in zip(fits, answers, strict=True):
            (output,) = answer["outputs"]
            gap = model.reference.misfit(request["prompt"], output, request.get("spec"))
            assert gap < CLOSE, request
        check_receipt(engine, model.reference, fits, answers, points=[*layers])
        outputs = [answer["outputs"] for answer in answers]
        changed = sum(outputs[i] != outputs[i % n] for i in range(n, len(outputs)))
        differ.append(f"{changed} of {len(outputs) - n}")
        assert changed >= (len(outputs) - n) // 2
        if len(fits) < len(requests):
            (other,) = [q for q in requests if q not in fits][:1]
            assert "not at blocks.1.hook_resid_post" in engine.call("refusal", other)
    assert plain[0] == plain[1]
    counts = [len(names) for names in found]
    say(
        f"{' and '.join(differ)} steered outputs differ from unsteered ones; keys in the cache"
        f" {counts}; starts {[round(s) for s in seconds]} s"
    )
    if counts[0]:  # where this build of vLLM keeps graphs at all
        assert found[0] < found[1] < found[2] == found[3]
