"""What a server answers about itself, about specs and about what it steered; knows no HTTP."""

import asyncio
import importlib.metadata
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interventions.backends.vllm import adapter
from interventions.backends.vllm.calibrate import measure_median_norms
from interventions.backends.vllm.config import GRAPH, KEY
from interventions.backends.vllm.identity import variant
from interventions.backends.vllm.plugin import admission_of
from interventions.errors import SpecError
from interventions.hook_points import parse_hook_point


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CheckBody(_Body):
    """A spec to check."""

    spec: dict[str, Any]


class ReceiptBody(_Body):
    """Tags of requests, as they were given in `vllm_xargs`."""

    tags: list[str] = Field(max_length=1 << 17)


class NormsBody(_Body):
    """Hook points to measure at."""

    hook_points: list[str] = Field(min_length=1, max_length=1 << 10)


class MissingNormsError(SpecError):
    """The norm guard of a spec needs norms that its SAE does not store.

    Attributes:
        hook_points: where.
    """

    def __init__(self, message: str, hook_points: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.hook_points = hook_points


class Service:
    """Answers for one engine."""

    def __init__(self, engine_client: Any) -> None:
        """Prepare; reads nothing yet.

        Args:
            engine_client: the server's `AsyncLLM`.
        """
        self._client = engine_client

    async def info(self) -> dict[str, Any]:
        """Return what the engine is, and where it can be steered.

        Raises:
            SpecError: it was not started to be steered.
        """
        import vllm

        admission = admission_of(self._client.input_processor)
        vllm_config = self._client.vllm_config
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        saes = admission.config.saes
        return {
            "model": _served_name(model),
            "identity": await asyncio.to_thread(lambda: admission.identity),
            "dtype": str(model.dtype).removeprefix("torch."),
            "variant": variant(vllm_config),
            "d_model": admission.facts.d_model,
            "n_layers": admission.facts.n_layers,
            "hook_points": [str(point) for point in admission.points],
            "max_edits": admission.config.max_edits,
            "saes": saes
            if saes is None or saes == "any"
            else [ref.model_dump(mode="json", exclude_none=True) for ref in saes],
            "max_model_len": model.max_model_len,
            "max_num_seqs": vllm_config.scheduler_config.max_num_seqs,
            "data_parallel_size": parallel.data_parallel_size,
            "tensor_parallel_size": parallel.tensor_parallel_size,
            "pipeline_parallel_size": parallel.pipeline_parallel_size,
            "vllm": vllm.__version__,
            "sae_steered": importlib.metadata.version("sae-steered"),
            "graph": GRAPH,
        }

    async def check(self, body: CheckBody) -> dict[str, Any]:
        """Return the fingerprint of a spec, and what its numbers mean.

        Raises:
            MissingNormsError: its guard needs median norms.
            interventions.errors.SteeringError: a request with it would be refused.
        """
        admission = admission_of(self._client.input_processor)
        plan = await asyncio.to_thread(admission.check, body.spec)
        if plan.missing_medians:
            points = tuple(map(str, plan.missing_medians))
            raise MissingNormsError(
                f"the norm guard needs the median residual norm at {', '.join(points)} and the SAE"
                f" stores none; give `median_norm` (POST /{KEY}/median_norm measures it), or set"
                f" `norm_guard: null`",
                points,
            )
        return {
            "fingerprint": plan.fingerprint if plan.layers else "none",
            "edits": plan.description,
            "median_norm": {str(layer.hook_point): layer.median_norm for layer in plan.layers},
        }

    async def receipt(self, body: ReceiptBody) -> dict[str, Any]:
        """Return what was steered for some requests, by data-parallel engine and by rank.

        Each worker's answer is that of `WorkerSteering.take_receipt`; what was answered is
        forgotten.
        """
        admission_of(self._client.input_processor)
        return {"engines": await adapter.call_workers(self._client, "receipt", body.tags)}

    async def median_norm(self, body: NormsBody) -> dict[str, Any]:
        """Return the median residual norm at some hook points, see `measure_median_norms`.

        Raises:
            HookPointError: a hook point outside the model, or none.
            SpecError: one that was not declared.
        """
        admission = admission_of(self._client.input_processor)
        wanted = [parse_hook_point(text) for text in body.hook_points]
        for point in wanted:
            admission.index(point)

        async def call(*args: Any) -> list[list[Any]]:
            return await adapter.call_workers(self._client, *args)

        norms = await measure_median_norms(
            self._generate,
            call,
            admission.tokenizer,
            admission.points,
            wanted,
            max_length=self._client.vllm_config.model_config.max_model_len,
        )
        return {"median_norm": {str(point): norm for point, norm in norms.items()}}

    async def admit(self, entry: Any) -> None:
        """Return nothing if a request may say `entry`; what it takes is kept for the request.

        Raises:
            interventions.errors.SteeringError: it is refused.
        """
        admission = admission_of(self._client.input_processor)
        # In a thread: the first spec of an SAE reads its files.
        await asyncio.to_thread(admission.admit, entry, None)

    async def _generate(self, ids: list[int], entry: dict[str, Any]) -> None:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, extra_args={KEY: entry})
        name = f"{KEY}-{uuid.uuid4().hex}"
        prompt = {"type": "token", "prompt_token_ids": ids}
        async for _ in self._client.generate(prompt, params, name):
            pass


def read_body(kind: type[_Body], data: bytes) -> Any:
    """Return the checked body of a request.

    Raises:
        SpecError: it is not JSON, or holds something else; one line.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join(map(str, p['loc']))}`: {p['msg']}" if p["loc"] else p["msg"]
            for p in error.errors(include_url=False, include_input=False)[:5]
        )
        keys = ", ".join(kind.model_fields)
        raise SpecError(f"the body is JSON with the keys {keys}: {problems}") from None


def error_body(error: Exception) -> Mapping[str, Any]:
    """Return an error in the form that an OpenAI server gives it."""
    told: dict[str, Any] = {
        "message": " ".join(str(error).split()),
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
    if isinstance(error, MissingNormsError):
        told |= {"param": "median_norm", "hook_points": list(error.hook_points)}
    return {"error": told}


def _served_name(model_config: Any) -> str:
    served = model_config.served_model_name
    return served[0] if isinstance(served, list) else served or model_config.model
