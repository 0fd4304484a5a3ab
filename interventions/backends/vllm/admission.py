"""The frontend's side: a request's spec is checked and compiled before the engine sees it."""

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interventions.backends.hf import token_facts
from interventions.backends.vllm.access import check_saes
from interventions.backends.vllm.compiled import compile_norms, compile_plan, declared_index
from interventions.backends.vllm.config import KEY, SteeringConfig
from interventions.backends.vllm.identity import checkpoint_digest
from interventions.errors import SpecError
from interventions.hook_points import HookPoint, parse_hook_point
from interventions.plan import ModelFacts, Plan, make_plan
from interventions.sae.io import load_sae
from interventions.spec import InterventionSpec, parse_spec

_KEYS = ("spec", "prompt_len", "tag", "norms")
_LONGEST = 1 << 20
_REMEMBERED = 1 << 28  # bytes of compiled interventions; at d_model 4096 an edit has 32 KiB
_LOADED = 4


class Admission:
    """Checks what requests ask of one engine.

    A request says `extra_args={"sae_steered": {"spec": {...}}}`, or over HTTP
    `vllm_xargs={"sae_steered": "<the same as JSON text>"}`. A mapping with a spec's own keys is
    taken as the spec. Beside `spec` there may be `prompt_len` (where the prompt ends, for scoring:
    the tokens after it count as generated) and `tag` (a name under which the receipt lists the
    request). `norms`, a list of hook points, stands in place of `spec`: nothing is edited, and the
    lengths of the residual stream there are kept under the tag.

    Specs are compiled one at a time; it is safe to call from several threads.
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
        self._model_config, self.tokenizer = model_config, tokenizer
        self.config = config
        self.facts = ModelFacts(
            name=model_config.model, d_model=text.hidden_size, n_layers=text.num_hidden_layers
        )
        self.points = config.points(self.facts.n_layers, self.facts.name)
        self._identity: str | None = None
        self._compiled: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        # Hundreds of features of one SAE read its files once.
        self._load: Any = functools.lru_cache(maxsize=_LOADED)(load_sae)

    @property
    def identity(self) -> str:
        """Digest of the model's weights, see `fingerprint.weights_digest`."""
        if self._identity is None:
            self._identity = model_identity(self._model_config)
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
        if "norms" in entry:
            points = [parse_hook_point(text) for text in entry["norms"]]
            for point in points:
                self.index(point)
            compiled = compile_norms(points, self.points, self.facts.d_model).pack()
        else:
            compiled = self._remembered(entry["spec"])
        if not compiled:
            return {}
        check_prompt_len(entry.get("prompt_len"), n_prompt)
        rest = {key: entry[key] for key in ("prompt_len", "tag") if key in entry}
        if "norms" in entry:
            rest["norms"] = True
        return {"compiled": compiled, **rest}

    def index(self, point: HookPoint) -> int:
        """Return which of the declared hook points `point` is.

        Raises:
            HookPointError: a layer outside the model.
            SpecError: it was not declared.
        """
        point.check(self.facts.n_layers, self.facts.name)
        return declared_index(point, self.points)

    def check(self, data: Mapping[str, Any]) -> Plan:
        """Return the plan of a spec, for which `admit` would take a request.

        A median norm that the guard needs may be missing in it: see `Plan.missing_medians`.

        Raises:
            interventions.errors.SteeringError: as `admit` does.
        """
        plan = self.plan(parse_spec(data))
        # The rest is checked with any norm in place of those that are missing.
        self._pack(plan.with_median_norms(dict.fromkeys(plan.missing_medians, 1.0)))
        return plan

    def plan(self, spec: InterventionSpec) -> Plan:
        """Return the plan of a spec for the engine's model."""
        if self.config.saes not in (None, "any"):
            check_saes(spec, self.config.saes)
        return make_plan(spec, self.facts, load=self._load).with_identity(self.identity)

    def _remembered(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        try:
            text = json.dumps(spec, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise SpecError(f"`spec` cannot be written as JSON: {error}") from None
        compiled = self._compiled.get(text)
        if compiled is not None:
            return compiled
        with self._lock:
            compiled = self._compiled.get(text)
            if compiled is None:
                compiled = self._compiled[text] = self._pack(self.plan(parse_spec(spec)))
                self._bytes += _size(compiled)
                while self._bytes > _REMEMBERED and len(self._compiled) > 1:
                    self._bytes -= _size(self._compiled.popitem(last=False)[1])
        return compiled

    def _pack(self, plan: Plan) -> dict[str, Any]:
        if not plan.layers:
            return {}
        spec = plan.spec
        if self.tokenizer is None:
            raise SpecError("the engine has no tokenizer (skip_tokenizer_init) and needs one")
        tokens = token_facts(self.tokenizer, spec, needs_thinking=plan.needs_thinking)
        return compile_plan(plan, self.points, self.config.max_edits, tokens).pack()


def check_prompt_len(prompt_len: int | None, n_prompt: int | None) -> None:
    """Return nothing if a prompt of `n_prompt` tokens may end after `prompt_len` of them.

    Raises:
        SpecError: it may not.
    """
    if prompt_len is not None and n_prompt is not None and not 0 < prompt_len <= n_prompt:
        raise SpecError(f"`prompt_len` {prompt_len} is outside 1..{n_prompt}, the prompt")


def model_identity(model_config: Any) -> str:
    """Return the digest of the weights of a vLLM `ModelConfig`."""
    path = Path(model_config.model)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "*.json"]
        revision = model_config.revision
        path = Path(
            snapshot_download(model_config.model, revision=revision, allow_patterns=patterns)
        )
    return checkpoint_digest(path, model_config.dtype)


def _read(entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        if len(entry) > _LONGEST:
            raise SpecError(f"'{KEY}' has {len(entry)} characters, at most {_LONGEST} are read")
        try:
            entry = json.loads(entry)
        except (ValueError, RecursionError) as error:  # a number of 5000 digits is a ValueError
            raise SpecError(f"'{KEY}' is not JSON: {error}") from None
    if not isinstance(entry, Mapping):
        raise SpecError(f"'{KEY}' is a mapping, or one as JSON text, not {type(entry).__name__}")
    if "spec" not in entry and "norms" not in entry:
        entry = {"spec": entry}
    unknown = sorted(map(str, set(entry) - set(_KEYS)))
    if unknown:
        raise SpecError(f"unknown key '{unknown[0]}' in '{KEY}'; known keys: {', '.join(_KEYS)}")
    if "norms" in entry:
        points = entry["norms"]
        if "spec" in entry or not isinstance(points, list) or not points:
            raise SpecError("`norms` is a list of hook points, and stands in place of `spec`")
        if "tag" not in entry:
            raise SpecError("`norms` needs a `tag`, under which they are kept")
        entry = {**entry, "norms": [str(point) for point in points]}
    elif not isinstance(entry["spec"], Mapping):
        raise SpecError(f"`spec` is a mapping of a spec's keys, not {entry['spec']!r:.100}")
    prompt_len = entry.get("prompt_len", 1)
    if not isinstance(prompt_len, int) or isinstance(prompt_len, bool):
        raise SpecError(f"`prompt_len` is a number of tokens, not {prompt_len!r:.100}")
    if not isinstance(entry.get("tag", ""), str):
        raise SpecError(f"`tag` is a text, not {entry['tag']!r:.100}")
    return dict(entry)


def _size(compiled: Mapping[str, Any]) -> int:
    return sum(len(blob) for *_, blob in compiled.get("hooks", ()))
