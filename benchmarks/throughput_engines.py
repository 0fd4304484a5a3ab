"""One engine of `vllm_throughput.py`, in a process of its own: JSON lines in, JSON lines out.

    python benchmarks/throughput_engines.py KIND   # started by vllm_throughput.py

The first line holds the options; each line after it asks for one run. A `steer` of
`{"specs": k, "edits": n}` gives the requests k different interventions in turn, of n edits each.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from interventions.default_model import resolve_pretrained
from interventions.sae.core import SAE
from interventions.sae.io import load_sae
from interventions.spec import SAERef

HOOK_POINT = "blocks.15.hook_resid_post"
LAYER = 15
VALUE = 100.0
"""Of every clamp, in SAE units, and of every vector that is added, times the decoder row."""
DECLARED = {"sae_steered": {"hook_points": [HOOK_POINT], "max_edits": 8}}


def features(spec: int, edits: int, d_sae: int = 4608) -> list[int]:
    """Return the features of intervention `spec`; no two interventions share one."""
    return [(17 * (spec * edits + edit)) % d_sae for edit in range(edits)]


def default_sae() -> SAE:
    """Return the SAE that is shipped for the default model."""
    return load_sae(SAERef.model_validate("default"))


class Vllm:
    """Plain vLLM; `steer` must ask for nothing."""

    eager = False
    additional_config: Any = None

    def __init__(self, options: dict[str, Any]) -> None:
        """Start the engine; `options` as in `vllm_throughput.Run.options`."""
        from vllm import LLM

        self.llm: Any = LLM(
            resolve_pretrained(options["model"]).path,
            dtype=options["dtype"],
            max_model_len=1024,
            max_num_seqs=options["requests"],
            max_num_batched_tokens=4096,
            gpu_memory_utilization=0.25,
            # The same prompts come round after round.
            enable_prefix_caching=False,
            enforce_eager=self.eager or options["eager"],
            additional_config=self.additional_config or {},
        )
        self.runs = 0
        self.prepare()

    def prepare(self) -> None:
        """Do what is to be done once."""

    def extra_args(self, row: int, steer: dict[str, int]) -> dict[str, Any] | None:
        """Return what request `row` says of its intervention."""
        if steer["specs"]:
            raise ValueError("plain vLLM steers nothing")
        return None

    def after(self, rows: int, steer: dict[str, int]) -> int | None:
        """Return how many edits the engine counted, None where it does not say."""
        return None

    def run(self, prompts: list[str], tokens: int, steer: dict[str, int]) -> dict[str, Any]:
        """Return seconds and output digests of one batch."""
        from vllm import SamplingParams

        self.runs += 1
        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=tokens,
                ignore_eos=True,
                extra_args=self.extra_args(row, steer),
            )
            for row in range(len(prompts))
        ]
        begun, cpu = time.perf_counter(), time.process_time()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        steered = self.after(len(prompts), steer)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        made = [list(output.outputs[0].token_ids) for output in outputs]
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs),
            "tokens": sum(map(len, made)),
            "steered": steered,
            "digests": [digest(ids) for ids in made],
        }


class Ours(Vllm):
    """vLLM with this plugin, declared at one hook point; the receipt is read within the time."""

    additional_config = DECLARED

    def extra_args(self, row: int, steer: dict[str, int]) -> dict[str, Any] | None:
        """Return what request `row` says of its intervention."""
        if not steer["specs"]:
            return None
        chosen = features(row % steer["specs"], steer["edits"])
        edits = [{"feature": f, "op": "clamp", "value": VALUE} for f in chosen]
        spec = {"sae": "default", "hook_point": HOOK_POINT, "edits": edits}
        return {"sae_steered": {"spec": spec, "tag": f"{self.runs}-{row}"}}

    def after(self, rows: int, steer: dict[str, int]) -> int | None:
        """Return how many edits the receipt counts."""
        if not steer["specs"]:
            return None
        tags = [f"{self.runs}-{row}" for row in range(rows)]
        (receipt,) = self.llm.collective_rpc("sae_steered", args=("receipt", tags))
        if receipt["failures"]:
            raise RuntimeError(receipt["failures"][0])
        requests = [request for tag in tags for request in receipt["requests"][tag]]
        edits = [edit for r in requests for edits in r["counts"].values() for edit in edits]
        return sum(selected for selected, _, _ in edits)


class FullSAE(Vllm):
    """Eager vLLM; a forward hook encodes and decodes the whole SAE at every token.

    That is what `get_intervention_hook` of AIRI-Institute/SAE-Reasoning (lm_eval/sae_utils.py)
    does, but on the residual stream: the published code encodes `output[0]` alone, which in vLLM
    is what the MLP wrote and not the stream that the SAE was trained on.
    """

    eager = True

    def prepare(self) -> None:
        """Do what is to be done once."""
        self.sae, self.features = default_sae(), []
        self.llm.apply_model(self._attach)

    def _attach(self, model: Any) -> None:
        model.model.layers[LAYER].register_forward_hook(self._hook)

    def _hook(self, module: Any, args: Any, output: Any) -> Any:
        if not self.features:
            return output
        hidden, residual = output
        stream = (hidden + residual).float()
        acts = self.sae.encode(stream)
        error = stream - self.sae.decode(acts, stream)
        acts[:, self.features] = VALUE
        edited = self.sae.decode(acts, stream) + error
        return (edited - residual).to(hidden.dtype), residual

    def extra_args(self, row: int, steer: dict[str, int]) -> dict[str, Any] | None:
        """Choose what the hook does; requests say nothing of it."""
        self.features = features(0, steer["edits"]) if steer["specs"] else []
        return None


class Lens(Vllm):
    """vllm-lens: vectors added by forward hooks; it makes the engine eager."""

    def prepare(self) -> None:
        """Do what is to be done once."""
        from vllm_lens import SteeringVector  # pyright: ignore[reportMissingImports]

        rows = default_sae().W_dec
        self.vectors = [
            SteeringVector(activations=rows[features(i, 1)], layer_indices=[LAYER], scale=VALUE)
            for i in range(256)
        ]

    def extra_args(self, row: int, steer: dict[str, int]) -> dict[str, Any] | None:
        """Return what request `row` says of its intervention."""
        if not steer["specs"]:
            return None
        return {"apply_steering_vectors": [self.vectors[row % steer["specs"]]]}


class Hotwire(Vllm):
    """hotwire-vllm: vectors added inside the graph; at most `HOTWIRE_SLOTS` of them."""

    def __init__(self, options: dict[str, Any]) -> None:
        folder = Path(os.environ["HOTWIRE_VECTORS"])
        rows = default_sae().W_dec
        for i in range(32):
            torch.save(rows[features(i, 1)[0]], folder / f"v{i}.pt")
        super().__init__(options)

    def extra_args(self, row: int, steer: dict[str, int]) -> dict[str, Any] | None:
        """Return what request `row` says of its intervention."""
        if not steer["specs"]:
            return None
        vector = {"id": f"v{row % steer['specs']}", "layer": LAYER, "scale": VALUE}
        return {"hotwire": json.dumps(vector)}


class Transformers:
    """lm-eval's `hf` (transformers' generate), and `backend=hf` of this package."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Load the model twice."""
        from lm_eval.models.huggingface import HFLM

        from harness_ext.model_hf import SteeredHF

        path, rows = resolve_pretrained(options["model"]).path, options["requests"]
        same: dict[str, Any] = {"batch_size": rows, "dtype": options["dtype"]}
        self.steered: Any = SteeredHF(options["model"], **same)
        self.plain: Any = HFLM(pretrained=path, device=str(self.steered.device), **same)
        self.current: Any = None

    def run(self, prompts: list[str], tokens: int, steer: dict[str, int]) -> dict[str, Any]:
        """Return seconds and output digests of one batch."""
        from lm_eval.api.instance import Instance

        lm = self.plain
        if steer["specs"]:
            lm = self.steered
            if self.current != steer:
                edits = [
                    {"feature": f, "op": "clamp", "value": VALUE}
                    for f in features(0, steer["edits"])
                ]
                lm.set_intervention({"sae": "default", "hook_point": HOOK_POINT, "edits": edits})
                self.current = steer
        eos = [self.plain.eot_token_id]
        asked = {"until": [], "do_sample": False, "max_gen_toks": tokens, "suppress_tokens": eos}
        requests = [
            Instance("generate_until", {"qid": str(i)}, (text, dict(asked)), 0, ("b", i, 1))
            for i, text in enumerate(prompts)
        ]
        begun, cpu = time.perf_counter(), time.process_time()
        texts = lm.generate_until(requests, disable_tqdm=True)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "prompt_tokens": sum(len(ids) for ids in self.plain.tokenizer(prompts)["input_ids"]),
            "tokens": tokens * len(prompts),
            "steered": None,
            "digests": [digest(text) for text in texts],
        }


KINDS = {
    "plain": Vllm,
    "plain-2": Vllm,
    "ours": Ours,
    "full-sae": FullSAE,
    "vllm-lens": Lens,
    "hotwire": Hotwire,
    "hf": Transformers,
}


def digest(output: Any) -> str:
    """Return a short name of an output."""
    return hashlib.sha256(repr(output).encode()).hexdigest()[:12]


def main() -> None:
    """Answer until the input ends."""
    # What libraries print goes to the log; answers alone go to the parent.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if engine is None:
                begun = time.perf_counter()
                engine = KINDS[sys.argv[1]](asked)
                value: Any = {"start_seconds": time.perf_counter() - begun}
            else:
                value = engine.run(**asked)
            print(json.dumps({"value": value}), file=answers)
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
    answers.flush()
    # An engine that is being taken down slowly would run beside the next one.
    os._exit(0)


if __name__ == "__main__":
    main()
