"""Random models of a few thousand parameters, tokenizers and SAEs, made in code.

Everything is seeded: two calls give the same weights. Weights are larger than a real
initialisation would make them, so that an edit of a residual changes the next token.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.models import BPE

D_MODEL, N_LAYERS, D_SAE = 32, 4, 48
MAX_POSITIONS = 160
SLIDING_WINDOW = 12
THINK_START, THINK_END = "<think>", "</think>"
SPECIALS = ("<s>", "</s>", "<pad>")
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("Ġ", "a"), ("Ġ", "the"), ("e", "r")]

_COMMON: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
    "intermediate_size": 48,
    "initializer_range": 0.12,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}
_GEMMA = {**_GROUPED, "sliding_window": SLIDING_WINDOW}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "qwen2": ("Qwen2Config", {**_COMMON, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", _GROUPED),
    "gemma2": ("Gemma2Config", {**_GEMMA, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {**_GEMMA, "query_pre_attn_scalar": 8}),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": SLIDING_WINDOW}),
    "gpt2": (
        "GPT2Config",
        {
            "n_embd": D_MODEL,
            "n_layer": N_LAYERS,
            "n_head": 4,
            "n_positions": MAX_POSITIONS,
            "initializer_range": 0.12,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
    ),
    "neox": ("GPTNeoXConfig", _COMMON),
}
"""Family name to config class and arguments: sliding windows are shorter than the test prompts."""


def make_tokenizer(
    *, special_think: bool = False, bos: bool = True, chat_template: str | None = None
) -> transformers.PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with BOS, EOS, PAD and one token for each think delimiter.

    Args:
        special_think: whether the delimiters are special, so that decoding drops them.
        bos: whether a BOS is put before every text.
        chat_template: jinja template of the tokenizer.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIALS, *alphabet, *("".join(pair) for pair in MERGES)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=MERGES))
    assert isinstance(backend.model, models.BPE)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIALS))
    delimiters = [THINK_START, THINK_END]
    (backend.add_special_tokens if special_think else backend.add_tokens)(delimiters)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    if special_think:
        tokenizer.add_special_tokens({"additional_special_tokens": delimiters})
    tokenizer.chat_template = chat_template
    return tokenizer


VOCABULARY = len(SPECIALS) + 256 + len(MERGES) + 2


def make_model(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> transformers.PreTrainedModel:
    """Return a random model of `family`, in evaluation mode."""
    name, arguments = FAMILIES[family]
    built = getattr(transformers, name)(
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **{**arguments, **config},
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(built, attn_implementation="eager")
    return model.to(dtype).eval()


def save_model(folder: Path, family: str = "llama", **options: Any) -> Path:
    """Return `folder`, holding a model and its tokenizer as `from_pretrained` reads them."""
    tokenizer = {
        key: options.pop(key) for key in ("special_think", "bos", "chat_template") if key in options
    }
    make_model(family, **options).save_pretrained(folder)
    make_tokenizer(**tokenizer).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class TinySAE:
    """A synthetic SAE on disk, in the layout of SAELens."""

    path: Path
    hook_name: str


def save_sae(
    folder: Path,
    *,
    architecture: str = "jumprelu",
    layer: int = 1,
    site: str = "resid_post",
    normalize: str = "none",
    b_dec_to_input: bool = True,
    d_model: int = D_MODEL,
    seed: int = 0,
    max_act: float | None = None,
    median_norm: float | None = None,
    model_name: str | None = None,
) -> TinySAE:
    """Return an SAE saved as SAELens saves one; about half of its features fire at a token."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    decoder = normal(D_SAE, d_model)
    lengths = 0.5 + torch.rand(D_SAE, 1, generator=generator)
    weights = {
        "W_dec": decoder / decoder.norm(dim=1, keepdim=True) * lengths,
        "W_enc": normal(d_model, D_SAE) / d_model**0.5,
        "b_dec": 0.1 * normal(d_model),
    }
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_model,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": b_dec_to_input,
        "normalize_activations": normalize,
        "reshape_activations": "none",
        "metadata": {"hook_name": f"blocks.{layer}.hook_{site}", "model_name": model_name},
    }
    if architecture == "gated":
        weights |= {
            "b_gate": 0.1 * normal(D_SAE),
            "b_mag": 0.1 * normal(D_SAE),
            "r_mag": 0.1 * normal(D_SAE),
        }
    else:
        weights["b_enc"] = 0.1 * normal(D_SAE)
    if architecture == "jumprelu":
        weights["threshold"] = 0.2 * torch.rand(D_SAE, generator=generator)
    if architecture == "topk":
        config |= {"k": 8, "rescale_acts_by_decoder_norm": False}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    stats = {}
    if max_act is not None:
        stats["max_act"] = torch.full((D_SAE,), max_act)
    if median_norm is not None:
        stats["median_norm"] = torch.tensor(median_norm)
    if stats:
        save_file(stats, folder / "stats.safetensors")
    return TinySAE(folder, config["metadata"]["hook_name"])
