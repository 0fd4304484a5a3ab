"""The vLLM plugin: puts steering into every process of an engine.

vLLM calls `register` in the frontend, in the engine core and in every worker. Where no engine
declares `additional_config["sae_steered"]`, nothing is steered and nothing is slower.
"""

import copy
import functools
import logging
from collections.abc import Mapping
from typing import Any

from interventions.backends.vllm.compiled import check_compiled
from interventions.backends.vllm.config import KEY, declared, parse_config
from interventions.errors import HookPointError, ReceiptError, SpecError, SteeringError

logger = logging.getLogger(__name__)


def register() -> None:
    """Wrap vLLM's functions in this process; calling it again changes nothing.

    Where this version of vLLM lacks a place that steering needs, vLLM goes on as it is, and an
    engine that declares an intervention is refused.
    """
    try:
        _wrap_all()
    except (HookPointError, ImportError) as error:
        logger.warning("sae-steered cannot steer this version of vLLM: %s", error)
        _missing.append(str(error))


_missing: list[str] = []
"""What this process's vLLM lacks; read where an engine declares an intervention."""


def _wrap_all() -> None:
    from vllm.engine.arg_utils import EngineArgs

    from interventions.backends.vllm import adapter, kv_keys

    # First, for it is what refuses where one of the others is missing.
    adapter.wrap(EngineArgs, "create_engine_config", _create_engine_config)
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    adapter.wrap(InputProcessor, "process_inputs", _process_inputs)
    adapter.wrap(EngineCore, "preprocess_add_request", _preprocess_add_request)
    adapter.wrap(kv_cache_utils, "generate_block_hash_extra_keys", kv_keys.extend)
    for name in ("vllm.v1.core.block_pool", "vllm.v1.simple_kv_offload.manager"):
        module = adapter.loaded(name)
        if module is not None:  # imported the function by name before it was wrapped
            module.generate_block_hash_extra_keys = kv_cache_utils.generate_block_hash_extra_keys
    # Not the class of a worker: importing it costs most of a second, in frontends for nothing.
    adapter.wrap(WorkerWrapperBase, "init_device", _init_device)


# -- frontend ---------------------------------------------------------------------------------


def _create_engine_config(original: Any) -> Any:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        from interventions.backends.vllm import adapter

        vllm_config = original(self, *args, **kwargs)
        config = declared(vllm_config)
        if config is None:
            return vllm_config
        if _missing:
            raise SpecError(f"this engine cannot be steered: {_missing[0]}")
        usage = args[0] if args else kwargs.get("usage_context")
        if config.saes is None and adapter.serves_others(usage):
            config = config.model_copy(update={"saes": ()})
        adapter.check_version()
        reasons = adapter.refusals(vllm_config)
        if reasons:
            raise SpecError(f"this engine cannot be steered: {'; '.join(reasons)}")
        text = vllm_config.model_config.hf_text_config
        config.points(text.num_hidden_layers, vllm_config.model_config.model)
        # vLLM hashes `additional_config` into the key of its compile cache: the version of the
        # operator keeps graphs apart that were compiled with another, or with none.
        vllm_config.additional_config = {
            **vllm_config.additional_config,
            KEY: config.model_dump(mode="json"),
        }
        return vllm_config

    return create_engine_config


def _process_inputs(original: Any) -> Any:
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kw: Any):
        extra = getattr(params, "extra_args", None) or {}
        entry = extra.get(KEY)
        if entry is None:
            return original(self, request_id, prompt, params, *args, **kw)
        try:
            admitted = admission_of(self).admit(entry, None)
            # The prompts of one HTTP request share their parameters. vLLM copies what it is given
            # in depth, which costs more than all else here where a spec has many edits.
            own = copy.copy(params)
            own.extra_args = {key: value for key, value in extra.items() if key != KEY} or None
            request = original(self, request_id, prompt, own, *args, **kw)
            _check_prompt(request, admitted)
        except SteeringError as error:
            raise client_error(str(error)) from None
        if admitted:
            own = request.sampling_params
            own.extra_args = {**(own.extra_args or {}), KEY: admitted}
        return request

    return process_inputs


def _check_prompt(request: Any, admitted: Mapping[str, Any]) -> None:
    """Return nothing if it is known where the prompt ends, and of which tokens it is.

    Args:
        request: as the engine gets it.
        admitted: what `Admission.admit` said.

    Raises:
        SpecError: it is not.
    """
    from interventions.backends.vllm.admission import check_prompt_len

    if request.prompt_token_ids is None:
        raise SpecError(
            "a prompt of embeddings cannot be steered: positions and receipt need its token ids;"
            " send text or token ids"
        )
    if getattr(request, "resumable", False):
        raise SpecError(
            "a prompt that arrives in parts cannot be steered: what follows the first part would"
            " count as generated; send it whole"
        )
    check_prompt_len(admitted.get("prompt_len"), len(request.prompt_token_ids))


def admission_of(processor: Any) -> Any:
    """Return the `Admission` of an engine.

    Args:
        processor: vLLM's `InputProcessor` of that engine.

    Raises:
        SpecError: the engine was not started to be steered.
    """
    from interventions.backends.vllm.admission import Admission

    held = getattr(processor, "sae_steered", None)
    if held is None:
        config = declared(processor.vllm_config)
        if config is None:
            raise SpecError(
                f"this engine was not started to be steered; give it additional_config"
                f' {{"{KEY}": {{"hook_points": ["blocks.<layer>.hook_resid_post"]}}}}'
            )
        held = processor.sae_steered = Admission(processor.vllm_config, config, processor.tokenizer)
    return held


def client_error(message: str) -> Exception:
    """Return the error that vLLM answers with HTTP 400."""
    from vllm import exceptions

    # Before 0.27 there was a ValueError of that name only.
    kind = getattr(exceptions, "VLLMValidationError", ValueError)
    return kind(message)


# -- engine core ------------------------------------------------------------------------------


def _preprocess_add_request(original: Any) -> Any:
    """Refuse a request that no frontend's plugin compiled: it would run unsteered, or not at all.

    vLLM ends such a request with an error, and the engine lives on.
    """

    def preprocess_add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        extra = getattr(request.sampling_params, "extra_args", None)
        if extra and extra.get(KEY) is not None:
            if declared(self.vllm_config) is None:
                raise SpecError(
                    f"request {request.request_id} names an intervention and this engine was not"
                    f" started to be steered"
                )
            check_compiled(extra[KEY], request.request_id)
        return original(self, request, *args, **kwargs)

    return preprocess_add_request


# -- worker -----------------------------------------------------------------------------------


def _init_device(original: Any) -> Any:
    """Prepare the worker that a wrapper holds, whatever its class; its model is not loaded yet."""

    def init_device(self: Any, *args: Any, **kwargs: Any) -> Any:
        worker = self.worker
        worker.load_model = _load_model(worker)
        worker.sae_steered = functools.partial(_call, worker)
        return original(self, *args, **kwargs)

    return init_device


def _load_model(worker: Any) -> Any:
    original = worker.load_model

    @functools.wraps(original)
    def load_model(*args: Any, **kwargs: Any) -> Any:
        import torch

        result = original(*args, **kwargs)
        config = declared(worker.vllm_config)
        if config is None:
            return result
        from interventions.backends.vllm import adapter, runners
        from interventions.backends.vllm.worker import WorkerSteering

        additional: Mapping[str, Any] = worker.vllm_config.additional_config[KEY]
        if not isinstance(additional, Mapping) or "graph" not in additional:
            raise SpecError(
                "this engine's config was made without the plugin sae_steered, so its compile cache"
                " is not kept apart; make it by EngineArgs, with the plugin active (VLLM_PLUGINS)"
            )
        runner = worker.model_runner
        text = worker.model_config.hf_text_config
        requests, rows = adapter.runner_limits(runner)
        # Not an inference tensor: graphs are captured and replayed in and outside of that mode.
        with torch.inference_mode(False):
            runner.sae_steered = WorkerSteering(
                runner.get_model(),
                parse_config(additional),
                n_layers=text.num_hidden_layers,
                d_model=text.hidden_size,
                max_requests=requests,
                max_rows=rows,
                device=torch.device(worker.device),
                name=worker.model_config.model,
            )
        runners.attach(runner)
        _check_when_ready(worker)
        return result

    return load_model


def _check_when_ready(worker: Any) -> None:
    from interventions.backends.vllm import runners

    original = worker.compile_or_warm_up_model

    def compile_or_warm_up_model() -> Any:
        result = original()
        steering = worker.model_runner.sae_steered
        steering.self_check(lambda rows: runners.dummy_run(worker.model_runner, rows))
        return result

    worker.compile_or_warm_up_model = compile_or_warm_up_model


def _call(worker: Any, what: str, *args: Any) -> Any:
    """Answer a frontend: `collective_rpc("sae_steered", args=(what, ...))`.

    Raises:
        ReceiptError: the engine does not steer.
    """
    steering = getattr(worker.model_runner, "sae_steered", None)
    if steering is None:
        raise ReceiptError("this engine was not started to be steered; there is no receipt")
    return {"receipt": steering.take_receipt, "norms": steering.take_norms}[what](*args)
