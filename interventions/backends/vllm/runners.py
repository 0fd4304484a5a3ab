"""vLLM's two model runners: where a step's rows are known, and when they are about to run."""

import types
from typing import Any

from interventions.backends.vllm.adapter import model_runner_kind
from interventions.backends.vllm.worker import StepRequest, WorkerSteering


def attach(runner: Any) -> None:
    """Wrap the methods of one model runner, which holds its `WorkerSteering` already.

    Rows are filled in once the runner has brought its batch into its final order.
    """
    if model_runner_kind(runner) == "V2":
        _wrap(runner, "execute_model", _execute_v2)
        _wrap(runner, "prepare_inputs", _prepare_v2)
    else:
        _wrap(runner, "execute_model", _execute_v1)
        _wrap(runner, "_prepare_inputs", _prepare_v1)
        _wrap(runner, "_dummy_run", _dummy_v1)
        if runner.device.type == "cpu":
            _wrap(runner, "_sample", _sample_on_cpu)
            _wrap(runner, "_bookkeeping_sync", _bookkeep_on_cpu)


def dummy_run(runner: Any, rows: int) -> None:
    """Run a forward pass of `rows` rows without clearing what they are."""
    runner.sae_steered.dummy_rows_stay = True
    try:
        runner._dummy_run(rows)
    finally:
        runner.sae_steered.dummy_rows_stay = False


def _wrap(runner: Any, name: str, replacement: Any) -> None:
    original = getattr(runner, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return replacement(self, self.sae_steered, original, *args, **kwargs)

    setattr(runner, name, types.MethodType(method, runner))


def _execute_v1(runner: Any, steering: WorkerSteering, original: Any, step: Any, *args: Any, **kw):
    resumed = step.scheduled_cached_reqs.resumed_req_ids
    steering.update(step.finished_req_ids, step.scheduled_new_reqs, resumed)
    output = original(step, *args, **kw)
    steering.read_norms()
    return output


def _prepare_v1(runner: Any, steering: WorkerSteering, original: Any, step: Any, n: Any, *a, **kw):
    prepared = original(step, n, *a, **kw)
    if steering.idle:
        steering.fill((), runner.input_ids.gpu)
        return prepared
    batch = runner.input_batch
    requests = [
        StepRequest(request_id, start, length, _tokens_v1(runner, request_id))
        for request_id, start, length in zip(
            batch.req_ids, batch.num_computed_tokens_cpu.tolist(), n.tolist(), strict=False
        )
    ]
    steering.fill(requests, runner.input_ids.gpu)
    return prepared


def _tokens_v1(runner: Any, request_id: str) -> Any:
    def known() -> list[int]:
        state = runner.requests[request_id]
        return [*(state.prompt_token_ids or ()), *state.output_token_ids]

    return known


def _dummy_v1(runner: Any, steering: WorkerSteering, original: Any, *args: Any, **kwargs: Any):
    if not steering.dummy_rows_stay:
        steering.clear()
    return original(*args, **kwargs)


def _sample_on_cpu(runner: Any, steering: WorkerSteering, original: Any, *args: Any, **kw: Any):
    """Leave the generators of half-read prompts alone.

    vLLM draws a token for them too, drops it, and winds their generator back; on CPU torch cannot
    wind one back, and the engine dies of a seeded request whose prompt takes two steps.
    """
    batch = runner.input_batch
    steering.set_aside = {
        row: batch.generators.pop(row)
        for row in range(batch.num_reqs)
        if runner.discard_request_mask.np[row] and row in batch.generators
    }
    return original(*args, **kw)


def _bookkeep_on_cpu(runner: Any, steering: WorkerSteering, original: Any, *args: Any, **kw: Any):
    try:
        return original(*args, **kw)
    finally:
        runner.input_batch.generators.update(steering.set_aside)
        steering.set_aside = {}


def _execute_v2(runner: Any, steering: WorkerSteering, original: Any, step: Any, *args: Any, **kw):
    if kw.get("dummy_run") or (len(args) > 1 and args[1]):
        if not steering.dummy_rows_stay:
            steering.clear()
        return original(step, *args, **kw)
    steering.update(step.finished_req_ids, step.scheduled_new_reqs)
    # A request that comes back after a preemption comes as a new one, with all its tokens.
    for request in step.scheduled_new_reqs:
        steering.tokens[request.req_id] = request.prefill_token_ids
    output = original(step, *args, **kw)
    steering.read_norms()
    return output


def _prepare_v2(runner: Any, steering: WorkerSteering, original: Any, *args: Any, **kwargs: Any):
    batch = original(*args, **kwargs)
    if steering.idle:
        steering.fill((), batch.input_ids)
        return batch
    requests = [
        StepRequest(request_id, start, length, _tokens_v2(steering, request_id))
        for request_id, start, length in zip(
            batch.req_ids,
            batch.num_computed_tokens_np.tolist(),
            batch.num_scheduled_tokens.tolist(),
            strict=False,
        )
    ]
    steering.fill(requests, batch.input_ids)
    return batch


def _tokens_v2(steering: WorkerSteering, request_id: str) -> Any:
    return lambda: steering.tokens.get(request_id) or ()
