"""Batches from memory and from the model, and where they begin again."""

import itertools

import pytest
import torch

from interventions.errors import FeatureError, TrainingError
from interventions.hook_points import HookPoint
from interventions.train.config import TrainerConfig
from interventions.train.harvest import residuals
from interventions.train.source import START, Stored, Streamed
from interventions.train.trainer import Trainer
from interventions.train.world import ALONE, World


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(3)
    lengths = [int(n) for n in torch.randint(8, 40, (40,), generator=generator)]
    return [torch.randint(3, 250, (n,), generator=generator) for n in lengths]


def streamed(model, rows, **changes):
    settings = {
        "batch_size": 16,
        "buffer_tokens": 200,
        "batch_tokens": 128,
        "seed": 5,
        "limit": None,
    }
    return Streamed(model, HookPoint(2), lambda: iter(rows), **(settings | changes))


def collect(source, position=START):
    """Return all batches until the stream says that the text has ended."""
    found, batches = [], source.batches(position)
    try:
        for pair in batches:
            found.append(pair)
    except TrainingError as error:
        if "the text ended after 40 rows" in str(error):
            return found
        raise
    raise AssertionError("the stream ended without a word")


def test_the_stream_gives_the_activations_of_the_text_once_in_mixed_order(tiny_model, rows):
    batches = collect(streamed(tiny_model, rows))
    everything = residuals(tiny_model, HookPoint(2), rows, 128).bfloat16()
    got = torch.cat([batch for batch, _ in batches])
    assert 0.85 * len(everything) < len(got) <= len(everything)
    distance = torch.cdist(got.float(), everything.float())
    nearest = distance.argmin(dim=1)
    assert distance.min(dim=1).values.max() < 0.1
    # Rows that begin with the same token have the same activation there.
    same = len(rows) - len({int(row[0]) for row in rows})
    assert len(got) - len(nearest.unique()) <= same
    assert not torch.equal(nearest, nearest.sort().values)


def test_it_goes_on_from_any_position_with_the_same_batches(tiny_model, rows):
    whole = collect(streamed(tiny_model, rows))
    for stop in (0, 4, len(whole) // 2, len(whole) - 2):
        rest = collect(streamed(tiny_model, rows), whole[stop][1])
        assert len(rest) == len(whole) - stop - 1
        for (mine, after), (expected, place) in zip(rest, whole[stop + 1 :], strict=True):
            assert torch.equal(mine, expected)
            assert after == place


def test_a_text_of_just_the_tokens_that_are_trained_on_is_enough(tiny_model, rows):
    count = len(collect(streamed(tiny_model, rows)))
    config = TrainerConfig(d_sae=48, k=4, tokens_seen=16 * count, batch_size=16, aux_rows=8)
    trainer = Trainer(streamed(tiny_model, rows), config, seed=0)
    for batch in trainer.batches():
        trainer.train_step(batch)
    assert trainer.step == count


def test_sinks_and_excluded_tokens_are_left_out(tiny_model, rows):
    norms = residuals(tiny_model, HookPoint(2), rows, 128).float().norm(dim=-1)
    limit = float(norms.median())
    source = streamed(tiny_model, rows, limit=limit)
    assert all(batch.float().norm(dim=-1).max() <= limit * 1.01 for batch, _ in collect(source))
    ids = torch.cat(rows)
    without = ids.unique()[:100].tolist()
    usable = int((~torch.isin(ids, torch.tensor(without))).sum())
    assert len(streamed(tiny_model, rows, without=without).first(10_000)) == usable


def test_processes_share_the_rows_of_the_stream(tiny_model, rows):
    alone = streamed(tiny_model, rows)
    whole, taken = alone._take(iter(rows))
    shares = []
    for rank in range(2):
        world = World(rank, 2)
        some, count = streamed(tiny_model, rows, world=world)._take(iter(rows))
        assert count == taken
        shares.append(some)
    mixed = [row for pair in itertools.zip_longest(*shares) for row in pair if row is not None]
    assert all(torch.equal(a, b) for a, b in zip(mixed, whole, strict=True))


def test_processes_share_a_stored_batch():
    acts = torch.arange(64.0)[:, None]
    alone = [b for b, _ in itertools.islice(Stored(acts, 16, 1, ALONE).batches(START), 6)]
    halves = [
        [b for b, _ in itertools.islice(Stored(acts, 16, 1, World(rank, 2)).batches(START), 6)]
        for rank in range(2)
    ]
    for whole, first, second in zip(alone, *halves, strict=True):
        assert torch.equal(whole, torch.cat([first, second]))
    with pytest.raises(TrainingError, match="no multiple of the 3 processes"):
        Stored(acts, 16, 1, World(0, 3))


def test_activations_that_are_not_finite_end_the_run(tiny_model, rows):
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight[:] = float("nan")
    with pytest.raises(FeatureError, match="not finite"):
        next(streamed(tiny_model, rows).batches(START))
