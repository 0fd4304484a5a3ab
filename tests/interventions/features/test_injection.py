"""A planted word detector is called one, and so is a feature that only its place makes fire."""

import dataclasses

import pytest
import torch
from scipy.stats import binomtest

from interventions.errors import FeatureError
from interventions.features.facts import collect
from interventions.features.injection import InjectionSettings, check_injections, wilson
from interventions.features.running import FactSettings
from tests.interventions.features.facts_cases import make_subject, make_text

HOW = InjectionSettings(tokens=2, contexts=4, length=12)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return a subject that reads embeddings: feature 0 one token, feature 1 the fourth position,
    feature 2 nothing at all."""
    folder = tmp_path_factory.mktemp("planted")
    subject = make_subject(
        folder, "gpt2", layer=0, site="resid_pre", b_dec_to_input=False, guard=None
    )
    text = make_text(folder)
    transformer = subject.model.transformer
    token = subject.tokenizer.convert_tokens_to_ids("w")

    def alone(row, others):
        """Return a direction on which `row` is 1 and all of `others` are near 0."""
        rest = torch.cat([others, torch.zeros(0, others.shape[1])])
        return torch.linalg.lstsq(
            torch.cat([row[None], rest]), torch.eye(1 + len(rest))[:, 0]
        ).solution

    encoder = subject.sae.W_enc.clone()
    bias = subject.sae.b_enc.clone()
    threshold = subject.sae.threshold.clone()
    with torch.no_grad():
        words, places = transformer.wte.weight, transformer.wpe.weight
        for feature, row in ((0, words[token]), (1, places[3])):
            encoder[:, feature] = row / row.norm() ** 2
            bias[feature], threshold[feature] = 0.0, 0.0
        # Make the two rows stand out, so that nothing else comes near.
        words[token] *= 6
        places[3] *= 6
        encoder[:, :2] /= 6
        threshold[:2] = 0.5
        threshold[2] = 1e9
    sae = dataclasses.replace(
        subject.sae, W_enc=encoder, b_enc=bias, threshold=threshold, content_hash="planted"
    )
    subject = dataclasses.replace(subject, sae=sae)
    store = collect(subject, text, folder / "facts", FactSettings())
    return subject, text, store, token


def test_a_word_detector_is_a_token_feature(planted):
    subject, text, store, token = planted
    assert store.feature(0).top_tokens[0].id == token
    check_injections(subject, text, store, [0], dataclasses.replace(HOW, tokens=1))
    found = store.feature(0).injection
    assert found is not None
    assert found.verdict == "token"
    assert found.fires == found.neutral == found.random == 1.0
    assert found.baseline < 0.3
    assert found.count == 12  # eight neutral passages and four of the text
    (store.folder / "injection.json").unlink()
    store.__dict__.pop("injections")


def test_a_feature_of_the_place_is_a_context_feature(planted):
    subject, text, store, _ = planted
    assert store.feature(1).count > 0
    counts = check_injections(subject, text, store, [0, 1], HOW)
    found = store.feature(1).injection
    assert found is not None
    assert found.verdict == "context"
    assert found.fires == found.baseline == 0.0
    assert [t.id for t in found.tokens] == [t.id for t in store.feature(1).top_tokens[:2]]
    assert sum(counts.values()) == 2


def test_a_feature_that_never_fired_is_refused(planted):
    subject, text, store, _ = planted
    with pytest.raises(FeatureError, match="feature 2 never fired in the text"):
        check_injections(subject, text, store, [2], HOW)


def test_passages_longer_than_the_neutral_ones_are_refused(planted, tmp_path):
    subject, text, store, _ = planted
    long = dataclasses.replace(HOW, length=47, contexts=1)
    (store.folder / "injection.json").unlink(missing_ok=True)
    subject.tokenizer.add_tokens([" parcel was left at the front desk on Tuesday morning, and"])
    with pytest.raises(FeatureError, match=r"a neutral passage has \d+ tokens, fewer than 47"):
        check_injections(subject, text, store, [0], long)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (40, 80)])
def test_the_interval_is_wilsons(hits, n):
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
