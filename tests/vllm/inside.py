"""What the tests do inside the process of an engine; called by name through `Host.inside`.

Functions that reach the scheduler or the worker directly need an engine that runs in the host's
own process (`engine.IN_PROCESS`).
"""

from typing import Any

import torch


def _core(host: Any) -> Any:
    return host.llm.llm_engine.engine_core.engine_core


def _runner(host: Any) -> Any:
    worker = _core(host).model_executor.driver_worker
    return getattr(worker, "worker", worker).model_runner


def pids(host: Any) -> list[int]:
    """Return the process of this host, then those of the workers."""
    import os

    def pid(_worker: Any) -> int:
        import os

        return os.getpid()

    return [os.getpid(), *host.llm.collective_rpc(pid)]


def state(host: Any) -> list[dict[str, Any]]:
    """Return what each worker still holds."""

    def held(worker: Any) -> dict[str, Any]:
        steering = worker.model_runner.sae_steered
        return {
            "live": sorted(steering._live),
            "slots": steering._slots.size - 1,
            "held": len(steering._slots._held),
            "rows": int((steering._tokens != 0).sum()),
        }

    return host.llm.collective_rpc(held)


def traces(host: Any) -> list[str]:
    """Return what of the plugin is in this engine: in its config, its worker and its layers."""
    runner = _runner(host)
    found = [name for name in vars(runner) if "sae_steered" in name]
    found += [n for n, m in runner.get_model().named_modules() if hasattr(m, "sae_steered_sites")]
    found += [n for n, _ in runner.get_model().named_buffers() if "sae_steered" in n]
    return found + [str(key) for key in host.llm.llm_engine.vllm_config.additional_config or ()]


def blocks(host: Any) -> tuple[int, int]:
    """Return the size of a KV block and how many there are."""
    config = host.llm.llm_engine.vllm_config.cache_config
    return config.block_size, config.num_gpu_blocks


def chunk(host: Any, size: int, *, each: int) -> None:
    """Let a step hold `size` tokens at the most, and `each` of one request; 0 is no bound."""
    scheduler = _core(host).scheduler
    scheduler.max_num_scheduled_tokens = size
    scheduler.scheduler_config.long_prefill_token_threshold = each


def record(host: Any) -> None:
    """Note from now on how many tokens of each request every step holds."""
    scheduler = _core(host).scheduler
    host.steps = []
    if hasattr(scheduler, "unrecorded"):
        return
    scheduler.unrecorded = scheduler.schedule

    def schedule(*args: Any, **kwargs: Any) -> Any:
        output = scheduler.unrecorded(*args, **kwargs)
        host.steps.append(dict(output.num_scheduled_tokens))
        return output

    scheduler.schedule = schedule


def recorded(host: Any) -> list[dict[str, int]]:
    """Return what was noted since `record`."""
    return host.steps


def without_keys(host: Any, off: bool) -> None:
    """Take the intervention out of the keys of KV blocks, or put it back."""
    from vllm.v1.core import kv_cache_utils

    name = "generate_block_hash_extra_keys"
    here = getattr(kv_cache_utils, name)
    if off:
        host.keyed = here
        here = here.__wrapped__
    else:
        here = host.keyed
    setattr(kv_cache_utils, name, here)


def first_half_only(host: Any, on: bool) -> None:
    """Give the operator `output[0]` of a layer alone, as a published evaluation does, or not."""
    from interventions.backends.vllm import layers

    if on:
        host.edit = layers._edit
        layers._edit = lambda layer, site, hidden, residual: host.edit(
            layer, site, hidden, torch.zeros_like(residual)
        )
    else:
        layers._edit = host.edit


def capture(host: Any, layer: int, requests: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Return the two tensors that layer `layer` returned for the prompts of `requests`.

    Each is a list of rows of numbers; the requests ask for one token, so that there are no others.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    module = next(
        m[layer]
        for m in _runner(host).get_model().modules()
        if isinstance(m, torch.nn.ModuleList) and len(m) > layer
    )

    def hook(_module: Any, _args: Any, output: Any) -> None:
        kept.append(tuple(part.detach().clone() for part in output))

    handle = module.register_forward_hook(hook)
    try:
        for request in requests:
            host.generate([request])
    finally:
        handle.remove()
    first, second = (torch.cat([pair[i] for pair in kept]) for i in (0, 1))
    return first.numpy(), second.numpy()


def refusals(host: Any, arguments: dict[str, Any], **parallel: Any) -> list[str]:
    """Return why an engine config is refused once its parallel config has been changed.

    Some platforms refuse such a setting, or undo it, before the plugin sees the config.
    """
    from vllm.engine.arg_utils import EngineArgs

    from interventions.backends.vllm import adapter

    config = EngineArgs(**arguments).create_engine_config()
    assert not adapter.refusals(config)
    for name, value in parallel.items():
        setattr(config.parallel_config, name, value)
    return adapter.refusals(config)
