"""The frontend's side: a request's spec is checked and compiled before the engine sees it."""

import functools
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interventions.backends.hf import token_facts
from interventions.backends.vllm.compiled import compile_plan
from interventions.backends.vllm.config import KEY, SteeringConfig
from interventions.backends.vllm.identity import checkpoint_digest
from interventions.errors import SpecError
from interventions.plan import ModelFacts, Plan, make_plan
from interventions.sae.io import load_sae
from interventions.spec import InterventionSpec, parse_spec

_KEYS = ("spec", "prompt_len", "tag", "norms")
_LONGEST = 1 << 20
_REMEMBERED = 4096
_LOADED = 4


class Admission:
    """Checks what requests ask of one engine.

    A request says `extra_args={"sae_steered": {"spec": {...}}}`, or over HTTP
    `vllm_xargs={"sae_steered": "<the same as JSON text>"}`. A mapping with a spec's own keys is
    taken as the spec. Beside `spec` there may be `prompt_len` (where the prompt ends, for scoring:
    the tokens after it count as generated) and `tag` (a name under which the receipt lists the
    request).
    """

    def __init__(self, vllm_config: Any, config: SteeringConfig, tokenizer: Any) -> None:
        """Prepare for an engine.

        Args:
            vllm_config: the engine's `VllmConfig`.
            config: what the engine declared.
            tokenizer: of the model, or None.
        """
        model_config = vllm_config.model_config
        text = model_config.hf_text_config
        self._model_config, self._tokenizer = model_config, tokenizer
        self._config = config
        self._facts = ModelFacts(
            name=model_config.model, d_model=text.hidden_size, n_layers=text.num_hidden_layers
        )
        self._points = config.points(self._facts.n_layers, self._facts.name)
        self._identity: str | None = None
        self._compiled: OrderedDict[str, dict[str, Any]] = OrderedDict()
        # Hundreds of features of one SAE read its files once.
        self._load: Any = functools.lru_cache(maxsize=_LOADED)(load_sae)

    @property
    def identity(self) -> str:
        """Digest of the model's weights, see `fingerprint.weights_digest`."""
        if self._identity is None:
            path = Path(self._model_config.model)
            if not path.is_dir():
                from huggingface_hub import snapshot_download

                path = Path(
                    snapshot_download(
                        self._model_config.model,
                        revision=self._model_config.revision,
                        allow_patterns=["*.safetensors", "*.json"],
                    )
                )
            self._identity = checkpoint_digest(path, self._model_config.dtype)
        return self._identity

    def admit(self, entry: Any, n_prompt: int | None) -> dict[str, Any]:
        """Return what travels with the request in place of `entry`.

        Args:
            entry: what the request says under `sae_steered`.
            n_prompt: tokens of its prompt, None before they are known.

        Raises:
            interventions.errors.SteeringError: the spec cannot be understood, or does not fit the
                model, the SAE, or what the engine declared.
        """
        entry = _read(entry)
        text = json.dumps(entry["spec"], sort_keys=True)
        compiled = self._compiled.get(text)
        if compiled is None:
            compiled = self._compile(parse_spec(entry["spec"]))
            self._compiled[text] = compiled
            if len(self._compiled) > _REMEMBERED:
                self._compiled.popitem(last=False)
        if compiled is None:
            return {}
        prompt_len = entry.get("prompt_len")
        if prompt_len is not None and n_prompt is not None and not 0 < prompt_len <= n_prompt:
            raise SpecError(f"`prompt_len` {prompt_len} is outside 1..{n_prompt}, the prompt")
        rest = {key: entry[key] for key in ("prompt_len", "tag", "norms") if key in entry}
        return {"compiled": compiled, **rest}

    def plan(self, spec: InterventionSpec) -> Plan:
        """Return the plan of a spec for the engine's model."""
        return make_plan(spec, self._facts, load=self._load).with_identity(self.identity)

    def _compile(self, spec: InterventionSpec) -> Any:
        plan = self.plan(spec)
        if not plan.layers:
            return {}
        if self._tokenizer is None:
            raise SpecError("the engine has no tokenizer (skip_tokenizer_init) and needs one")
        tokens = token_facts(self._tokenizer, spec, needs_thinking=plan.needs_thinking)
        return compile_plan(plan, self._points, self._config.max_edits, tokens).pack()


def _read(entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        if len(entry) > _LONGEST:
            raise SpecError(f"'{KEY}' has {len(entry)} characters, at most {_LONGEST} are read")
        try:
            entry = json.loads(entry)
        except (json.JSONDecodeError, RecursionError) as error:
            raise SpecError(f"'{KEY}' is not JSON: {error}") from None
    if not isinstance(entry, Mapping):
        raise SpecError(f"'{KEY}' is a mapping, or one as JSON text, not {type(entry).__name__}")
    if "spec" not in entry:
        entry = {"spec": entry}
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        raise SpecError(f"unknown key '{unknown[0]}' in '{KEY}'; known keys: {', '.join(_KEYS)}")
    if not isinstance(entry["spec"], Mapping):
        raise SpecError(f"`spec` is a mapping of a spec's keys, not {entry['spec']!r:.100}")
    if not isinstance(entry.get("prompt_len", 1), int):
        raise SpecError(f"`prompt_len` is a number of tokens, not {entry['prompt_len']!r}")
    if not isinstance(entry.get("tag", ""), str):
        raise SpecError(f"`tag` is a text, not {entry['tag']!r}")
    return dict(entry)
