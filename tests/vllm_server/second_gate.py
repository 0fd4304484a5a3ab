"""Sends an engine requests that no frontend's plugin has seen; prints how each ended, as JSON.

A program of its own: an engine does not leave the process that it was made in unchanged.
"""

import copy
import json
import sys
from typing import Any

POINT = "blocks.15.hook_resid_post"
PROMPT = "Tell me about your weekend. My weekend was"
SPEC = {"sae": "default", "edits": [{"feature": 3036, "op": "add", "value": 60.0}]}


def ended(core: Any, request: Any) -> str:
    """Return how a request ends that goes to the engine core directly."""
    core.add_request(request)
    while True:
        for output in core.get_output().outputs:
            if output.request_id == request.request_id and output.finish_reason is not None:
                return str(output.finish_reason)


def main() -> None:
    """Run the requests."""
    from vllm import LLM, SamplingParams

    from interventions.backends.vllm.config import KEY
    from interventions.backends.vllm.plugin import admission_of
    from interventions.default_model import resolve_pretrained

    llm = LLM(
        resolve_pretrained("default").path,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=4,
        gpu_memory_utilization=0.25,
        enforce_eager=True,
        additional_config={KEY: {"hook_points": [POINT]}},
    )
    engine = llm.llm_engine

    def request(name: str, entry: Any) -> Any:
        params = SamplingParams(temperature=0, max_tokens=4)
        ids = llm.get_tokenizer()(PROMPT).input_ids
        prompt: Any = {"type": "token", "prompt_token_ids": ids}
        made = engine.input_processor.process_inputs(name, prompt, params, ("generate",))
        made.request_id = name
        made.sampling_params = copy.copy(made.sampling_params)
        if entry is not None:
            made.sampling_params.extra_args = {KEY: entry}
        return made

    good = admission_of(engine.input_processor).admit({"spec": SPEC}, None)
    old = {"compiled": {**good["compiled"], "graph": "0.0"}}
    found = {
        name: ended(engine.engine_core, request(name, entry))
        for name, entry in {
            "plain": None,
            "text": json.dumps({"spec": SPEC}),
            "spec": {"spec": SPEC},
            "number": 7,
            "old": old,
            "compiled": good,
            "plain again": None,
        }.items()
    }
    text = llm.generate([PROMPT], SamplingParams(temperature=0, max_tokens=4))[0].outputs[0].text
    sys.stdout.write(json.dumps({"ended": found, "text": text}) + "\n")


if __name__ == "__main__":
    main()
