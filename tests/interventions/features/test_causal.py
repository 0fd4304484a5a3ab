"""Measured effects are those of a whole forward pass with the direction added."""

import dataclasses

import pytest
import torch
from scipy.stats import spearmanr

from interventions.backends.hf import decoder_layers
from interventions.errors import FeatureError
from interventions.features.causal import CausalSettings, measure_effects, rank_correlation
from interventions.features.facts import collect
from interventions.features.lens import logit_lens
from interventions.features.prefixes import Prefixes, passages
from interventions.features.running import FactSettings
from interventions.hook_points import parse_hook_point
from interventions.text.rows import rows
from tests.interventions.features.facts_cases import make_subject, make_text
from tests.tiny_models import D_MODEL, FAMILIES, make_model

HOW = CausalSettings(contexts=6, length=8, listed=5)


@pytest.mark.parametrize("site", ["resid_post", "resid_pre"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_after_a_cached_prefix_equals_the_whole_pass(family, site):
    model = make_model(family)
    point = parse_hook_point(f"blocks.1.hook_{site}")
    generator = torch.Generator().manual_seed(0)
    # Longer than the sliding window of the families that have one.
    ids = torch.randint(3, 200, (3, 20), generator=generator)
    tokens = torch.randint(3, 200, (3, 2), generator=generator)
    delta = torch.randn(3, 2, D_MODEL, generator=generator)
    prefixes = Prefixes(model, point, ids)
    plain, pushed = prefixes.logits(tokens), prefixes.logits(tokens, delta)
    resid = prefixes.residuals(tokens)
    layer = decoder_layers(model)[1]
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    for row in range(3):
        for k in range(2):
            whole = torch.cat([ids[row], tokens[row, k : k + 1]])[None]
            with torch.no_grad():
                out = model(whole, output_hidden_states=True)
            state = out.hidden_states[2 if site == "resid_post" else 1][0, -1]
            torch.testing.assert_close(resid[row, k], state, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(plain[row, k], out.logits[0, -1], atol=1e-4, rtol=1e-3)

            def edit(stream, row=row, k=k):
                stream = stream.clone()
                stream[:, -1] += delta[row, k]
                return stream

            if site == "resid_post":
                handle = layer.register_forward_hook(
                    lambda m, a, o, e=edit: (e(o[0]), *o[1:]) if isinstance(o, tuple) else e(o)
                )
            else:
                handle = layer.register_forward_pre_hook(lambda m, a, e=edit: (e(a[0]), *a[1:]))
            with torch.no_grad():
                steered = model(whole).logits[0, -1]
            handle.remove()
            torch.testing.assert_close(pushed[row, k], steered, atol=1e-4, rtol=1e-3)


def test_rank_correlation_is_scipys_with_ties():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 9, (200,), generator=generator).float()
    b = a + torch.randn(200, generator=generator) * 4
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert rank_correlation(a, torch.ones(200)) is None


def test_passages_are_the_same_every_time_and_need_enough_text(tmp_path):
    subject, text = make_subject(tmp_path), make_text(tmp_path)
    drawn = [passages(rows(text, subject.tokenizer), 5, 10, seed=4) for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], passages(rows(text, subject.tokenizer), 5, 10, seed=5))
    with pytest.raises(FeatureError, match=r"\d+ rows of at least 10 tokens, and 500 are needed"):
        passages(rows(text, subject.tokenizer), 500, 10, seed=0)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return a subject at the last layer; feature 0 writes what the unembedding reads as 'w'."""
    folder = tmp_path_factory.mktemp("planted")
    subject, text = make_subject(folder, layer=3), make_text(folder)
    token = subject.tokenizer.convert_tokens_to_ids("w")
    decoder = subject.sae.W_dec.clone()
    readout = logit_lens(subject.model, len(subject.tokenizer)).readout
    decoder[0] = 4 * readout[token] / readout[token].norm()
    sae = dataclasses.replace(subject.sae, W_dec=decoder, content_hash="planted")
    subject = dataclasses.replace(subject, sae=sae)
    store = collect(subject, text, folder / "facts", FactSettings(sample=4, top=1))
    return subject, text, store, token


def test_a_planted_promoter_makes_its_token_likelier(planted):
    subject, text, store, token = planted
    summary = measure_effects(subject, text, store, [0, 3, 5], HOW)
    effect = store.feature(0).causal
    assert effect is not None
    assert effect.promoted[0].id == token == effect.logits_up[0].id
    assert effect.promoted[0].value > 0.01
    assert effect.value == pytest.approx(store.feature(0).max_act)
    assert effect.kl > effect.control_kl > 0
    # Nothing but the final norm stands between the last layer and the logits.
    assert effect.lens_rank_correlation > 0.9
    assert summary["features"] == 3
    assert summary["across_features"] is None  # of three features it would say nothing
    assert store.feature(1).causal is None


def test_measured_features_are_kept_and_other_settings_refused(planted, monkeypatch):
    subject, text, store, _ = planted
    measure_effects(subject, text, store, [0, 3], HOW)
    before = store.feature(3).causal
    summary = measure_effects(subject, text, store, list(range(12)), HOW)
    assert store.feature(3).causal == before
    assert summary["features"] >= 12
    assert -1 <= summary["across_features"] <= 1
    monkeypatch.setattr("interventions.features.causal._Lab", None)  # nothing is left to measure
    assert measure_effects(subject, text, store, [0, 3], HOW) == summary
    with pytest.raises(FeatureError, match="was measured with settings"):
        measure_effects(subject, text, store, [0], dataclasses.replace(HOW, seed=1))


def test_a_stop_in_the_middle_keeps_what_was_measured(planted, monkeypatch, tmp_path):
    import shutil

    from interventions.features import causal
    from interventions.features.facts_store import FactStore

    subject, text, store, _ = planted
    for name in ("info.json", "features.parquet", "contexts.parquet", "vocabulary.parquet"):
        shutil.copy(store.folder / name, tmp_path)
    other = FactStore.open(tmp_path)
    monkeypatch.setattr(causal.Shortlist, "due", True)
    effect, calls = causal._Lab.effect, []

    def stop(self, feature, value):
        calls.append(feature)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return effect(self, feature, value)

    monkeypatch.setattr(causal._Lab, "effect", stop)
    with pytest.raises(KeyboardInterrupt):
        measure_effects(subject, text, other, [0, 3, 5, 7], HOW)
    measure_effects(subject, text, other, [0, 3, 5, 7], HOW)
    assert calls == [0, 3, 5, 5, 7]
    assert sorted(other.causal) == [0, 3, 5, 7]
