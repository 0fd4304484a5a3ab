"""Masks, chunk by chunk, against the pure-python count of the receipt and a naive oracle."""

import itertools
import random

import pytest
import torch

from interventions.positions import Rows, Selector, select, thinking_step
from interventions.receipt import TokenFacts, expected_tokens

BOS, START, END, PAD = 0, 5, 6, 3
TOKENS = TokenFacts(bos=BOS, think_start=START, think_end=END)
POSITIONS = ("all", "prompt", "generated", "thinking", "last_prompt")


def chunks_of(width: int, rng: random.Random) -> list[tuple[int, int]]:
    cuts = sorted({0, width, *(rng.randrange(width + 1) for _ in range(rng.randrange(6)))})
    return list(itertools.pairwise(cuts))


def masks_of(ids, rows, selector, cuts):
    inside = torch.zeros(len(ids), dtype=torch.bool)
    parts = []
    for first, last in cuts:
        chunk = ids[:, first:last]
        real = torch.arange(first, last) >= rows.start.unsqueeze(1)
        thinking, inside = thinking_step(torch.where(real, chunk, -1), inside, START, END)
        parts.append(
            select(
                selector,
                first_column=first,
                ids=chunk,
                rows=rows,
                bos_token_id=BOS,
                thinking=thinking,
            )
        )
    return torch.cat(parts, dim=1)


def naive(selector: Selector, row: list[int], n_prompt: int) -> list[bool]:
    """The definition, token by token: what a reader of the spec would write."""
    kept, depth = [], False
    for index, token in enumerate(row):
        if token == START:
            depth = True
        if token == END:
            depth = False
        named = {
            "all": True,
            "prompt": index < n_prompt,
            "generated": index >= n_prompt,
            "last_prompt": index == n_prompt - 1,
            "thinking": depth and token != START,
        }[selector.positions]
        kept.append(named and not (selector.skip_bos and index == 0 and token == BOS))
    return kept


@pytest.mark.parametrize("skip_bos", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
def test_any_chunking_of_left_padded_rows_selects_what_the_definition_says(positions, skip_bos):
    rng = random.Random(f"{positions}{skip_bos}")
    selector = Selector(positions, skip_bos)
    total = 0
    for _ in range(60):
        batch = rng.randrange(1, 5)
        prompts = [
            [rng.choice([BOS, 1, 2, START, END, 7]) for _ in range(rng.randrange(1, 9))]
            for _ in range(batch)
        ]
        fed = [
            [rng.choice([1, START, END, 8, BOS]) for _ in range(rng.randrange(0, 7))]
            for _ in range(batch)
        ]
        left = max(map(len, prompts))
        width = left + max(map(len, fed)) + rng.randrange(3)
        # Padding shares ids with BOS and with the delimiters in turn: it must never count.
        pad = rng.choice([BOS, START, END, PAD])
        ids = torch.tensor(
            [
                [pad] * (left - len(p)) + p + f + [pad] * (width - left - len(f))
                for p, f in zip(prompts, fed, strict=True)
            ]
        )
        rows = Rows(
            torch.tensor([left - len(p) for p in prompts]),
            torch.full((batch,), left),
            torch.tensor([left + len(f) for f in fed]),
        )
        mask = masks_of(ids, rows, selector, chunks_of(width, rng))
        whole = masks_of(ids, rows, selector, [(0, width)])
        assert torch.equal(mask, whole)
        for i, (prompt, after) in enumerate(zip(prompts, fed, strict=True)):
            want = naive(selector, prompt + after, len(prompt))
            start = left - len(prompt)
            got = mask[i].tolist()
            assert got[start : start + len(want)] == want
            assert not any(got[:start])
            assert not any(got[start + len(want) :])
            assert sum(want) == expected_tokens(selector, prompt, after, TOKENS)
            total += sum(want)
    assert total > 50, "the cases never named a token"


@pytest.mark.parametrize(
    ("tokens", "thinking"),
    [
        ([1, START, 7, 8, END, 9], [0, 0, 1, 1, 0, 0]),
        ([START, 7], [0, 1]),
        ([END, 7], [0, 0]),
        ([START, START, 7, END, END, 7], [0, 0, 1, 0, 0, 0]),
        ([START, END, START, 7], [0, 0, 0, 1]),
        ([7, 8], [0, 0]),
    ],
)
def test_thinking_is_strictly_between_the_delimiters(tokens, thinking):
    mask, inside = thinking_step(
        torch.tensor([tokens]), torch.zeros(1, dtype=torch.bool), START, END
    )
    assert mask[0].int().tolist() == thinking
    last = max(
        (i for i, t in enumerate(tokens) if t in (START, END)), key=lambda i: i, default=None
    )
    assert inside.item() == (last is not None and tokens[last] == START)


def test_thinking_goes_on_from_the_chunk_before():
    mask, inside = thinking_step(
        torch.tensor([[7, 8], [7, END]]), torch.tensor([True, True]), START, END
    )
    assert mask.tolist() == [[True, True], [True, False]]
    assert inside.tolist() == [True, False]


def test_bos_is_skipped_only_where_the_row_starts():
    ids = torch.tensor([[PAD, BOS, 1, BOS]])
    rows = Rows(torch.tensor([1]), torch.tensor([4]), torch.tensor([4]))
    kwargs = {"first_column": 0, "ids": ids, "rows": rows, "thinking": None}
    skipping = select(Selector("all", True), bos_token_id=BOS, **kwargs)
    assert skipping.tolist() == [[False, False, True, True]]
    no_bos = select(Selector("all", True), bos_token_id=None, **kwargs)
    assert no_bos.tolist() == [[False, True, True, True]]


def test_thinking_without_its_mask_is_refused():
    rows = Rows(torch.tensor([0]), torch.tensor([1]), torch.tensor([1]))
    with pytest.raises(ValueError, match="thinking_step"):
        select(
            Selector("thinking", False),
            first_column=0,
            ids=torch.tensor([[1]]),
            rows=rows,
            bos_token_id=None,
            thinking=None,
        )
