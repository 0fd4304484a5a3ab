"""Slots: the least recently used intervention makes room, and a step never runs without its own."""

import random

import pytest
import torch

from interventions.backends.vllm.compiled import SCALARS, Compiled, HookEdits
from interventions.backends.vllm.tables import NOBODY, HookTables, Slots
from interventions.errors import ReceiptError

D_MODEL, MAX_EDITS = 4, 3


def compiled(number: int, n_edits: int = 1, hooks=(0, 2)) -> Compiled:
    """Return an intervention whose tables hold its own number everywhere."""
    edits = tuple(
        HookEdits(
            index=index,
            limit=float(number),
            scalars=torch.full((n_edits, len(SCALARS)), float(number)),
            e=torch.full((n_edits, D_MODEL), float(number + index)),
            w=torch.full((n_edits, D_MODEL), -float(number)),
        )
        for index in hooks
    )
    return Compiled(f"f{number}", edits, keyed=True, boundary=None, bos=None, think=None)


def make(size: int) -> Slots:
    tables = {
        index: HookTables.empty(
            slots=size,
            accounts=2,
            max_edits=MAX_EDITS,
            d_model=D_MODEL,
            rows=5,
            device=torch.device("cpu"),
        )
        for index in (0, 2)
    }
    return Slots(tables, size)


def holds(slots: Slots, slot: int, one: Compiled) -> bool:
    for index, tables in slots.tables.items():
        hook = next((hook for hook in one.hooks if hook.index == index), None)
        n = 0 if hook is None else len(hook.scalars)
        if int(tables.n_edits[slot]) != n:
            return False
        if hook is not None and not (
            float(tables.limit[slot]) == hook.limit
            and torch.equal(tables.scalars[slot, :n], hook.scalars)
            and torch.equal(tables.e[slot, :n], hook.e)
            and torch.equal(tables.w[slot, :n], hook.w)
        ):
            return False
    return True


def test_the_least_recently_used_one_makes_room():
    slots = make(4)
    a, b, c, d = (compiled(n) for n in range(1, 5))
    first = slots.assign([a, b, c])
    assert sorted(first.values()) == [1, 2, 3]
    slots.assign([a])  # b is now the oldest
    assert slots.assign([d]) == {"f4": first["f2"]}
    assert slots.assign([a, c]) == {"f1": first["f1"], "f3": first["f3"]}
    assert slots.assign([b]) == {"f2": first["f2"]}, "d was the oldest"


def test_one_that_a_step_needs_is_never_put_out_by_another_of_the_step():
    slots = make(3)
    a, b, c = (compiled(n) for n in range(1, 4))
    slots.assign([a, b])
    held = slots.assign([c, a])  # a was the oldest, and is needed
    assert len(set(held.values())) == 2
    assert holds(slots, held["f1"], a)
    assert holds(slots, held["f3"], c)


def test_requests_of_one_intervention_share_a_slot():
    slots = make(2)
    assert slots.assign([compiled(1)] * 50) == {"f1": 1}


def test_more_interventions_than_slots_do_not_run():
    slots = make(3)
    slots.assign([compiled(1), compiled(2)])
    with pytest.raises(ReceiptError, match="3 interventions and there are 2 slots"):
        slots.assign([compiled(n) for n in (1, 2, 3)])
    assert holds(slots, slots.assign([compiled(1)])["f1"], compiled(1)), "nothing was put out"


def test_a_slot_that_is_used_again_keeps_nothing_of_what_it_held():
    slots = make(2)
    slots.assign([compiled(1, n_edits=3)])
    fewer = compiled(2, n_edits=1, hooks=(2,))
    slot = slots.assign([fewer])["f2"]
    assert holds(slots, slot, fewer)
    assert int(slots.tables[0].n_edits[slot]) == 0


def test_released_slots_are_free():
    slots = make(3)
    slots.assign([compiled(1), compiled(2)])
    slots.release("f1")
    assert slots.assign([compiled(3)]) == {"f3": 1}


@pytest.mark.parametrize("seed", range(10))
def test_churn(seed):
    """Hundreds of steps: whatever was put out, a step finds its own tables in its own slots."""
    rng = random.Random(seed)
    size = rng.randint(2, 9)
    slots = make(size)
    known = [
        compiled(n, rng.randint(1, MAX_EDITS), rng.choice([(0,), (2,), (0, 2)])) for n in range(30)
    ]
    untouched = {index: tables.e[NOBODY].clone() for index, tables in slots.tables.items()}
    for _ in range(200):
        step = rng.sample(known, rng.randint(1, size - 1))
        held = slots.assign(step)
        assert set(held) == {one.fingerprint for one in step}
        assert len(set(held.values())) == len(step)
        assert all(0 < slot < size for slot in held.values())
        assert all(holds(slots, held[one.fingerprint], one) for one in step)
    for index, tables in slots.tables.items():
        assert int(tables.n_edits[NOBODY]) == 0
        assert torch.equal(tables.e[NOBODY], untouched[index])
