"""Tiny random models of several families, their SAEs, and what is asked of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tests import tiny_models
from tests.vllm.reference import Reference, read_sae

D_MODEL = 128
"""Four heads of 32: the narrowest that the attention of vLLM's CPU build takes."""
WIDE = {"hidden_size": D_MODEL, "intermediate_size": 160, "num_attention_heads": 4}
CONFIG: dict[str, dict[str, Any]] = {
    family: {**WIDE, "head_dim": 32} for family in ("llama", "qwen3", "mistral")
}
CONFIG |= {
    "qwen2": WIDE,
    "gemma2": {**WIDE, "head_dim": 32, "query_pre_attn_scalar": 32},
    "gemma3": {**WIDE, "head_dim": 32, "query_pre_attn_scalar": 32},
    "gpt2": {"n_embd": D_MODEL},
    "neox": {"hidden_size": D_MODEL, "intermediate_size": 160},
}
LAYERS = (1, 2)
TEXTS = (
    "What is 3 + 4 in the end?",
    "x",
    "Why? <think> the rain in the north",
    "no <think> so </think> the cat in a hat, and then another, and in the end there was rain",
)


@dataclass(frozen=True)
class Tiny:
    """A tiny model on disk.

    Attributes:
        path: of the checkpoint.
        reference: the same in transformers.
        specs: interventions by name.
        prompts: token ids.
    """

    path: str
    reference: Reference
    specs: dict[str, dict[str, Any]]
    prompts: list[list[int]]


def make(folder: Path, family: str) -> Tiny:
    """Return a model of `family` in `folder`, with a gated and a JumpReLU SAE."""
    torch.manual_seed(0)
    path = tiny_models.save_model(folder / "model", family, **CONFIG[family])
    saes = {}
    for layer, architecture in zip(LAYERS, ("jumprelu", "gated"), strict=True):
        made = tiny_models.save_sae(
            folder / architecture,
            architecture=architecture,
            layer=layer,
            d_model=D_MODEL,
            seed=layer,
        )
        saes[str(made.path)] = read_sae(made.path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    think = tokenizer.convert_tokens_to_ids([tiny_models.THINK_START, tiny_models.THINK_END])
    reference = Reference(str(path), saes, (think[0], think[1]))
    prompts = [tokenizer.encode(text) for text in TEXTS]
    one, two = saes
    stream = torch.cat([reference.stream(prompt, LAYERS[0]) for prompt in prompts])
    norms = stream.norm(dim=1).sort().values
    middle = norms[len(norms) // 3 : 2 * len(norms) // 3]
    # A guard's limit in the widest gap: no norm is so near that fp32 decides.
    gap = int(middle.diff().argmax())
    limit = float(middle[gap : gap + 2].mean())
    # As long as the stream, so that a greedy choice changes.
    size = limit * (4 if family.startswith("gemma") else 1)
    clamp = {"op": "clamp", "feature": 3, "value": size, "sae": one}
    scale = [{"op": "scale", "feature": f, "value": 12.0, "sae": two} for f in range(6)]
    add = {"op": "add", "feature": 7, "value": size, "unit": "residual", "sae": two}
    specs: dict[str, dict[str, Any]] = {
        "clamp": {"edits": [clamp]},
        "scale generated": {"positions": "generated", "edits": scale},
        "project last prompt": {
            "positions": "last_prompt",
            "edits": [{"op": "project", "feature": 5, "value": 2 * size, "sae": one}],
        },
        "two layers": {
            "edits": [
                {"op": "ablate", "feature": 9, "positions": "prompt", "sae": one},
                {**clamp, "when": "active"},
                {**add, "positions": "generated"},
            ]
        },
        "thinking": {"positions": "thinking", "edits": [clamp]},
        "not the BOS": {"skip_bos": True, "edits": [add]},
    }
    for spec in specs.values():
        spec["norm_guard"] = None
    guard = {"norm_guard": 1.0, "median_norm": {f"blocks.{LAYERS[0]}.hook_resid_post": limit}}
    specs["guard"] = {**guard, "edits": [clamp]}
    return Tiny(str(path), reference, specs, prompts)


def save_mixture(folder: Path) -> str:
    """Return the folder of a mixture of experts, which cannot be steered."""
    config = transformers.MixtralConfig(
        vocab_size=tiny_models.VOCABULARY,
        hidden_size=D_MODEL,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_models.make_tokenizer().save_pretrained(folder)
    return str(folder)


def arguments(path: str, *layers: int, **changes: Any) -> dict[str, Any]:
    """Return what starts an engine of a tiny model; in the host's process, unless changed."""
    points = [f"blocks.{layer}.hook_resid_post" for layer in layers]
    return {
        "model": path,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 128,
        "max_num_seqs": 16,
        "block_size": 32,
        "gpu_memory_utilization": 0.1,
        "disable_log_stats": False,
        "distributed_executor_backend": "uni",
        "additional_config": {"sae_steered": {"hook_points": points}},
        **changes,
    }


def ask_all(engine: Any, tiny: Tiny, ask: Any, **options: Any) -> tuple[list[Any], list[Any], int]:
    """Return requests, results, and how many steered outputs differ from unsteered ones.

    Every specification and no specification at every prompt, all at once.
    """
    requests = [
        ask(prompt, spec, max_tokens=24)
        for prompt in tiny.prompts
        for spec in (None, *tiny.specs.values())
    ]
    results = engine.generate(requests, **options)
    n = 1 + len(tiny.specs)
    differ = sum(
        results[i]["outputs"] != results[i // n * n]["outputs"]
        for i in range(len(results))
        if i % n
    )
    return requests, results, differ
