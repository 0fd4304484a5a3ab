"""A request's account held against its tokens, by a frontend that knows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from interventions.backends.vllm.compiled import place
from interventions.editor import EditCounts
from interventions.errors import ReceiptError
from interventions.hook_points import HookPoint
from interventions.plan import Plan
from interventions.positions import Selector
from interventions.receipt import TokenFacts, expected_tokens


def check_request(
    plan: Plan,
    points: Sequence[HookPoint],
    receipts: Sequence[Mapping[str, Any]],
    tag: str,
    *,
    prompt: Sequence[int],
    generated: Sequence[int],
    cached: int,
    tokens: TokenFacts,
) -> tuple[list[EditCounts], list[int]]:
    """Return what was counted for one request, by edit, and what its tokens demand.

    A token whose KV was cached is not run again, and one that was preempted runs twice; so the
    demand is that of the rows that ran, and those have to cover the request.

    Args:
        plan: that was asked for.
        points: hook points that the engine declared.
        receipts: of all ranks of all engines, see `WorkerSteering.take_receipt`.
        tag: the request's.
        prompt: token ids up to where the prompt ends.
        generated: token ids after it, the last one included.
        cached: tokens at the front whose KV came from the cache.
        tokens: special token ids.

    Raises:
        ReceiptError: the request was not edited as it had to be, or not by the intervention that
            was asked for.
    """
    failures = [failure for receipt in receipts for failure in receipt["failures"]]
    if failures:
        raise ReceiptError(f"the engine did not edit what it ran: {failures[0]}")
    ranks = [facts for receipt in receipts for facts in receipt["requests"].get(tag, ())]
    if not ranks:
        raise ReceiptError(
            f"the engine knows nothing of request {tag}: it ran unsteered; is the plugin"
            f" sae_steered active in every process (VLLM_PLUGINS)?"
        )
    spans = ranks[0]["spans"]
    for facts in ranks:
        if facts["fingerprint"] != plan.fingerprint or facts["prompt_len"] != len(prompt):
            raise ReceiptError(
                f"request {tag} ran with intervention {facts['fingerprint']} and a prompt of"
                f" {facts['prompt_len']} tokens, asked for were {plan.fingerprint} and"
                f" {len(prompt)}"
            )
        if facts["spans"] != spans:
            raise ReceiptError(f"ranks ran different rows of request {tag}: {spans}, {facts}")
    _check_cover(tag, spans, ranks[0].get("resumed", ()), cached, len(prompt) + len(generated) - 1)
    counts, expected = [], []
    for layer in plan.layers:
        index = points.index(place(layer.hook_point))
        seen = [facts["counts"][index] for facts in ranks if index in facts["counts"]]
        if not seen or any(other != seen[0] for other in seen):
            raise ReceiptError(f"ranks edited differently at {layer.hook_point}: {seen}")
        reads = [group.needs_acts for group in layer.groups for _ in group.selectors]
        for selector, count, read in zip(layer.selectors, seen[0], reads, strict=True):
            demand = _demand(selector, spans, prompt, generated, tokens)
            if not demand[0] <= count[0] <= demand[1]:
                raise ReceiptError(
                    f"request {tag}: edit {len(counts) + 1} at {layer.hook_point} edited"
                    f" {count[0]} tokens where its prompt and output demand {demand[0]}"
                )
            counts.append(EditCounts(count[0], count[1], count[2] if read else None))
            expected.append(count[0])
    return counts, expected


def _check_cover(
    tag: str, spans: Sequence[Sequence[int]], resumed: Sequence[int], cached: int, end: int
) -> None:
    covered = cached
    for start, stop in sorted(map(tuple, spans)):
        # After a preemption a request goes on behind the blocks that are cached by then; some may
        # be those of another request with the same tokens and the same intervention.
        if start > covered and start not in resumed:
            break
        covered = max(covered, stop)
    if covered < end:
        raise ReceiptError(
            f"request {tag}: rows {spans} ran and {cached} tokens were cached, which leaves out"
            f" position {covered} of {end}"
        )


def _demand(
    selector: Selector,
    spans: Sequence[Sequence[int]],
    prompt: Sequence[int],
    generated: Sequence[int],
    tokens: TokenFacts,
) -> tuple[int, int]:
    """Return the fewest and the most rows that `selector` names in some spans."""

    def before(position: int) -> int:
        inside = prompt[:position], generated[: max(0, position - len(prompt))]
        return expected_tokens(selector, *inside, tokens) if position else 0

    known = len(prompt) + len(generated)
    low = high = 0
    for start, stop in spans:
        if selector.positions == "last_prompt":
            # The last token of a part of the prompt is not the prompt's last.
            here = int(start < len(prompt) <= stop)
            bos = selector.skip_bos and len(prompt) == 1 and prompt[0] == tokens.bos
            low, high = low + here - (here and bos), high + here - (here and bos)
            continue
        n = before(min(stop, known)) - before(min(start, known))
        # Rows after the last token that we know: the engine ran on until it was told to stop.
        unknown = max(0, stop - max(start, known))
        certain = unknown if selector.positions in ("all", "generated") else 0
        possible = 0 if selector.positions == "prompt" else unknown
        low, high = low + n + certain, high + n + possible
    return low, high
