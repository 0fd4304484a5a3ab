"""How far rows push the residual stream, and which words they push towards.

Both need the model's weights once, before anything is generated: the residual stream of a fixed
passage at every hook point, to which each row's own editor is applied, and the unembedding.
"""

import gc
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness_ext.detectors import seed_regex
from harness_ext.lexicon import load_lexicon
from interventions.backends.hf import CALIBRATION_TEXT, median_norm
from interventions.editor import Editor
from interventions.hook_points import HookPoint
from interventions.plan import Plan
from interventions.residuals import read_residuals
from interventions.subject import load_model

PROMOTED = 10
"""Tokens that are kept of each direction."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was read of the model.

    Attributes:
        resid: by hook point, `(tokens, d_model)` fp32, the unedited stream of the passage without
            its first token, an attention sink.
        medians: of its norms, for SAEs that store none.
        unembed: `(vocab, d_model)` fp32 rows of the unembedding times the final norm's gain, the
            mean row taken off. None where the model has no such parts.
        words: by id, what the token says.
    """

    resid: Mapping[HookPoint, Tensor]
    medians: Mapping[HookPoint, float]
    unembed: Tensor | None
    words: tuple[str, ...]

    def mean_change(self, plan: Plan) -> float | None:
        """Return the mean L2 length that a plan adds to the residual at an edited token.

        By the editor that steers: activations, norm guard and all. Every token of the passage
        counts as one that the positions name; those that the guard leaves alone do not count.
        None for a plan that edits at several hook points: their lengths cannot be added.
        """
        if len(plan.layers) != 1:
            return None
        (layer,) = plan.with_median_norms(self.medians).layers
        resid = self.resid[layer.hook_point]
        calm = torch.ones(len(resid), dtype=torch.bool)
        if layer.norm_limit is not None:
            calm = resid.norm(dim=-1) <= layer.norm_limit
        if not calm.any():
            return None
        all_tokens = {selector: torch.ones_like(calm) for selector in layer.selectors}
        edited = Editor(layer)(resid, all_tokens)
        return float((edited - resid).norm(dim=-1)[calm].mean())

    def component(self, plan: Plan) -> float:
        """Return the median of the residual's component along the first edit's direction."""
        (layer,) = plan.layers
        direction = layer.groups[0].directions.w[0]
        return float((self.resid[layer.hook_point] @ (direction / direction.norm())).median())

    def promoted(self, plan: Plan) -> tuple[str, ...]:
        """Return the tokens that the directions of a plan promote most, through the unembedding.

        The sum of the directions, each once and with the sign of its push, for several edits.
        """
        if self.unembed is None or not plan.layers:
            return ()
        groups = [group for layer in plan.layers for group in layer.groups]
        push = torch.cat([group.directions.w * _sign(group.constants) for group in groups]).sum(0)
        scores = self.unembed @ push.to(self.unembed.dtype)
        best = scores.float().topk(min(PROMOTED, len(scores))).indices.tolist()
        return tuple(self.words[i] for i in best if i < len(self.words))


def _sign(constants: Tensor) -> Tensor:
    """Return `(n_edits, 1)`: -1 where an edit takes its direction away, as `ablate` does."""
    a_const, a_act, r_const, _ = constants
    pushed = a_const + r_const
    taken = torch.where(a_act < 0, -1.0, 1.0)
    return torch.where(pushed != 0, pushed.sign(), taken).unsqueeze(1)


@torch.inference_mode()
def calibrate(model_args: Mapping[str, Any], points: Iterable[HookPoint]) -> Calibration:
    """Return what is needed of the model, which is loaded in transformers for it, and let go.

    Args:
        model_args: of `sae_steered`: `pretrained`, `revision` and `device` are read. The dtype
            is fp32 on a CPU and the stored one elsewhere, whatever the run's own is.
        points: where rows edit.

    Raises:
        ModelNotFoundError: the weights are not on this machine.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer, _ = load_model(
        str(model_args.get("pretrained") or "default"),
        device=str(model_args.get("device") or device),
        dtype="float32" if device == "cpu" else "auto",
        revision=model_args.get("revision"),
    )
    ids = torch.tensor(tokenizer(CALIBRATION_TEXT).input_ids)
    resid, medians = {}, {}
    for point in dict.fromkeys(points):
        (batch,) = read_residuals(model, point, [ids])
        medians[point] = median_norm(batch.norms[0])
        resid[point] = batch.resid[0, 1:].float().cpu().clone()
    unembed = _unembedding(model)
    words = tuple(str(tokenizer.decode([i])) for i in range(len(tokenizer)))
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # an engine is about to ask for the memory
    return Calibration(resid, medians, unembed, words)


def _unembedding(model: Any) -> Tensor | None:
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None:
        return None
    rows = weight.detach().float()
    gain = _final_gain(model)
    rows = rows if gain is None else rows * gain
    return (rows - rows.mean(0)).cpu()


def _final_gain(model: Any) -> Tensor | None:
    """Return the gain of the norm before the unembedding, None where it cannot be found."""
    for path in ("model.norm", "model.language_model.norm", "transformer.ln_f",
                 "gpt_neox.final_layer_norm", "model.decoder.final_layer_norm"):  # fmt: skip
        try:
            norm = model.get_submodule(path)
        except AttributeError:
            continue
        weight = norm.weight.detach().float()
        # Gemma stores its gain less one.
        return weight + 1 if "Gemma" in type(norm).__name__ else weight
    return None


def lexical(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words that a detector of hint mentions would count in a response.

    The seed's four words, and every lemma of the lexicon, the ambiguous ones included: a row
    that writes "teacher" everywhere will write it near the answer, too.
    """
    patterns = [lemma.pattern for lemma in load_lexicon().lemmas]
    return tuple(
        dict.fromkeys(
            word
            for word in words
            if len(re.sub(r"\W", "", word)) > 2
            and (seed_regex(word, None) or any(p.search(word.strip()) for p in patterns))
        )
    )
