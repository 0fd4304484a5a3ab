"""What steering must do, written without the package: safetensors, formulas and a forward hook.

A specification is read as the plain mapping that a user writes. Nothing here imports
`interventions` or `vllm`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

GUARD = 10.0  # the documented default of `norm_guard`
CLOSE = 1e-3
"""Largest distance of two logits that fp32 may put in another order."""


@dataclass(frozen=True)
class SAEFiles:
    """An SAE as its files say, fp32.

    Attributes:
        weights: tensors of `sae_weights.safetensors`.
        config: `cfg.json`.
        stats: tensors of `stats.safetensors`, if there is one.
        layer: whose output it was trained on.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any]
    stats: dict[str, Tensor]
    layer: int

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return all activations `(n, d_sae)` of rows, and the factor of their normalisation."""
        mode = self.config["normalize_activations"]
        factor = torch.ones(len(x))
        if mode == "layer_norm":
            x = x - x.mean(1, keepdim=True)
            factor = x.std(1)
            x = x / (factor + 1e-5).unsqueeze(1)
        elif mode == "constant_norm_rescale":
            factor = x.norm(dim=1) / x.shape[1] ** 0.5
            x = x / factor.unsqueeze(1)
        w = self.weights
        if self.config["apply_b_dec_to_input"]:
            x = x - w["b_dec"]
        pre = x @ w["W_enc"]
        if self.config["architecture"] == "gated":
            opened = pre + w["b_gate"] > 0
            return torch.where(opened, torch.relu(pre * w["r_mag"].exp() + w["b_mag"]), 0), factor
        pre = pre + w["b_enc"]
        if self.config["architecture"] == "jumprelu":
            return torch.where(pre > w["threshold"], torch.relu(pre), 0), factor
        assert self.config["architecture"] == "standard"
        return torch.relu(pre), factor


def read_sae(folder: str | Path) -> SAEFiles:
    """Return the SAE in a folder of the layout of SAELens."""
    folder = Path(folder)
    config = json.loads((folder / "cfg.json").read_text())
    stats = folder / "stats.safetensors"
    name = config["metadata"]["hook_name"]
    assert name.endswith(".hook_resid_post")
    return SAEFiles(
        {key: t.float() for key, t in load_file(folder / "sae_weights.safetensors").items()},
        config,
        load_file(stats) if stats.exists() else {},
        int(name.split(".")[1]),
    )


@dataclass
class Seen:
    """What the reference did at one hook point.

    Attributes:
        x: `(n, d_model)` the stream before the edits.
        selected, guarded, fired: `(n_edits, n)` bool, by position.
    """

    x: Tensor
    selected: Tensor
    guarded: Tensor
    fired: Tensor


class Reference:
    """A model of transformers, in fp32."""

    def __init__(
        self, folder: str, saes: dict[str, SAEFiles], delimiters: tuple[int, int] = (-1, -1)
    ) -> None:
        """Load it.

        Args:
            folder: with the checkpoint.
            saes: by what a specification writes in `sae`.
            delimiters: token ids of the delimiters of reasoning.
        """
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.config = self.model.config
        self.bos = transformers.AutoTokenizer.from_pretrained(folder).bos_token_id
        self.saes = saes
        self.delimiters = delimiters
        self._kept: dict[str, tuple[Tensor, dict[int, Seen]]] = {}

    @property
    def layers(self) -> Any:
        """The decoder layers."""
        for path in ("model.layers", "transformer.h"):
            try:
                return self.model.get_submodule(path)
            except AttributeError:
                continue
        raise AssertionError(f"no layers in {type(self.model).__name__}")

    def edits(self, spec: dict[str, Any] | None) -> dict[int, list[dict[str, Any]]]:
        """Return the edits of each layer, in the order in which a receipt counts them."""
        by_layer: dict[int, list[dict[str, Any]]] = {}
        for edit in (spec or {}).get("edits", []):
            sae = _name(edit.get("sae", (spec or {}).get("sae")))
            layer = self.saes[sae].layer
            by_layer.setdefault(layer, []).append({**edit, "sae": sae})
        for layer, edits in by_layer.items():
            order = list(dict.fromkeys(edit["sae"] for edit in edits))
            by_layer[layer] = sorted(edits, key=lambda edit: order.index(edit["sae"]))
        return by_layer

    def run(
        self, ids: list[int], prompt_len: int, spec: dict[str, Any] | None
    ) -> tuple[Tensor, dict[int, Seen]]:
        """Return the logits `(n, vocabulary)` of a text, and what was done at each layer."""
        key = json.dumps([ids, prompt_len, spec])
        if key not in self._kept:
            self._kept[key] = self._run(ids, prompt_len, spec)
            if len(self._kept) > 64:
                self._kept.pop(next(iter(self._kept)))
        return self._kept[key]

    @torch.no_grad()
    def _run(self, ids: Any, prompt_len: int, spec: Any) -> tuple[Tensor, dict[int, Seen]]:
        seen: dict[int, Seen] = {}
        handles = []
        for layer, edits in self.edits(spec).items():

            def hook(_module: Any, _args: Any, output: Any, layer: int = layer, edits: Any = edits):
                stream = output[0] if isinstance(output, tuple) else output
                delta, seen[layer] = self._edit(stream[0], ids, prompt_len, spec, edits)
                edited = stream + delta
                return (edited, *output[1:]) if isinstance(output, tuple) else edited

            handles.append(self.layers[layer].register_forward_hook(hook))
        try:
            logits = self.model(torch.tensor([ids]), use_cache=False).logits[0].float()
        finally:
            for handle in handles:
                handle.remove()
        return logits, seen

    @torch.no_grad()
    def stream(self, ids: list[int], layer: int) -> Tensor:
        """Return what layer `layer` returns, unsteered, `(n, d_model)`."""
        output = self.model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        if layer + 1 < len(self.layers):
            return output.hidden_states[layer + 1][0]
        raise AssertionError("transformers applies the last norm to the last hidden state")

    def _edit(
        self, x: Tensor, ids: list[int], prompt_len: int, spec: dict[str, Any], edits: list[Any]
    ) -> tuple[Tensor, Seen]:
        limit = self._limit(spec, edits[0])
        calm = x.norm(dim=1) <= limit
        delta = torch.zeros_like(x)
        selected, guarded, fired = [], [], []
        for edit in edits:
            sae = self.saes[edit["sae"]]
            f, op = edit.get("feature", 0), edit.get("op", "clamp")
            acts, factor = sae.encode(x)
            a, w = acts[:, f], sae.weights["W_dec"][f]
            unit = w / w.norm()
            value = self._value(edit, sae)
            if op == "project":
                if edit.get("origin") == "b_dec":
                    value += float(sae.weights["b_dec"] @ unit)
                step = (value - x @ unit).unsqueeze(1) * unit
            elif edit.get("unit") == "residual":
                held = a * factor if op == "clamp" else 0 * a
                step = value * unit - held.unsqueeze(1) * w
            else:
                amount = {
                    "add": torch.full_like(a, value),
                    "clamp": value - a,
                    "ablate": -a,
                    "scale": (value - 1) * a,
                }[op]
                step = (amount * factor).unsqueeze(1) * w
            here = self.positions(edit, spec, ids, prompt_len)
            touched = here & calm
            selected.append(here)
            guarded.append(here & ~calm)
            fired.append(touched & (a != 0))
            if edit.get("when") == "active":
                touched = touched & (a != 0)
            delta += torch.where(touched.unsqueeze(1), step, 0)
        return delta, Seen(x, *(torch.stack(rows) for rows in (selected, guarded, fired)))

    def positions(
        self, edit: dict[str, Any], spec: dict[str, Any], ids: list[int], prompt_len: int
    ) -> Tensor:
        """Return which tokens of a text an edit names, bool `(n,)`."""
        kind = edit.get("positions", spec.get("positions", "all"))
        named = []
        inside = False
        for index, token in enumerate(ids):
            if token in self.delimiters:
                inside = token == self.delimiters[0]
            named.append(
                {
                    "all": True,
                    "prompt": index < prompt_len,
                    "generated": index >= prompt_len,
                    "last_prompt": index == prompt_len - 1,
                    "thinking": inside and token not in self.delimiters,
                }[kind]
            )
        if edit.get("skip_bos", spec.get("skip_bos", False)) and ids[0] == self.bos:
            named[0] = False
        return torch.tensor(named)

    def _limit(self, spec: dict[str, Any], edit: dict[str, Any]) -> float:
        guard = spec.get("norm_guard", GUARD)
        if guard is None:
            return float("inf")
        sae = self.saes[edit["sae"]]
        median = spec.get("median_norm")
        if isinstance(median, dict):
            median = median.get(f"blocks.{sae.layer}.hook_resid_post")
        return guard * (float(sae.stats["median_norm"]) if median is None else median)

    def _value(self, edit: dict[str, Any], sae: SAEFiles) -> float:
        if "strength" in edit:
            largest = edit.get("max_act") or float(sae.stats["max_act"][edit.get("feature", 0)])
            return edit["strength"] * largest
        return edit.get("value", 0.0)

    def misfit(
        self,
        prompt: list[int],
        output: list[int],
        spec: dict[str, Any] | None,
        prompt_len: int | None = None,
    ) -> float:
        """Return how far the reference's best token lies above the engine's, at the worst place.

        The engine's tokens are fed to the reference, one text at once. Where each of them is the
        best there (0), generating with the reference gives this very text, by induction.
        """
        logits, _ = self.run([*prompt, *output[:-1]], prompt_len or len(prompt), spec)
        after = logits[len(prompt) - 1 :]
        taken = after.gather(1, torch.tensor(output).unsqueeze(1)).squeeze(1)
        return float((after.max(dim=1).values - taken).max())


def _name(sae: Any) -> str:
    return sae["path"] if isinstance(sae, dict) else sae
