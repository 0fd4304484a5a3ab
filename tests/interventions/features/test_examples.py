"""Examples of features: the strongest windows, weaker ones by their square, and few where few."""

from collections import Counter

import pytest
import torch

from interventions.errors import FeatureError
from interventions.features.examples import choose, draw, windows
from interventions.features.firings import Density, density
from interventions.features.firings import firings as read_firings
from interventions.subject import load_subject
from interventions.text.config import parse_text
from tests.tiny_models import D_SAE, save_model, save_sae

SETTINGS = {"top": 3, "weighted": 2, "buffer": 4, "seed": 0}


def firings(*spots):
    where = torch.tensor([spot[:2] for spot in spots], dtype=torch.long).reshape(-1, 2)
    return where, torch.tensor([float(spot[2]) for spot in spots])


def test_top_windows_are_the_strongest_that_do_not_overlap():
    read = [torch.arange(60), torch.arange(100, 160)]
    where, value = firings(
        (0, 20, 9), (0, 22, 8), (0, 30, 7), (1, 10, 6), (1, 40, 5), (0, 50, 4), (0, 1, 99),
        (1, 58, 99),
    )  # fmt: skip
    found = windows(where, value, read, top=5, weighted=0, buffer=4, seed=0)
    # (0, 22) is in the window of (0, 20); (0, 1) and (1, 58) have no whole window.
    assert [one.largest for one in found] == [9, 7, 6, 5, 4]
    assert all(one.kind == "top" and len(one.ids) == 9 for one in found)
    first = found[0]
    assert first.ids == tuple(range(16, 25))
    assert first.acts == (0, 0, 0, 0, 9, 0, 8, 0, 0)


def test_no_window_holds_what_leads_a_row():
    where, value = firings((0, 4, 5), (0, 30, 2))
    read = [torch.arange(60)]
    assert [x.largest for x in windows(where, value, read, **SETTINGS)] == [5, 2]
    assert [x.largest for x in windows(where, value, read, **SETTINGS, lead=1)] == [2]


def test_two_more_are_found_than_are_kept_and_the_seed_decides_which():
    read = [torch.arange(200)]
    where, value = firings(*((0, 10 + 12 * i, 20 - i) for i in range(12)))
    kept = [windows(where, value, read, **{**SETTINGS, "seed": s}) for s in range(8)]
    again = windows(where, value, read, **SETTINGS)
    assert again == kept[0]
    tops = {tuple(one.largest for one in found if one.kind == "top") for found in kept}
    assert len(tops) > 1
    assert all(set(top) <= {20, 19, 18, 17, 16} and len(top) == 3 for top in tops)
    weaker = {one.largest for found in kept for one in found if one.kind == "weighted"}
    assert weaker
    assert max(weaker) < 16


def test_weaker_examples_are_drawn_by_the_square_of_their_activation():
    read = [torch.arange(400)]
    spots = [(0, 10 + 12 * i, 100) for i in range(5)]
    spots += [(0, 100, 3.0), (0, 150, 1.0), (0, 200, 1.0)]
    where, value = firings(*spots)
    drawn = Counter()
    for seed in range(400):
        found = windows(where, value, read, top=3, weighted=1, buffer=4, seed=seed)
        (one,) = (x for x in found if x.kind == "weighted")
        drawn[one.largest] += 1
    # Three of three candidates are drawn, one of them kept: no weight is left. So draw fewer.
    assert set(drawn) == {3.0, 1.0}
    many = [(0, 10 + 12 * i, 100) for i in range(5)] + [(0, 80 + i, 1.0) for i in range(200)]
    where, value = firings(*many, (0, 300, 10.0))
    strong = sum(
        any(x.largest == 10 for x in windows(where, value, read, **{**SETTINGS, "seed": s}))
        for s in range(100)
    )
    # Weight 100 of 300: drawn among 4 nearly always (84 %), kept in half of these.
    assert 25 <= strong <= 60


def test_features_with_few_or_no_firings_have_few_or_no_examples():
    read = [torch.arange(60)]
    where, value = firings((0, 20, 2), (0, 40, 1))
    assert [x.largest for x in windows(where, value, read, **SETTINGS)] == [2, 1]
    assert windows(*firings(), read, **SETTINGS) == []
    assert windows(*firings((0, 1, 5)), read, **SETTINGS) == []


def test_choosing_takes_living_features_only():
    found = Density(torch.tensor([0, 16, 15, 100, 17]), torch.zeros(5), 1000)
    assert choose(found, None, 0) == [1, 3, 4]
    assert choose(found, 2, 1) == choose(found, 2, 1)
    assert set(choose(found, 2, 1)) <= {1, 3, 4}
    with pytest.raises(FeatureError, match="no feature fires more than 100 times in 1000 tokens"):
        choose(found, 2, 1, alive=100)


def test_density_and_examples_agree_with_the_model_row_by_row(tmp_path):
    save_model(tmp_path / "model")
    save_sae(tmp_path / "sae", median_norm=2.0)
    path = tmp_path / "text.txt"
    path.write_text("the end of an inn in the rain, then the other one again\n" * 40)
    subject = load_subject(str(tmp_path / "model"), str(tmp_path / "sae"), guard=2.0)
    text = parse_text({"sources": [{"path": str(path)}], "context": 80, "tokens": 1200})
    found = density(subject, text, folder=tmp_path / "run")
    counts, total = torch.zeros(D_SAE, dtype=torch.long), 0
    from interventions.text.rows import rows

    for row in rows(text, subject.tokenizer):
        with torch.no_grad():
            hidden = subject.model(row.ids[None], output_hidden_states=True).hidden_states[2][0]
        keep = (hidden.norm(dim=-1) <= subject.limit) & ~torch.isin(
            row.ids, torch.tensor(subject.special_ids)
        )
        counts += (subject.sae.encode(hidden[keep]) > 0).sum(0)
        total += int(keep.sum())
    assert found.tokens == total
    assert 0 < total < 1200
    assert (found.counts - counts).abs().max() <= 1  # rounding at a threshold
    again = density(subject, text, folder=tmp_path / "run")
    assert torch.equal(again.counts, found.counts)
    assert again.seconds == found.seconds > 0
    features = choose(found, 3, 0)
    examples = draw(read_firings(subject, text, features), features, top=4, weighted=2)
    assert list(examples) == features
    for feature in features:
        assert max(one.largest for one in examples[feature]) <= found.largest[feature] + 1e-4
        assert all(len(one.ids) == 21 for one in examples[feature])
        assert all(one.acts[10] > 0 for one in examples[feature])


def test_a_text_of_sinks_alone_has_no_firings(tmp_path):
    save_model(tmp_path / "model")
    save_sae(tmp_path / "sae", median_norm=2.0)
    (tmp_path / "text.txt").write_text("the end of an inn in the rain\n" * 40)
    subject = load_subject(str(tmp_path / "model"), str(tmp_path / "sae"), guard=1e-6)
    text = parse_text({"sources": [{"path": str(tmp_path / "text.txt")}], "context": 80})
    found = density(subject, text)
    assert found.tokens == int(found.counts.sum()) == 0
    with pytest.raises(FeatureError, match="no feature fires more than 15 times in 0 tokens"):
        choose(found, 2, 1)
    assert draw(read_firings(subject, text, [3, 4]), [3, 4]) == {3: [], 4: []}
