"""The best few of a stream are the same however the stream is cut."""

import pytest
import torch

from interventions.features.leaders import Leaders, falling


def stream(n=400, features=7, tags=50, levels=20):
    g = torch.Generator().manual_seed(1)
    feature = torch.randint(features, (n,), generator=g)
    key = torch.randint(1, levels, (n,), generator=g).float()  # many ties
    tag = torch.randint(tags, (n,), generator=g)
    return feature, key, tag


def by_hand(feature, key, tag, features, k):
    best = {}
    for f, x, t in zip(feature.tolist(), key.tolist(), tag.tolist(), strict=True):
        best[f, t] = max(x, best.get((f, t), 0.0))
    return [sorted(((-x, t) for (g, t), x in best.items() if g == f))[:k] for f in range(features)]


@pytest.mark.parametrize("size", [1, 3, 50, 400])
def test_they_are_the_best_tags_in_any_batches(size):
    feature, key, tag = stream()
    leaders = Leaders.empty(9, 5, torch.float32, {"seen": ((2,), torch.long)}, torch.device("cpu"))
    for start in range(0, len(feature), size):
        part = slice(start, start + size)
        f, x, t = feature[part], key[part], tag[part]
        leaders.offer(f, x, t, lambda i, t=t, f=f: {"seen": torch.stack([t[i], f[i]], 1)})
    expected = by_hand(feature, key, tag, 9, 5)
    for f, best in enumerate(expected):
        held = leaders.held[f]
        assert [(-x, t) for x, t in zip(leaders.key[f][held].tolist(),
                leaders.tag[f][held].tolist(), strict=True)] == best  # fmt: skip
        assert leaders.payload["seen"][f][held].tolist() == [[t, f] for _, t in best]
        assert leaders.tag[f][~held].tolist() == [-1] * (5 - len(best))


def test_they_go_on_from_their_tensors():
    feature, key, tag = stream()
    whole = Leaders.empty(9, 5, torch.float32, {}, torch.device("cpu"))
    whole.offer(feature, key, tag)
    first = Leaders.empty(9, 5, torch.float32, {}, torch.device("cpu"))
    first.offer(feature[:200], key[:200], tag[:200])
    second = Leaders.load("x", first.tensors("x"))
    second.offer(feature[200:], key[200:], tag[200:])
    assert torch.equal(whole.key, second.key)
    assert torch.equal(whole.tag, second.tag)


@pytest.mark.parametrize("size", [1, 7, 300])
def test_distinct_tags_need_no_search_for_repeats(size):
    g = torch.Generator().manual_seed(2)
    feature = torch.randint(7, (300,), generator=g)
    key = torch.randint(-5, 5, (300,), generator=g) / 4  # ties, and below 0
    tag = torch.randperm(300, generator=g)
    found = []
    for distinct in (False, True):
        leaders = Leaders.empty(9, 5, torch.float32, {"at": ((), torch.long)}, torch.device("cpu"))
        for start in range(0, 300, size):
            part = slice(start, start + size)
            leaders.offer(feature[part], key[part], tag[part],
                          lambda i, start=start: {"at": i + start}, distinct=distinct)  # fmt: skip
        found.append(leaders.tensors("x"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    best = key.new_tensor([max(key[feature == f].tolist()) for f in range(7)])
    assert torch.equal(found[1]["x.key"][:7, 0], best)
    assert torch.equal(tag[found[1]["x.payload.at"][:7]], found[1]["x.tag"][:7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.long])
def test_whole_numbers_that_rise_where_a_key_falls(dtype):
    key = torch.tensor([-3.5, 2.25, 0.0, -1e-30, 7e20, 2.25, -8e9, 1e-40]).to(dtype)
    if dtype == torch.long:
        key = torch.tensor([-3, 2**61, 0, -1, 7, 2, -(2**62), 1])
    expected = sorted(range(len(key)), key=lambda i: (-key[i].item(), i))
    assert falling(key).argsort(stable=True).tolist() == expected
