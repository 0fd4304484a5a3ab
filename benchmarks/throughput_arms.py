"""What `vllm_throughput.py` compares: arms by group, and the peers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to run a batch: by which engine, with how many interventions of how many edits."""

    name: str
    engine: str
    specs: int = 0
    edits: int = 1


@dataclass(frozen=True)
class Group:
    """Arms that run the same prompts, beside plain vLLM."""

    arms: tuple[Arm, ...]
    requests: int = 32
    tokens: int = 32
    sentences: int = 1


def ours(specs: int, edits: int = 1) -> Arm:
    """Return an arm of this plugin."""
    what = f"{specs} intervention{'s' * (specs > 1)}" + (f" of {edits} edits" if edits > 1 else "")
    return Arm(what, "ours", specs, edits)


PLAIN = (Arm("plain vLLM", "plain"), Arm("plain vLLM, another process", "plain-2"))
GROUPS = {
    "specs": Group(
        (Arm("idle plugin", "ours"), *(ours(n) for n in (1, 8, 32, 64, 128, 256)), ours(256, 8)),
        requests=256,
        tokens=16,
    ),
    "prefill": Group(
        (Arm("idle plugin", "ours"), ours(8), ours(8, 8)), requests=8, tokens=4, sentences=45
    ),
}
WHOLE_SAE = "eager, hook encodes and decodes the whole SAE"
PEERS = {
    "full-sae": (Arm("eager, hook off", "full-sae"), Arm(WHOLE_SAE, "full-sae", 1)),
    "vllm-lens": (
        Arm("vllm-lens, no vector", "vllm-lens"),
        Arm("vllm-lens, 32 vectors", "vllm-lens", 32),
    ),
    "hotwire": (Arm("hotwire-vllm, 1 vector", "hotwire", 1),),
    "hf": (Arm("lm-eval's hf", "hf"), Arm("backend=hf, 1 intervention", "hf", 1)),
}
