"""A small model, an SAE, text and the facts about it."""

from pathlib import Path

import torch

from interventions.residuals import read_residuals
from interventions.subject import Subject, load_subject
from interventions.text.config import TextConfig, parse_text
from interventions.text.rows import rows
from tests.tiny_models import save_model, save_sae

TEXT = (
    "the then another in an air her other thin ring wait but so it was not that near the end and"
    " then the rain ran in the lane; theirs is the inner area, another one, wait and hear"
)
WORDS = TEXT.split()


def make_text(folder: Path, *, documents: int = 40, tokens: int | None = 1500) -> TextConfig:
    chance = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(documents):
        count = int(torch.randint(8, 40, (1,), generator=chance))
        picks = torch.randint(len(WORDS), (count,), generator=chance).tolist()
        lines.append('{"text": "' + " ".join(WORDS[i] for i in picks) + '"}')
    path = folder / "text.jsonl"
    path.write_text("\n".join(lines))
    return parse_text({"sources": [{"path": str(path)}], "tokens": tokens, "context": 48})


def make_subject(folder: Path, family: str = "llama", *, guard: float | None = 10.0, **sae):
    model = save_model(folder / "model", family)
    made = save_sae(folder / "sae", **{"median_norm": 2.0, **sae})
    return load_subject(str(model), str(made.path), guard=guard)


def every_activation(subject: Subject, text: TextConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each row its ids and its activations, one row at a time; unusable tokens are 0."""
    found = []
    for row in rows(text, subject.tokenizer):
        (batch,) = read_residuals(subject.model, subject.hook_point, [row.ids])
        usable = batch.usable(subject.limit, subject.special_ids)[0]
        acts = subject.sae.encode(batch.resid[0]) * usable[:, None]
        found.append((row.ids, acts.detach()))
    return found
