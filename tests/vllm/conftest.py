"""Engines, one at a time; a reference; prompts and specifications.

An engine takes long to start, so tests that use the same one run after one another: the files are
put in the order below.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from interventions.default_model import default_sae_path, resolve_pretrained
from tests import tiny_models
from tests.vllm import cases
from tests.vllm.engine import IN_PROCESS, PLAIN, Engine
from tests.vllm.reference import Reference, read_sae

FOLDER = Path(__file__).parent
ORDER = [
    "test_unsteered",
    "test_parity",
    "test_cache_isolation",
    "test_churn",
    "test_requests",
    "test_idle",
    "test_without_keys",
    "test_chunks",
    "test_preemption",
    "test_sampling",
    "test_fidelity",
    "test_compile_cache",
    "test_families",
    "test_lora",
    "test_refusals",
    "test_ranks",
]

LAYERS = {"early": 8, "real": 15, "gated": 20, "layer_norm": 20, "rescaled": 8}
SYNTHETIC: dict[str, dict[str, Any]] = {
    "early": {"architecture": "standard"},
    "gated": {"architecture": "gated"},
    "layer_norm": {"architecture": "jumprelu", "normalize": "layer_norm"},
    "rescaled": {"architecture": "jumprelu", "normalize": "constant_norm_rescale"},
}


def point(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.parent == FOLDER]
    known = {name: place for place, name in enumerate(ORDER)}
    places = iter(sorted(ours, key=lambda item: known.get(item.path.stem, -1)))
    items[:] = [next(places) if item.path.parent == FOLDER else item for item in items]
    for item in ours:
        item.add_marker(pytest.mark.vllm)
        item.add_marker(pytest.mark.slow)
        if importlib.util.find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed (docs/vllm.md)"))


class Engines:
    """Hands out engines, of which one runs at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._n = folder, 0
        self._key = ""
        self.cache = folder / "cache"
        self.now: Engine | None = None

    def host(self, name: str, **environment: str) -> Engine:
        """Return a process without an engine, or with the one that it had under that name."""
        key = json.dumps([name, environment], sort_keys=True)
        if self.now is None or not self.now.alive or key != self._key:
            self.close()
            self._n += 1
            self.now = Engine(self._folder / f"{self._n}", self.cache, environment)
            self._key = key
        return self.now

    def start(self, name: str, arguments: dict[str, Any], **environment: str) -> Engine:
        """Return the engine called `name`; a new one, unless it is the one that runs."""
        before = self.now
        engine = self.host(f"{name} {json.dumps(arguments, sort_keys=True)}", **environment)
        if engine is not before:
            engine.call("start", **arguments)
        return engine

    def close(self) -> None:
        if self.now is not None:
            self.now.close()
            self.now = None


@pytest.fixture(scope="session")
def engines(tmp_path_factory) -> Iterator[Engines]:
    made = Engines(tmp_path_factory.mktemp("e"))
    yield made
    made.close()


@pytest.fixture
def say(request) -> Callable[[str], None]:
    """Return a function that prints a line whatever is captured: what a test measured."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    terminal = request.config.pluginmanager.getplugin("terminalreporter")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(f"\n{request.node.name}: {text}")

    return line


@dataclass(frozen=True)
class World:
    """The default model and what is asked of it.

    Attributes:
        path: of the checkpoint.
        tokenizer: its own.
        reference: the model in transformers, with every SAE.
        sae: what `sae` says for each name of `LAYERS`.
        features: of each SAE.
        specs: by name.
        prompts: token ids of chats with one question each.
    """

    path: str
    tokenizer: Any
    reference: Reference
    sae: dict[str, str]
    features: dict[str, cases.Features]
    specs: dict[str, dict[str, Any]]
    prompts: list[list[int]]

    def chat(self, question: str) -> list[int]:
        return cases.chat_ids(self.tokenizer, question)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    path = resolve_pretrained("default").path
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    folder = tmp_path_factory.mktemp("saes")
    sae = {"real": "default"}
    files = {"default": read_sae(default_sae_path())}
    for seed, (name, options) in enumerate(SYNTHETIC.items()):
        made = tiny_models.save_sae(
            folder / name, layer=LAYERS[name], d_model=576, seed=seed, **options
        )
        sae[name] = str(made.path)
        files[str(made.path)] = read_sae(made.path)
    delimiters = []
    for text in cases.THINK.values():
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        delimiters.append(token)
    reference = Reference(path, files, (delimiters[0], delimiters[1]))
    prompts = [cases.chat_ids(tokenizer, question) for question in cases.QUESTIONS]
    streams = {
        layer: torch.cat([reference.stream(ids, layer)[1:] for ids in prompts[:6]])
        for layer in set(LAYERS.values())
    }
    medians = {
        point(layer): float(streams[layer].norm(dim=1).median())
        for name, layer in LAYERS.items()
        if name != "real"
    }
    features = {}
    for name, layer in LAYERS.items():
        acts, _ = files[sae[name]].encode(streams[layer])
        rate = (acts > 0).float().mean(0)
        often = rate.argsort(descending=True).tolist()
        few = (rate - 0.15).abs().argsort().tolist()
        many = [f for f in often if rate[f] < 0.98][:6]
        some = [f for f in few if f not in many and f != 3036][:4]
        features[name] = cases.Features(many, some)
    specs = cases.specs(sae, features, medians)
    return World(path, tokenizer, reference, sae, features, specs, prompts)


def arguments(world: World, **changes: Any) -> dict[str, Any]:
    """Return what starts an engine of the default model."""
    return {
        "model": world.path,
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
        "block_size": 32,
        "gpu_memory_utilization": 0.25,
        "disable_log_stats": False,
        **changes,
    }


def steered(*layers: int, **more: Any) -> dict[str, Any]:
    """Return the config of an engine that is steered behind some layers."""
    return {"sae_steered": {"hook_points": [point(layer) for layer in layers], **more}}


ALL_LAYERS = sorted(set(LAYERS.values()))


@pytest.fixture(scope="session")
def plain_answers(engines, world) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Prompts and what vLLM says to them, compiled, without any plugin."""
    engine = engines.start("plain", arguments(world), **PLAIN)
    params = {"max_tokens": 24, "logprobs": 10}
    requests = [{"prompt": prompt, "params": params} for prompt in world.prompts]
    return world.prompts, engine.generate(requests)


@pytest.fixture
def compiled(engines, world) -> Engine:
    """The engine of most tests: compiled, fewer slots than specifications, a worker process."""
    more = arguments(world, additional_config=steered(*ALL_LAYERS))
    return engines.start("compiled", more)


@pytest.fixture
def inner(engines, world) -> Engine:
    """An engine without graphs whose scheduler and worker live in the host's own process."""
    more = arguments(
        world,
        additional_config=steered(*ALL_LAYERS),
        enforce_eager=True,
        num_gpu_blocks_override=24,
        max_num_batched_tokens=768,
        distributed_executor_backend="uni",
    )
    return engines.start("inner", more, **IN_PROCESS)


@pytest.fixture
def tiny_host(engines) -> Engine:
    """A process that starts engines of tiny models, one after another."""
    return engines.host("tiny", **IN_PROCESS)


@pytest.fixture(scope="session")
def ask() -> Callable[..., dict[str, Any]]:
    """Return a function that makes a request with a tag that no other one has."""
    made = iter(range(1 << 30))

    def request(prompt: list[int], spec: Any = None, **params: Any) -> dict[str, Any]:
        prompt_len = params.pop("prompt_len", None)
        found: dict[str, Any] = {"prompt": prompt, "params": {"max_tokens": 16, **params}}
        if spec is not None:
            found |= {"spec": spec, "tag": f"t{next(made)}"}
        if prompt_len is not None:
            found["prompt_len"] = prompt_len
        return found

    return request
