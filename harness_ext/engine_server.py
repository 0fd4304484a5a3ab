"""A server of vLLM, here or on another machine: the engine behind `backend=server`."""

import atexit
import functools
import itertools
import json
import logging
import resource
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import aiohttp
import transformers

from harness_ext.engine import EngineReply, EngineRequest
from harness_ext.errors import ServerError
from harness_ext.generation import FinishReason
from harness_ext.hf_config import versions
from harness_ext.loop_thread import LoopThread
from harness_ext.server_http import Lost, ServerHTTP, events
from interventions.backends.hf import CALIBRATION_TEXT
from interventions.backends.vllm.config import KEY
from interventions.errors import ModelMismatchError, SpecError
from interventions.fingerprint import digest
from interventions.hook_points import HookPoint, parse_hook_point

logger = logging.getLogger(__name__)

_IN_FLIGHT = 4  # requests for each that can run: the queue never runs dry
_START_TRIES = 3
_SPARE_FILES = 200
_PROBE = "The 3 naïve cats' “price” is 12.50 €\n\tdef f(x): return x**2  # 猫 🙂"

# A server takes what a request leaves out from the model's generation config.
_NEUTRAL: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
}

_FACTS = (
    "vllm",
    "dtype",
    "variant",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "max_num_seqs",
)


class ServerEngine:
    """A server with the plugin, asked from a thread of its own; see `engine.Engine`.

    Attributes:
        info: what `/sae_steered/info` says.
        root: name or folder of the model, as the server was given it.
    """

    tokenizer: Any

    def __init__(
        self, base_url: str, *, api_key_env: str | None, timeout: float, tries: int
    ) -> None:
        """Ask the server what it is.

        Args:
            base_url: of the server, with or without `/v1`.
            api_key_env: environment variable of the key.
            timeout: seconds without a byte after which a request is sent again.
            tries: of one request.

        Raises:
            SpecError: an argument cannot be used, or the server was not started to be steered.
            ServerError: there is no server, or it refuses the key.
        """
        self._http = ServerHTTP(base_url, api_key_env=api_key_env, timeout=timeout, tries=tries)
        self._last_tag: dict[str, str] = {}
        self._loop = LoopThread("server")
        atexit.register(self.close)
        try:
            self._loop.run(self._http.open())
            self.info: Mapping[str, Any] = self._first_answer()
            models = self._loop.run(self._http.ask("/v1/models", tries=_START_TRIES))["data"]
            self._model: str = self.info["model"]
            (self.root,) = (m.get("root") or m["id"] for m in models if m["id"] == self._model)
            self.identity: str = self.info["identity"]
            variant = self.info["variant"]
            self.variant = f"-{digest(variant)}" if variant else ""
            self.max_length: int = self.info["max_model_len"]
            self.points: tuple[HookPoint, ...] = tuple(
                parse_hook_point(text) for text in self.info["hook_points"]
            )
            replicas = self.info["data_parallel_size"]
            self.window = min(_IN_FLIGHT * replicas * self.info["max_num_seqs"], _most_files())
            self.facts: Mapping[str, Any] = {
                **versions(),
                **{name: self.info[name] for name in _FACTS},
                "server_sae_steered": self.info["sae_steered"],
            }
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self.close()
            if isinstance(error, SpecError):
                raise
            raise ServerError(
                f"{self._http.url}: not what a server with the plugin sae_steered says of itself"
                f" ({type(error).__name__}: {error}); install one version everywhere"
            ) from None
        except BaseException:
            self.close()
            raise
        self.label = self.root

    def use_tokenizer(self, source: str, trust_remote_code: bool) -> None:
        """Load the tokenizer, and compare it with the server's.

        Args:
            source: name or folder.
            trust_remote_code: whether code of the repository may run.

        Raises:
            SpecError: it cannot be loaded.
            ModelMismatchError: the server's is another one.
        """
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                source, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0].rstrip(".")
            raise SpecError(
                f"no tokenizer at '{source}' on this machine: {first}; give tokenizer=NAME or"
                f" FOLDER of the model that the server runs"
            ) from None
        text = _PROBE + CALIBRATION_TEXT + "".join(self.tokenizer.all_special_tokens)
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        try:
            theirs = self._loop.run(self._http.ask("/tokenize", body))["tokens"]
        except ServerError as error:
            if error.status != 404:
                raise
            logger.warning("%s has no /tokenize: its tokenizer is not compared", self._http.url)
            return
        ours = self.tokenizer.encode(text, add_special_tokens=False)
        if ours != theirs:
            raise ModelMismatchError(
                f"the tokenizer of '{source}' is not the server's: {len(ours)} and {len(theirs)}"
                f" tokens, not the same ones, for one text; give tokenizer= of '{self.root}'"
            )

    def submit(self, request: EngineRequest) -> "Future[EngineReply]":
        """Return the future reply to a request."""
        return self._loop.submit(self._answer(request))

    def receipts(self, tags: Sequence[str]) -> list[dict[str, Any]]:
        """Return the receipt of every rank of every engine."""
        sent = {self._last_tag.pop(tag, tag): tag for tag in tags}
        # A receipt is handed out once.
        answer = self._loop.run(
            self._http.ask(f"/{KEY}/receipt", {"tags": list(sent)}, _read_receipts, once=True)
        )
        for receipt in answer:
            receipt["requests"] = {
                sent[tag]: [_facts(one) for one in found]
                for tag, found in receipt["requests"].items()
            }
        return answer

    def check(self, spec: Mapping[str, Any]) -> str:
        """Return the fingerprint that the server gives a spec."""
        try:
            return self._loop.run(self._http.ask(f"/{KEY}/check", {"spec": spec}))["fingerprint"]
        except ServerError as error:
            if error.status == 400:
                raise SpecError(f"the server refuses the intervention: {error}") from None
            raise

    def measure_median_norms(self, points: Sequence[HookPoint]) -> Mapping[HookPoint, float]:
        """Return the median residual norms at some hook points."""
        body = {"hook_points": [str(point) for point in points]}
        norms = self._loop.run(self._http.ask(f"/{KEY}/median_norm", body))["median_norm"]
        return {point: float(norms[str(point)]) for point in points}

    def close(self) -> None:
        """Close the connections; the server goes on."""
        atexit.unregister(self.close)
        if self._loop.running:
            self._loop.run(self._http.close())
            self._loop.close()

    def _first_answer(self) -> Mapping[str, Any]:
        try:
            return self._loop.run(self._http.ask(f"/{KEY}/info", tries=_START_TRIES))
        except ServerError as error:
            if error.status == 404:
                raise SpecError(
                    f"{self._http.url} is no server of vLLM with the plugin sae_steered; start it"
                    f" with VLLM_PLUGINS=sae_steered and this package installed"
                    f" (docs/vllm_server.md)"
                ) from None
            if error.status == 400:
                raise SpecError(str(error)) from None
            if error.status is None:
                raise ServerError(
                    f"{error}; is the server up (docs/vllm_server.md) and base_url right?"
                ) from None
            raise

    async def _answer(self, request: EngineRequest) -> EngineReply:
        number = itertools.count()
        options = {**_NEUTRAL, **request.options}
        whole = request.watch is None
        more = {} if whole else {"stream": True, "stream_options": {"include_usage": True}}

        def body() -> dict[str, Any]:
            # A request that was cut off has left its account behind: each try has its own tag.
            entry, again = dict(request.steering or {}), next(number)
            if entry and again:
                self._last_tag[entry["tag"]] = tag = f"{entry['tag']}.{again}"
                entry["tag"] = tag
            return {
                "model": self._model,
                "prompt": list(request.prompt),
                "return_token_ids": True,
                **{key: value for key, value in options.items() if value is not None},
                **({"vllm_xargs": {KEY: json.dumps(entry)}} if entry else {}),
                **more,
            }

        read = _read_whole if whole else _read_stream
        return await self._http.ask("/v1/completions", body, functools.partial(read, request))


async def _read_whole(request: EngineRequest, response: aiohttp.ClientResponse) -> EngineReply:
    answer = json.loads(await response.read())
    (choice,) = answer["choices"]
    return _reply(request, choice, choice["token_ids"], choice["prompt_token_ids"], answer)


async def _read_stream(request: EngineRequest, response: aiohttp.ClientResponse) -> EngineReply:
    watch: Callable[[Sequence[int]], bool] = request.watch or (lambda _: False)
    watch(())
    ids: list[int] = []
    prompt, last, usage = None, None, {}
    async for event in events(response):
        usage = event if event.get("usage") else usage
        for choice in event["choices"]:
            ids += choice["token_ids"] or ()
            prompt = choice.get("prompt_token_ids") or prompt
            stopped = watch(ids)
            if choice.get("finish_reason") is not None:
                last = {**choice, "stop_reason": "", "finish_reason": "stop"} if stopped else choice
            elif stopped:
                response.close()  # aborts the request
                return EngineReply(ids, "stop", True, None)
    if last is None:
        raise Lost("the stream ended early")
    return _reply(request, last, ids, prompt, usage)


def _reply(
    request: EngineRequest, choice: Mapping[str, Any], ids: Any, prompt: Any, answer: Any
) -> EngineReply:
    """Return the reply that a whole answer holds.

    Raises:
        ServerError: the server did not do what was asked for.
    """
    if list(prompt) != list(request.prompt):
        raise ServerError("the server ran another prompt than it was sent; is a proxy in between?")
    finish, most = choice["finish_reason"], request.options["max_tokens"]
    if finish not in ("stop", "length"):
        raise Lost(f"the server ended a response by '{finish}'")
    if finish == "length" and len(ids) < most:
        raise ServerError(
            f"the server cut a response at {len(ids)} tokens where {most} were asked for; start it"
            f" without a max_new_tokens of its own (--override-generation-config)"
        )
    reason: FinishReason = finish
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    scores = choice.get("prompt_logprobs") or ()
    if request.options.get("prompt_logprobs") is not None:
        # vLLM does not read its cache where it has to score the prompt.
        cached, logprobs = 0, [_by_token(one) for one in scores]
    else:
        cached, logprobs = details.get("cached_tokens"), None
    by_text = isinstance(choice.get("stop_reason"), str)
    return EngineReply(list(ids), reason, by_text, cached, logprobs)


def _by_token(entry: Mapping[str, Any] | None) -> dict[int, float] | None:
    if entry is None:
        return None
    return {int(token): float(found["logprob"]) for token, found in entry.items()}


async def _read_receipts(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    engines = json.loads(await response.read())["engines"]
    return [receipt for ranks in engines for receipt in ranks]


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a request as a worker gave them: JSON has no numbers as keys."""
    return {**facts, "counts": {int(index): rows for index, rows in facts["counts"].items()}}


def _most_files() -> int:
    """Return how many connections this process may have open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 16 if limit == resource.RLIM_INFINITY else max(16, limit - _SPARE_FILES)
