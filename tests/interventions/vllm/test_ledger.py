import random

import pytest

from interventions.backends.vllm.ledger import check_request
from interventions.errors import ReceiptError
from interventions.hook_points import HookPoint
from interventions.plan import ModelFacts, make_plan
from interventions.positions import Selector
from interventions.receipt import TokenFacts
from interventions.spec import parse_spec

THINK, DONE, BOS = 7, 8, 1
TOKENS = TokenFacts(bos=BOS, think_start=THINK, think_end=DONE)
POINTS = (HookPoint(2), HookPoint(5))
KINDS = ("all", "prompt", "generated", "last_prompt", "thinking")


@pytest.fixture
def plan(tmp_path):
    """An `add` for each kind of position, with and without the BOS, at two hook points."""
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "direction.safetensors"
    save_file({"direction": torch.ones(4)}, path)
    edits = [
        {"op": "add", "value": 1, "positions": kind, "skip_bos": skip, "hook_point": str(point)}
        for point in POINTS
        for kind in KINDS
        for skip in (False, True)
    ]
    spec = parse_spec({"sae": str(path), "norm_guard": None, "edits": edits})
    return make_plan(spec, ModelFacts("tiny", 4, 8))


def named(selector: Selector, position: int, ids: list[int], n_prompt: int) -> bool:
    """Whether a selector names a token, written from the definition."""
    if selector.skip_bos and position == 0 and ids[0] == BOS:
        return False
    if selector.positions == "thinking":
        inside = False
        for token in ids[: position + 1]:
            inside = token == THINK or (inside and token != DONE)
        return inside and ids[position] != THINK
    return {
        "all": True,
        "prompt": position < n_prompt,
        "generated": position >= n_prompt,
        "last_prompt": position == n_prompt - 1,
    }[selector.positions]


def facts(plan, ids, n_prompt, spans):
    ran = [position for start, stop in spans for position in range(start, stop)]
    counts = {}
    for layer in plan.layers:
        rows = [
            [sum(named(s, position, ids, n_prompt) for position in ran), 0, 0]
            for s in layer.selectors
        ]
        counts[POINTS.index(layer.hook_point)] = rows
    return {
        "fingerprint": plan.fingerprint,
        "prompt_len": n_prompt,
        "begins_with_bos": ids[0] == BOS,
        "spans": [list(span) for span in spans],
        "counts": counts,
    }


def check(plan, ranks, prompt, generated, *, cached=0, failures=()):
    receipts = [{"requests": {"t": [rank]}, "failures": list(failures)} for rank in ranks]
    return check_request(
        plan,
        POINTS,
        receipts,
        "t",
        prompt=prompt,
        generated=generated,
        cached=cached,
        tokens=TOKENS,
    )


def a_request(seed: int) -> tuple[list[int], list[int]]:
    dice = random.Random(seed)
    prompt = [dice.choice([BOS, 3]), *dice.choices([2, 3, THINK, DONE, BOS], k=dice.randrange(12))]
    return prompt, dice.choices([2, 3, THINK, DONE], k=dice.randrange(1, 12))


@pytest.mark.parametrize("seed", range(60))
def test_what_ran_in_any_chunks_is_what_the_tokens_demand(plan, seed):
    prompt, generated = a_request(seed)
    ids, dice = prompt + generated, random.Random(seed)
    end = len(ids) - 1
    cached = dice.randrange(len(prompt))
    again = dice.randrange(cached, end + 1)
    spans = [(cached, again), (dice.randrange(again + 1), end)]
    rank = facts(plan, ids, len(prompt), spans)
    counts, expected = check(plan, [rank, rank], prompt, generated, cached=cached)
    assert [count.selected for count in counts] == expected
    demanded = [row[0] for index in (0, 1) for row in rank["counts"][index]]
    assert expected == demanded


@pytest.mark.parametrize("seed", range(30))
def test_a_row_more_or_less_is_found(plan, seed):
    prompt, generated = a_request(seed)
    ids, dice = prompt + generated, random.Random(seed)
    rank = facts(plan, ids, len(prompt), [(0, len(ids) - 1)])
    index, edit = dice.randrange(2), dice.randrange(len(KINDS) * 2)
    rank["counts"][index][edit][0] += dice.choice([-1, 1])
    with pytest.raises(ReceiptError, match=rf"edit {index * 10 + edit + 1} at .* edited"):
        check(plan, [rank], prompt, generated)


def test_a_position_that_never_ran_is_found(plan):
    prompt, generated = [BOS, 2, 3, 2], [2, 3, 2, 2]
    rank = facts(plan, prompt + generated, 4, [(0, 3), (4, 7)])
    with pytest.raises(ReceiptError, match="leaves out position 3 of 7"):
        check(plan, [rank], prompt, generated)
    check(plan, [facts(plan, prompt + generated, 4, [(3, 7)])], prompt, generated, cached=3)
    with pytest.raises(ReceiptError, match="leaves out position 2"):
        check(plan, [facts(plan, prompt + generated, 4, [(3, 7)])], prompt, generated, cached=2)


def test_a_preempted_request_may_go_on_behind_what_another_one_cached(plan):
    prompt, generated = [BOS, 2, 3, 2], [2, 3, 2, 2]
    rank = facts(plan, prompt + generated, 4, [(0, 3), (4, 7)])
    check(plan, [{**rank, "resumed": [4]}], prompt, generated)
    with pytest.raises(ReceiptError, match="leaves out position 3 of 7"):
        check(plan, [{**rank, "resumed": [0]}], prompt, generated)


def test_rows_after_the_last_known_token_may_be_anything_in_reasoning_only(plan):
    # A stop string was found in the frontend; the engine ran two rows on.
    prompt, generated, more = [BOS, THINK], [2, 2], [DONE, 2]
    rank = facts(plan, prompt + generated + more, 2, [(0, 6)])
    counts, _ = check(plan, [rank], prompt, generated)
    assert counts[0].selected == 6
    thinking = [KINDS.index("thinking") * 2]
    rank["counts"][0][thinking[0]][0] = 1
    with pytest.raises(ReceiptError, match="edit 9 at"):
        check(plan, [rank], prompt, generated)


def test_other_failures(plan):
    prompt, generated = [BOS, 2], [2, 2]
    rank = facts(plan, prompt + generated, 2, [(0, 3)])
    other = {**rank, "counts": {**rank["counts"], 1: [[0, 0, 0]] * 10}}
    with pytest.raises(ReceiptError, match=r"ranks edited differently at blocks\.5"):
        check(plan, [rank, other], prompt, generated)
    with pytest.raises(ReceiptError, match="ranks ran different rows"):
        check(plan, [rank, {**rank, "spans": [[0, 4]]}], prompt, generated)
    with pytest.raises(ReceiptError, match="ran with intervention 0123"):
        check(plan, [{**rank, "fingerprint": "0123"}], prompt, generated)
    with pytest.raises(ReceiptError, match="did not edit what it ran: boom"):
        check(plan, [rank], prompt, generated, failures=["boom"])
    with pytest.raises(ReceiptError, match="knows nothing of request t: it ran unsteered"):
        check(plan, [], prompt, generated)


def test_hook_points_may_lie_on_different_pipeline_ranks(plan):
    prompt, generated = [BOS, 2], [2, 2]
    rank = facts(plan, prompt + generated, 2, [(0, 3)])
    halves = [{**rank, "counts": {index: rank["counts"][index]}} for index in (0, 1)]
    counts, _ = check(plan, halves, prompt, generated)
    assert len(counts) == 20
    with pytest.raises(ReceiptError, match=r"ranks edited differently at blocks.5\S*: \[\]"):
        check(plan, halves[:1], prompt, generated)
