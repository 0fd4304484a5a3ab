"""lm-eval models over an engine with its own queue: what `vllm` and `server` have in common."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from harness_ext.engine import EngineReply, EngineRequest
from harness_ext.engine_decoding import EngineDecoding, engine_decoding
from harness_ext.engine_lm import Armed, EngineLM
from harness_ext.engine_loop import drive
from harness_ext.errors import ServerError, for_command_line
from harness_ext.generate_hf import RULES
from harness_ext.hf_config import eos_ids
from harness_ext.journal import Entry, response_key
from harness_ext.journal_work import Work
from harness_ext.requests import Job, make_jobs, refuse_cached_repeats
from harness_ext.responses import build_response
from harness_ext.stopping import TextStopper
from interventions.errors import SpecError


class SteeredEngine(EngineLM):
    """A language model that an engine runs, every request with its own intervention."""

    # -- generation ---------------------------------------------------------------------------

    def generate_until(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Return the responses, whole, as `Generation`s, in the order of the requests.

        Raises:
            SpecError: a prompt leaves no room to generate, or an argument engines do not take.
            ReceiptError: a request was not edited as its tokens demand.
        """
        jobs = make_jobs(requests, self._encode_prompt, self.max_length, self._label)
        if self._cache_hook_db is not None:
            refuse_cached_repeats(jobs)
        results: list[str] = [""] * len(requests)
        decodings: dict[str, EngineDecoding] = {}

        def decoding(job: Job) -> EngineDecoding:
            key = json.dumps(job.gen_kwargs, sort_keys=True, default=str)
            if key not in decodings:
                decodings[key] = self._decoding(job.gen_kwargs)
            return decodings[key]

        for job in jobs:
            decoding(job)  # says what engines do not take before anything is asked
        name = (
            self._plan.spec.name if self._each is None else f"{len(set(map(id, self._each)))} specs"
        )
        bar = tqdm(total=len(jobs), disable=disable_tqdm, desc=f"Generating [{name}]")

        def deliver(job: Job, entries: Sequence[Entry]) -> None:
            response = entries[0].response
            assert isinstance(response, str)
            results[job.index] = response
            self.cache_hook.add_partial("generate_until", (job.prompt, job.gen_kwargs), response)
            bar.update()

        def resume(job: Job, entries: list[Entry]) -> None:
            self._armed_for(job.index).receipt.resume(entries[0].counts)
            deliver(job, entries)

        def settle(done: Sequence[tuple[Job, Any]]) -> list[Entry]:
            receipts = self._receipts((self._armed_for(j.index), f.tag) for j, f in done)
            return [self._settle(j, decoding(j), f, receipts) for j, f in done]

        with self._journal.work(jobs, lambda job: self._keys(job, decoding(job)), resume) as work:
            self._drive(work, lambda job: self._submit(job, decoding(job)), settle, deliver)
        bar.close()
        self._journal.settle()
        self._check_effects()
        return results

    def _drive(self, work: Work[Any], submit: Any, settle: Any, deliver: Any) -> None:
        window = self._engine.window if self.batch_size == "auto" else int(self.batch_size)
        try:
            drive(work, window, submit, settle, deliver)
        except ServerError as error:
            raise for_command_line(error) from None

    def _encode_prompt(self, prompt: str) -> list[int]:
        # As backend=hf: what the tokenizer adds by itself, unless the prompt begins with BOS.
        return self.tok_batch_encode([prompt])[0][0].tolist()

    def _decoding(self, gen_kwargs: Mapping[str, Any]) -> EngineDecoding:
        return engine_decoding(
            gen_kwargs,
            self._generation_config,
            max_gen_toks=self.max_gen_toks,
            seed=self._seed,
            eos_ids=eos_ids(self._generation_config, self.tokenizer),
        )

    def _keys(self, job: Job, decoding: EngineDecoding) -> list[str]:
        options = {key: value for key, value in decoding.options_of(job).items() if key != "seed"}
        key = response_key(
            backend=self.backend_name,
            model=self._journal.identity,
            intervention=self._armed_for(job.index).fingerprint,
            prompt=job.ids,
            decoding={
                "rules": RULES,
                "until": list(decoding.common.until),
                "options": options,
                "delimiters": [self._delimiters.start, self._delimiters.end],
                "opened": self._delimiters.left_open(job.prompt),
            },
            seed=decoding.seed(job),
        )
        return [key]

    def _submit(self, job: Job, decoding: EngineDecoding) -> Any:
        opened = self._delimiters.left_open(job.prompt)
        until = list(decoding.common.until)
        tag, steering = self._steering(self._armed_for(job.index))
        options = decoding.options_of(job)
        stopper = None
        if until and self._may_reason(opened):
            # The engine's own stop strings would cut the reasoning.
            stopper = TextStopper(self.tokenizer, until, self._delimiters, opened)
        elif until:
            options |= {"stop": until, "include_stop_str_in_output": True}
        watch = None if stopper is None else stopper.feed
        future = self._engine.submit(EngineRequest(job.ids, options, steering, watch))
        future.tag, future.stopper = tag, stopper  # pyright: ignore[reportAttributeAccessIssue]
        return future

    def _may_reason(self, opened: bool) -> bool:
        """Return whether a response may hold reasoning: the prompt opened it, or a token can."""
        vocabulary = self.tokenizer.get_vocab()
        return opened or any(
            text in vocabulary for text in (self._delimiters.start, self._delimiters.end) if text
        )

    def _settle(
        self, job: Job, decoding: EngineDecoding, future: Any, receipts: Sequence[Any]
    ) -> Entry:
        """Return what is kept of a response that has ended, once its account is checked."""
        reply: EngineReply = future.result()
        ids, armed = list(reply.ids), self._armed_for(job.index)
        counts = self._check(armed, receipts, future.tag, job.ids, ids, reply.cached)
        if future.stopper is not None and reply.by_text:
            ids = ids[: future.stopper.end]
        response = build_response(
            self.tokenizer,
            ids,
            until=decoding.common.until,
            delimiters=self._delimiters,
            opened=self._delimiters.left_open(job.prompt),
            finish_reason=reply.finish_reason,
            seed=decoding.seed(job),
            intervention=armed.fingerprint,
        )
        return Entry(response, tuple(counts))

    # -- scoring ------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: list[Any],
        disable_tqdm: bool = False,
        owner: Callable[[int], int] = lambda index: index,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Return the scores of `(key, context ids, continuation ids)`, of the steered model.

        Positions: the context is the prompt, the continuation is what is generated.

        Args:
            requests: as above.
            disable_tqdm: show no progress.
            owner: from the index of a request to that of the `Instance` it belongs to.

        Raises:
            SpecError: a row does not fit the model; it is never truncated.
            ReceiptError: a request was not edited as its tokens demand.
        """
        most = self.max_length - 1  # an engine always generates one token
        for _key, context, continuation in requests:
            if len(context) + len(continuation) > most:
                raise SpecError(
                    f"context and continuation of {len(context) + len(continuation)} tokens do not"
                    f" fit max_length {self.max_length} of {self._label}, which has to hold one"
                    f" more; they are never truncated, raise max_length"
                )
        found: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests")

        def deliver(index: int, entries: Sequence[Entry]) -> None:
            score = entries[0].response
            assert not isinstance(score, str)
            found[index] = score
            key = requests[index][0]
            if key is not None:  # a window of a rolling score
                self.cache_hook.add_partial("loglikelihood", key, score)
            bar.update()

        def resume(index: int, entries: list[Entry]) -> None:
            self._armed_for(owner(index)).receipt.resume(entries[0].counts)
            deliver(index, entries)

        def keys(index: int) -> list[str]:
            _, context, continuation = requests[index]
            key = response_key(
                backend=self.backend_name,
                model=self._journal.identity,
                intervention=self._armed_for(owner(index)).fingerprint,
                prompt=context,
                decoding={"rules": RULES},
                continuation=continuation,
            )
            return [key]

        def submit(index: int) -> Any:
            _, context, continuation = requests[index]
            tag, steering = self._steering(self._armed_for(owner(index)), len(context))
            options = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 1}
            whole = [*context, *continuation]
            future = self._engine.submit(EngineRequest(whole, options, steering))
            future.tag = tag  # pyright: ignore[reportAttributeAccessIssue]
            return future

        def settle(done: Sequence[tuple[int, Any]]) -> list[Entry]:
            receipts = self._receipts((self._armed_for(owner(i)), f.tag) for i, f in done)
            return [
                self._score(self._armed_for(owner(i)), requests[i], f.result(), receipts, f.tag)
                for i, f in done
            ]

        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1] + requests[i][2]))
        with self._journal.work(order, keys, resume) as work:
            self._drive(work, submit, settle, deliver)
        bar.close()
        self._journal.settle()
        self._check_effects()
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log probability of each text; see lm-eval's `LM.loglikelihood_rolling`."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 2,  # one token of context, one that is generated
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm, owners.__getitem__)
        for number, (score, _) in zip(owners, scores, strict=True):
            totals[number] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _score(
        self, armed: Armed, request: Any, reply: EngineReply, receipts: Any, tag: str
    ) -> Entry:
        _, context, continuation = request
        counts = self._check(
            armed, receipts, tag, context, [*continuation, *reply.ids], reply.cached
        )
        assert reply.prompt_logprobs is not None
        total, greedy = 0.0, True
        for token, logprobs in zip(
            continuation, reply.prompt_logprobs[len(context) :], strict=True
        ):
            assert logprobs is not None
            total += logprobs[token]
            greedy = greedy and logprobs[token] >= max(logprobs.values())
        return Entry((total, greedy), tuple(counts))
