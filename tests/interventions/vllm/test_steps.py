"""What each row of a step is, held against a definition that looks at one token at a time."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from interventions.backends.vllm.compiled import (
    FLAG_ALL,
    FLAG_BOS,
    FLAG_GENERATED,
    FLAG_LAST_PROMPT,
    FLAG_PROMPT,
    FLAG_THINKING,
    FLAGS,
)
from interventions.backends.vllm.op import SLOT_BITS, SLOT_MASK
from interventions.backends.vllm.steps import Thinking, pack_rows
from interventions.errors import ReceiptError
from interventions.positions import Selector, thinking_step
from interventions.receipt import TokenFacts, expected_tokens
from tests.vllm_plans import cuts, mask_of

BOS = 0


@dataclass
class Request:
    """A request as a scheduler sees it: `position` is how far it has been computed."""

    tokens: list[int]
    prompt_len: int
    slot: int
    think: tuple[int, int] = (5, 6)
    position: int = 0
    seen: dict[int, int] = field(default_factory=dict)
    ran: list[int] = field(default_factory=list)

    @property
    def facts(self) -> TokenFacts:
        return TokenFacts(BOS, *self.think)

    def expected(self, selector: Selector) -> int:
        split = self.prompt_len
        return expected_tokens(selector, self.tokens[:split], self.tokens[split:], self.facts)


def random_request(rng: random.Random, slot: int) -> Request:
    tokens = [rng.randrange(9) for _ in range(rng.randint(1, 40))]
    if rng.random() < 0.7:
        tokens[0] = BOS
    think = rng.choice([(5, 6), (7, 8)])
    return Request(tokens, rng.randint(1, len(tokens)), slot, think)


def packed_step(batch: list[tuple[Request, int]]) -> np.ndarray:
    """Return what `pack_rows` says of a step of requests and their lengths."""
    return pack_rows(
        np.array([request.slot for request, _ in batch]),
        np.array([request.position for request, _ in batch]),
        np.array([length for _, length in batch]),
        np.array([request.prompt_len for request, _ in batch]),
        np.array([request.tokens[0] == BOS for request, _ in batch]),
    )


def flags_of(request: Request, position: int) -> int:
    """The definition, token by token."""
    flags = FLAG_ALL
    flags |= FLAG_PROMPT if position < request.prompt_len else FLAG_GENERATED
    if position == request.prompt_len - 1:
        flags |= FLAG_LAST_PROMPT
    if position == 0 and request.tokens[0] == BOS:
        flags |= FLAG_BOS
    return flags


@pytest.mark.parametrize("seed", range(40))
def test_rows_of_random_chunks(seed):
    """Requests leave their place in the batch, wait, and start again after a preemption."""
    rng = random.Random(seed)
    requests = [random_request(rng, rng.randrange(4)) for _ in range(6)]
    preempted = 0
    while any(r.position < len(r.tokens) for r in requests):
        for request in requests:
            if request.position and rng.random() < 0.05:
                request.position = rng.choice([0, rng.randrange(request.position)])
                preempted += 1
        waiting = [r for r in requests if r.position < len(r.tokens)]
        chosen = rng.sample(waiting, rng.randint(1, len(waiting))) if waiting else []
        batch = [(r, rng.randint(1, min(7, len(r.tokens) - r.position))) for r in chosen]
        packed = packed_step(batch).tolist()
        assert len(packed) == sum(length for _, length in batch)
        for request, length in batch:
            for position in range(request.position, request.position + length):
                word = packed.pop(0)
                if request.slot == 0:
                    assert word == 0
                    continue
                assert word & SLOT_MASK == request.slot
                assert word >> SLOT_BITS == flags_of(request, position)
                request.seen[position] = word >> SLOT_BITS
            request.position += length
    for request in requests:
        if request.slot == 0:
            continue
        assert sorted(request.seen) == list(range(len(request.tokens)))
        flags = torch.tensor([request.seen[p] for p in range(len(request.tokens))])
        for positions in set(FLAGS) - {"thinking"}:
            for skip_bos in (False, True):
                selector = Selector(positions, skip_bos)
                assert int(mask_of(selector, flags).sum()) == request.expected(selector)


def test_an_earlier_end_of_the_prompt_makes_the_rest_generated():
    """`prompt_len` of a request that is scored: its continuation lies inside vLLM's prompt."""
    tokens = [BOS, 3, 4, 3, 4]
    whole, scored = Request(tokens, 5, 1), Request(tokens, 2, 1)
    prompt = [word >> SLOT_BITS & FLAG_PROMPT for word in packed_step([(whole, 5)])]
    assert prompt == [FLAG_PROMPT] * 5
    generated = [word >> SLOT_BITS & FLAG_GENERATED for word in packed_step([(scored, 5)])]
    assert generated == [0, 0, FLAG_GENERATED, FLAG_GENERATED, FLAG_GENERATED]


def test_the_largest_slot_and_all_flags_fit():
    slot = SLOT_MASK
    (word,) = pack_rows(*(np.array([v]) for v in (slot, 0, 1, 1, True))).tolist()
    assert word > 0
    assert word & SLOT_MASK == slot
    assert word >> SLOT_BITS == FLAG_ALL | FLAG_PROMPT | FLAG_LAST_PROMPT | FLAG_BOS
    assert word | FLAG_THINKING << SLOT_BITS < 2**31


def test_rows_of_nobody_are_zero():
    request = Request([BOS, 1, 2], 2, 0)
    assert packed_step([(request, 3)]).tolist() == [0, 0, 0]


def mark(thinking: Thinking, batch: list[tuple[str, Request, int]], known=None) -> list[bool]:
    """Return which rows of a step the state machine marks; unsteered rows lie between them."""
    rows, places, firsts, lasts, thinks, ids = [], [], [], [], [], []
    for name, request, length in batch:
        ids.append(3)  # a row of somebody else
        start = request.position
        before = (lambda r=request: r.tokens) if known is None else known
        place = thinking.place(name, start, length, before, request.think)
        first = len(rows)
        for position in range(start, start + length):
            rows.append(len(ids))
            ids.append(request.tokens[position])
            places.append(place)
            firsts.append(first)
            thinks.append(request.think)
        lasts.append(len(rows) - 1)
    packed = torch.full((len(ids) + 2,), FLAG_ALL << SLOT_BITS | 1, dtype=torch.int32)
    thinking.mark(
        packed,
        torch.tensor(ids, dtype=torch.int32),
        *(torch.tensor(values) for values in (rows, places, firsts, lasts)),
        torch.tensor(thinks).T,
    )
    marked = (packed >> SLOT_BITS & FLAG_THINKING) != 0
    others = torch.ones(len(packed), dtype=torch.bool)
    others[rows] = False
    assert not marked[others].any()
    assert (packed & SLOT_MASK == 1).all()
    return marked[rows].tolist()


@pytest.mark.parametrize("seed", range(40))
def test_thinking_over_random_chunks_batches_and_resumptions(seed):
    rng = random.Random(seed)
    thinking = Thinking(2, torch.device("cpu"))  # grows: there are more requests
    requests = {f"r{i}": random_request(rng, 1) for i in range(6)}
    while any(r.position < len(r.tokens) for r in requests.values()):
        names = [n for n, r in requests.items() if r.position < len(r.tokens)]
        batch = []
        for name in rng.sample(names, rng.randint(1, len(names))):
            request = requests[name]
            if rng.random() < 0.15:  # preempted; what was cached may be kept
                request.position = rng.choice([0, rng.randrange(request.position + 1)])
            length = rng.randint(1, min(9, len(request.tokens) - request.position))
            batch.append((name, request, length))
        marked = mark(thinking, batch)
        for _, request, length in batch:
            for position in range(request.position, request.position + length):
                request.seen[position] = marked.pop(0)
            request.position += length
        for name, request in requests.items():
            if request.position == len(request.tokens) and rng.random() < 0.5:
                thinking.forget(name)
    for request in requests.values():
        whole, _ = thinking_step(
            torch.tensor([request.tokens]), torch.tensor([False]), *request.think
        )
        assert [request.seen[p] for p in range(len(request.tokens))] == whole[0].tolist()
        assert sum(request.seen.values()) == request.expected(Selector("thinking", False))


def test_the_host_needs_no_token_while_rows_continue():
    """With asynchronous scheduling the host does not know what was sampled."""

    def nothing():
        assert request.position == 0, "asked for tokens that only the device knows"
        return ()

    request = Request([1, 5, 2, 2, 6, 2, 5, 2], 2, 1)
    thinking, seen = Thinking(1, torch.device("cpu")), []
    for _ in request.tokens:
        seen += mark(thinking, [("r", request, 1)], known=nothing)
        request.position += 1
    assert seen == [False, False, True, True, False, False, False, True]


@pytest.mark.parametrize("known", [[5, 2], [5, 2, -1]], ids=["too few", "a placeholder"])
def test_tokens_that_nobody_knows_are_not_taken_for_an_answer(known):
    """The span may have been closed by the one that is missing."""
    request = Request([5, 2, 6, 2], 2, 1)
    request.position = 3
    with pytest.raises(ReceiptError, match="before position 3 are not known"):
        mark(Thinking(1, torch.device("cpu")), [("r", request, 1)], known=lambda: known)


def test_a_name_that_is_used_again_starts_outside():
    thinking = Thinking(1, torch.device("cpu"))
    first = Request([5, 1, 1], 1, 1)
    assert mark(thinking, [("r", first, 3)]) == [False, True, True]
    thinking.forget("r")
    thinking.forget("never seen")
    assert mark(thinking, [("r", Request([1, 1], 1, 1), 2)]) == [False, False]


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_one_request(seed):
    """Every way of cutting gives the same marks as one pass."""
    rng = random.Random(seed)
    tokens = [rng.choice([1, 2, 5, 6]) for _ in range(30)]
    whole = mark(Thinking(1, torch.device("cpu")), [("r", Request(tokens, 3, 1), 30)])
    assert 0 < sum(whole) < 30
    for _ in range(10):
        thinking, request, seen = Thinking(1, torch.device("cpu")), Request(tokens, 3, 1), []
        for start, end in cuts(30, rng):
            request.position = start
            seen += mark(thinking, [("r", request, end - start)])
        assert seen == whole
