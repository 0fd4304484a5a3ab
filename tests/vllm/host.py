"""One vLLM engine in a process of its own, which answers the calls of `engine.Engine`.

The tests' own process never imports vLLM: its settings, its threads and its warnings stay here,
and an engine that dies or hangs takes no test run with it.
"""

import sys
import time
import traceback
from multiprocessing.connection import Client
from typing import Any

from tests.vllm import inside

KEY = "sae_steered"


class Host:
    """What the tests may ask of an engine; plain data in, plain data out."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.numbers = 0

    def start(self, **arguments: Any) -> float:
        """Return the seconds that the start of an engine took; the one before is stopped."""
        from vllm import LLM

        self.stop()
        begun = time.monotonic()
        self.llm = LLM(**arguments)
        return time.monotonic() - begun

    def stop(self) -> None:
        """Stop the engine and leave nothing of it in this process."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
            self._clean()

    def _clean(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()

    def refused(self, **arguments: Any) -> str:
        """Return how the start of an engine failed, '' if it did not."""
        try:
            self.start(**arguments)
        except Exception as error:
            self._clean()
            return f"{type(error).__name__}: {error}"
        self.stop()
        return ""

    def generate(self, requests: list[dict[str, Any]], *, lora: Any = None) -> list[dict[str, Any]]:
        """Return the outputs of requests that all wait when the first step begins.

        So the steps of two engines with the same requests hold the same rows.
        """
        core = self.llm.llm_engine.engine_core
        held = hasattr(core, "call_utility")
        if held:
            core.call_utility("pause_scheduler", "keep", False)
        try:
            ids = [self._add(request, lora) for request in requests]
        finally:
            if held:
                core.call_utility("resume_scheduler")
        done = self._until_done()
        return [done[name] for name in ids]

    def refusal(self, request: dict[str, Any]) -> str:
        """Return how the engine refused a request, '' if it took it."""
        try:
            self._add(request, None)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        self._until_done()
        return ""

    def churn(self, requests: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """Return the outputs of requests that come and go; None for those that were aborted.

        A request is added at the step `at` at the earliest, and aborted when `abort` of its
        tokens are out (0: right after it was added), where `abort` is given. Its id is `name`,
        so that an id may come back.
        """
        waiting = list(enumerate(requests))[::-1]
        ids: dict[str, int] = {}
        results: list[dict[str, Any] | None] = [None] * len(requests)
        engine, step = self.llm.llm_engine, 0
        while waiting or ids:
            while waiting and waiting[-1][1]["at"] <= step and waiting[-1][1]["name"] not in ids:
                index, request = waiting.pop()
                name = self._add(request, None, streamed=True, name=request["name"])
                ids[name] = index
                if request.get("abort") == 0:
                    engine.abort_request([name])
                    del ids[name]
            step += 1
            if not ids:
                continue
            for output in engine.step():
                index = ids.get(output.request_id)
                if index is None:
                    continue
                n = len(output.outputs[0].token_ids)
                if output.finished:
                    results[index] = _plain(output)
                elif n >= requests[index].get("abort", 1 << 30):
                    engine.abort_request([output.request_id])
                else:
                    continue
                del ids[output.request_id]
        return results

    def receipt(self, tags: list[str]) -> list[Any]:
        """Return each rank's receipt."""
        return self.llm.collective_rpc(KEY, args=("receipt", tags))

    def reset(self) -> bool:
        """Forget all cached blocks."""
        return self.llm.reset_prefix_cache()

    def metric(self, name: str) -> float:
        """Return the value of a counter of vLLM."""
        return sum(m.value for m in self.llm.get_metrics() if m.name == name)

    def inside(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Return what a function of `inside` says of this engine."""
        return getattr(inside, name)(self, *args, **kwargs)

    def _add(self, request: dict[str, Any], lora: Any, *, streamed: bool = False, name: str = ""):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if not name:
            self.numbers += 1
            name = f"r{self.numbers}"
        keys = ("spec", "tag", "prompt_len", "norms") if "spec" in request else ()
        entry: Any = {key: request[key] for key in keys if request.get(key) is not None}
        if "raw" in request:
            entry = request["raw"]
        params = SamplingParams(
            **{"temperature": 0.0, "ignore_eos": True, **request["params"]},
            extra_args={KEY: entry} if entry else None,
            output_kind=RequestOutputKind.CUMULATIVE if streamed else RequestOutputKind.FINAL_ONLY,
        )
        if lora is not None:
            from vllm.lora.request import LoRARequest

            lora = LoRARequest(*lora)
        prompt: Any = {"prompt_token_ids": list(request["prompt"])}
        self.llm.llm_engine.add_request(name, prompt, params, lora_request=lora)
        return name

    def _until_done(self) -> dict[str, dict[str, Any]]:
        done = {}
        while self.llm.llm_engine.has_unfinished_requests():
            for output in self.llm.llm_engine.step():
                if output.finished:
                    done[output.request_id] = _plain(output)
        return done


def _plain(output: Any) -> dict[str, Any]:
    def table(rows: Any) -> Any:
        return rows and [row and {int(t): lp.logprob for t, lp in row.items()} for row in rows]

    return {
        "outputs": [list(one.token_ids) for one in output.outputs],
        "logprobs": [table(one.logprobs) for one in output.outputs],
        "prompt_logprobs": table(output.prompt_logprobs),
        "finish": output.outputs[0].finish_reason,
        "cached": output.num_cached_tokens,
    }


def main() -> None:
    """Answer calls until the other side hangs up."""
    host = Host()
    with Client(sys.argv[1]) as line:
        while True:
            try:
                name, args, kwargs = line.recv()
            except EOFError:
                break
            try:
                line.send((True, getattr(host, name)(*args, **kwargs)))
            except Exception as error:
                message = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
                line.send((False, message))
    host.stop()


if __name__ == "__main__":
    main()
