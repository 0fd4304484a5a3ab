"""An adapter of the model's weights and an intervention, in one request."""

import json

import torch
from safetensors.torch import save_file

from tests.vllm import tiny
from tests.vllm.receipts import check_receipt
from tests.vllm.reference import CLOSE

RANK, ALPHA = 8, 16


def save_adapter(folder, model):
    """Write an adapter as PEFT does, and merge it into `model` of transformers."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("q_proj", "v_proj"):
            out, into = module.weight.shape
            down = torch.randn(RANK, into, generator=generator) * 0.15
            up = torch.randn(out, RANK, generator=generator) * 0.15
            weights[f"base_model.model.{name}.lora_A.weight"] = down
            weights[f"base_model.model.{name}.lora_B.weight"] = up
            module.weight.data += ALPHA / RANK * up @ down
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM"}
    config |= {"target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_steering_with_an_adapter(tiny_host, tmp_path, ask, say):
    model = tiny.make(tmp_path, "llama")
    arguments = tiny.arguments(model.path, *tiny.LAYERS, enable_lora=True, max_lora_rank=RANK)
    tiny_host.call("start", **arguments)
    _, without, _ = tiny.ask_all(tiny_host, model, ask)
    save_adapter(tmp_path / "adapter", model.reference.model)
    lora = ["adapter", 1, str(tmp_path / "adapter")]
    requests, results, differ = tiny.ask_all(tiny_host, model, ask, lora=lora)
    for request, result in zip(requests, results, strict=True):
        gap = model.reference.misfit(request["prompt"], result["outputs"][0], request.get("spec"))
        assert gap < CLOSE, request
    adapted = sum(a["outputs"] != b["outputs"] for a, b in zip(results, without, strict=True))
    n = len(model.prompts) * len(model.specs)
    say(
        f"{differ} of {n} steered outputs differ from unsteered ones, {adapted} of {len(results)}"
        f" from those without the adapter"
    )
    assert differ >= n // 2
    assert adapted >= n // 2
    check_receipt(tiny_host, model.reference, requests, results, points=[*tiny.LAYERS])
