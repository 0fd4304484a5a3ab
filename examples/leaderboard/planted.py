"""Proof in life: a feature with a known effect, hidden among random ones, is found by the board.

    python examples/leaderboard/planted.py --output runs/planted
    sae-steered leaderboard run runs/planted/board.yaml --output runs/planted/board

Writes the default SAE with the decoder row of one live feature replaced, and a configuration that
ranks it among eleven random features of the same SAE, all added with the same length. The planted
direction is the mean gradient of "the response ends here" with respect to the residual at the last
prompt token of four questions that no task has: added at every token it makes answers short and
often useless, by construction.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from interventions.default_model import default_sae_path, resolve_pretrained

LAYER = 15
FEATURE = 1234
VALUE = 25.0
WEIGHTS = "sae_weights.safetensors"
TEXTS = (
    "Mia has 12 apples and buys 7 more. How many apples does she have?",
    "A train travels 60 miles an hour for 3 hours. How far does it go?",
    "Tom had 20 dollars and spent 8. How much is left?",
    "There are 4 boxes with 6 pens each. How many pens are there?",
)
BOARD: dict[str, Any] = {
    "name": "planted",
    "model": {"backend": "hf", "pretrained": "default"},
    "sae": {"path": "sae"},
    "features": [FEATURE, {"random": 11}],
    "edits": [{"op": "add", "value": VALUE}],
    "tasks": [{"name": "steer_arith", "limit": 24, "gen_kwargs": {"max_gen_toks": 48}}],
    "nulls": {"random_features": 12, "random_directions": 8},
    "statistics": {"metrics": ["acc_none", "mean_tokens"]},
}


def ending_direction() -> torch.Tensor:
    """Return the unit direction, `(d_model,)`, that raises the chance that a response ends."""
    import transformers

    path = resolve_pretrained("default").path
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval().requires_grad_(False)
    kept: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> Any:
        resid = output[0] if isinstance(output, tuple) else output
        resid = resid.detach().requires_grad_(True)
        kept.append(resid)
        return (resid, *output[1:]) if isinstance(output, tuple) else resid

    model.model.layers[LAYER].register_forward_hook(keep)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for text in TEXTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=False,
        )
        with torch.enable_grad():
            model(ids).logits[0, -1].log_softmax(-1)[end].backward()
    gradients = [resid.grad[0, -1] for resid in kept if resid.grad is not None]
    total = torch.stack(gradients).sum(dim=0)
    return total / total.norm()


def plant(output: Path) -> Path:
    """Return the configuration that was written to `output`, beside the SAE that it names."""
    sae = output / "sae"
    shutil.copytree(default_sae_path(), sae, dirs_exist_ok=True)
    weights = load_file(str(sae / WEIGHTS))
    row = weights["W_dec"][FEATURE]
    planted = ending_direction() * row.float().norm()
    weights["W_dec"][FEATURE] = planted.to(row.dtype)
    save_file(weights, str(sae / WEIGHTS))
    config = output / "board.yaml"
    config.write_text(yaml.safe_dump(BOARD, sort_keys=False), encoding="utf-8")
    return config


def main(argv: Sequence[str] | None = None) -> None:
    """Write SAE and configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/planted"), metavar="DIR")
    print(plant(parser.parse_args(argv).output))  # noqa: T201


if __name__ == "__main__":
    main()
