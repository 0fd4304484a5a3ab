"""The best few of a stream are the same however the stream is cut."""

import pytest
import torch

from interventions.features.leaders import Leaders


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
