"""The logit lens: which tokens a direction would promote if it went straight to the output.

A direction `w` changes the logits by `W_U · diag(g) · w`, `g` the gain of the final norm. A layer
norm subtracts the mean of `w` first. Logits mean something only relative to one another, so their
mean over the vocabulary is taken out. The final norm's division by the token's length, its bias,
and a soft cap on logits do not change the order, and are left out.

This ignores every layer between the hook point and the output. In the middle of a network the
order of tokens has little to do with the true effect, which `causal` measures.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interventions.errors import FeatureError
from interventions.train.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Llama/Qwen/Gemma/Mistral; Gemma 3 with vision; GPT-2; NeoX; OPT.
_FINAL_NORMS = (
    "model.norm",
    "model.language_model.norm",
    "language_model.model.norm",
    "transformer.ln_f",
    "gpt_neox.final_layer_norm",
    "model.decoder.final_layer_norm",
)
_ELEMENTS = {"cpu": 1 << 25, "cuda": 1 << 28}


@dataclass(frozen=True)
class LensTokens:
    """Tokens of each feature, strongest first: `(n, k)` ids int64 and logits fp32, on the CPU."""

    promoted_ids: Tensor
    promoted_logits: Tensor
    suppressed_ids: Tensor
    suppressed_logits: Tensor


@dataclass(frozen=True, eq=False)
class LogitLens:
    """The way from a direction in the residual stream to logits.

    Attributes:
        readout: `(vocab, d_model)` fp32: the unembedding with the gain of the final norm, centred.
        without: ids that are never listed.
    """

    readout: Tensor
    without: tuple[int, ...] = ()

    def logits(self, directions: Tensor) -> Tensor:
        """Return the change of the logits, `(n, vocab)` fp32, of mean 0 over the vocabulary.

        Args:
            directions: `(n, d_model)`.
        """
        return directions.to(self.readout) @ self.readout.T

    def tokens(self, directions: Tensor, k: int) -> LensTokens:
        """Return the `k` most promoted and suppressed tokens of each direction.

        Args:
            directions: `(n, d_model)`.
            k: tokens of each.
        """
        most = _ELEMENTS.get(self.readout.device.type, _ELEMENTS["cpu"])
        size = max(1, most // len(self.readout))
        out = torch.tensor(self.without, dtype=torch.long, device=self.readout.device)
        k = min(k, len(self.readout) - len(out))
        parts: list[tuple[Tensor, ...]] = []
        done = 0
        with Progress("logit lens", len(directions), "feature") as bar:
            for part in directions.split(size):
                logits = self.logits(part)
                up = logits.index_fill(1, out, -torch.inf).topk(k)
                down = logits.index_fill(1, out, torch.inf).topk(k, largest=False)
                parts.append((up.indices, up.values, down.indices, down.values))
                done += len(part)
                bar.to(done)
        return LensTokens(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def logit_lens(model: "PreTrainedModel", vocab: int, without: tuple[int, ...] = ()) -> LogitLens:
    """Return the logit lens of a model.

    The gain and whether the norm centres are measured by what the module does, so that Gemma's
    `1 + weight` and a layer norm's bias need no special cases.

    Args:
        model: a decoder model.
        vocab: size of the tokenizer; rows of the unembedding beyond it stand for no token.
        without: ids that are never listed, such as special tokens.

    Raises:
        FeatureError: no final norm or unembedding where they usually are.
    """
    head: Any = model.get_output_embeddings()
    norm = _final_norm(model)
    weight = None if head is None else head.weight
    d_model = model.config.get_text_config().hidden_size
    if weight is None or weight.shape[1] != d_model:
        shape = None if weight is None else tuple(weight.shape)
        raise FeatureError(
            f"{type(model).__name__} has no unembedding of width {d_model} (found {shape}); switch"
            f" the logit lens off"
        )
    gain, centring = _gain(norm, d_model, weight.device)
    # In place, but in a copy: for a large vocabulary each takes gigabytes.
    readout = weight.detach()[:vocab].to(torch.float32, copy=True).mul_(gain)
    if centring:
        # The mean of a direction counts for nothing where the norm subtracts it.
        readout -= readout.mean(1, keepdim=True)
    readout -= readout.mean(0)
    return LogitLens(readout, tuple(i for i in without if i < len(readout)))


def _final_norm(model: nn.Module) -> nn.Module:
    base: Any = getattr(model, "get_base_model", lambda: model)()
    for path in _FINAL_NORMS:
        try:
            return base.get_submodule(path)
        except AttributeError:
            continue
    raise FeatureError(
        f"no final norm found in {type(model).__name__}; tried {', '.join(_FINAL_NORMS)}; switch"
        f" the logit lens off"
    )


@torch.no_grad()
def _gain(norm: nn.Module, d_model: int, device: torch.device) -> tuple[Tensor, bool]:
    dtype = next(norm.parameters()).dtype
    if d_model % 2:
        raise FeatureError(f"the logit lens needs an even width, not {d_model}; switch it off")
    # Mean 0 and mean square 1: either kind of norm returns it times the gain, plus a bias.
    probe = torch.ones(d_model, device=device, dtype=dtype)
    probe[1::2] = -1
    plus, minus = norm(probe[None])[0].float(), norm(-probe[None])[0].float()
    gain = (plus - minus) / 2 * probe.float()
    # A constant: a layer norm leaves its bias of it, an RMS norm the gain.
    constant = norm(torch.ones_like(probe)[None])[0].float()
    bias = (plus + minus) / 2
    centring = bool((constant - bias).norm() < 0.1 * gain.norm())
    return gain, centring
