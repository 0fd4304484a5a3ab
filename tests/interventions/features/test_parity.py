"""The parity mode against a port of what the two notebooks compute."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from interventions.errors import FeatureError
from interventions.features import parity
from interventions.features.checkpoint import Checkpoint
from interventions.features.parity import parity_contrast, parity_rows, parity_values
from interventions.subject import load_subject
from tests.tiny_models import save_model, save_sae

BASE = [f"the {'very ' * (i % 4)}inner part of {i}" for i in range(43)]
EXP = [f"an answer {'?' * (1 + i % 5)} in there {i * i}" for i in range(33)]


@pytest.fixture(scope="module", params=["right", "left"])
def subject(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("subject")
    sae = save_sae(folder / "sae", max_act=5.0)
    loaded = load_subject(str(save_model(folder / "model")), str(sae.path))
    loaded.tokenizer.padding_side = request.param
    return loaded


def notebook_values(subject, prompts, notebook, aggregate, *, whole_set=False):
    """What the notebooks do, with transformers' own padding and hidden states."""
    rows = []
    fixed = {"max_length": 80, "padding": "max_length"} if whole_set else {"padding": True}
    for start in range(0, len(prompts), 8):
        inputs = subject.tokenizer(prompts[start : start + 8], return_tensors="pt", **fixed)
        with torch.no_grad():
            out = subject.model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                output_hidden_states=True,
            )
        acts = subject.sae.encode(out.hidden_states[subject.hook_point.layer + 1])
        mask = inputs["attention_mask"].unsqueeze(-1)
        if notebook == "faithfulness" and aggregate == "mean":
            rows.append((acts * mask).sum(1) / mask.sum(1))
        elif notebook == "faithfulness":
            last = inputs["attention_mask"].sum(1) - 1
            rows.append(acts[torch.arange(len(acts)), last])
        else:
            rows.append(acts.mean(1) if aggregate == "mean" else acts[:, -1])
    return torch.cat(rows)


def notebook_ranking(base, exp, notebook):
    base, exp = base.numpy(), exp.numpy()
    if notebook == "reasoning":
        mean_base, mean_exp = trim_mean(base, 0.05, axis=0), trim_mean(exp, 0.05, axis=0)
    else:
        mean_base, mean_exp = base.mean(0), exp.mean(0)
    increase = 100 * (mean_exp - mean_base) / (mean_base + 1e-6)
    valid = np.where((mean_base > 0.01) & (mean_exp > 0.1))[0]
    ranked = valid[np.argsort(-increase[valid])]
    return ranked[:10], increase, (base > 0).mean(0), (exp > 0).mean(0)


@pytest.mark.parametrize("notebook", ["faithfulness", "reasoning"])
@pytest.mark.parametrize("aggregate", ["mean", "last"])
def test_the_ranking_is_the_notebooks(subject, notebook, aggregate):
    sets = (BASE, EXP)
    values = [parity_values(subject, s, notebook, aggregate=aggregate).values for s in sets]
    expected = [notebook_values(subject, s, notebook, aggregate) for s in sets]
    for ours, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    result = parity_contrast(*values, notebook)
    ranked, increase, share_base, share_exp = notebook_ranking(*expected, notebook)
    rows = parity_rows(result)
    assert [row["feature"] for row in rows] == ranked.tolist()
    for row in rows:
        assert row["score"] == pytest.approx(increase[row["feature"]], rel=1e-3)
        assert row["share_base"] == pytest.approx(share_base[row["feature"]])
        assert row["share_exp"] == pytest.approx(share_exp[row["feature"]])


def test_the_two_notebooks_differ_by_their_padding(subject):
    mean = parity_values(subject, BASE, "faithfulness").values
    padded = parity_values(subject, BASE, "reasoning").values
    assert not torch.allclose(mean, padded, atol=1e-3)
    alone = parity_values(subject, BASE, "reasoning", batch=1).values
    torch.testing.assert_close(mean, alone, atol=2e-5, rtol=1e-4)


def test_padding_to_the_whole_set_counts_more_of_it(subject):
    prompts = [*BASE[:9], "a" * 79]  # 80 tokens with BOS
    ours = parity_values(subject, prompts, "reasoning", pad_to="set").values
    theirs = notebook_values(subject, prompts, "reasoning", "mean", whole_set=True)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_what_it_cannot_do_is_refused(subject):
    with pytest.raises(FeatureError, match="no prompt"):
        parity_values(subject, [], "reasoning")
    with pytest.raises(FeatureError, match="'median'"):
        parity_values(subject, BASE, "reasoning", aggregate="median")


def test_largest_activations_are_those_at_tokens_that_are_no_padding_and_no_sink(subject):
    prompts = [*BASE[:9], "a" * 79]
    found = parity_values(subject, prompts, "reasoning").largest
    guarded = dataclasses.replace(subject, median_norm=1.0, guard=2.2)
    inside = parity_values(guarded, prompts, "reasoning").largest
    every, kept = [], []
    for prompt in prompts:
        ids = torch.tensor([subject.tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            hidden = subject.model(ids, output_hidden_states=True).hidden_states
        resid = hidden[subject.hook_point.layer + 1][0]
        every.append(subject.sae.encode(resid))
        kept.append(every[-1][resid.norm(dim=-1) <= 2.2])
    assert 0 < sum(map(len, kept)) < sum(map(len, every))
    close = {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(found, torch.cat(every).amax(0), **close)
    torch.testing.assert_close(inside, torch.cat(kept).amax(0), **close)
    assert bool((inside < found).any())


def test_values_that_were_kept_are_not_read_again(subject, tmp_path, monkeypatch):
    whole = parity_values(subject, BASE, "reasoning")
    read, calls = parity.read_padded, []

    def twice(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(*given)

    monkeypatch.setattr(parity, "read_padded", twice)
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: True))
    with pytest.raises(KeyboardInterrupt):
        parity_values(subject, BASE, "reasoning", folder=tmp_path / "run")
    again = parity_values(subject, BASE, "reasoning", folder=tmp_path / "run")
    assert len(calls) == 3 + 4  # of six batches two were kept
    assert torch.equal(again.values, whole.values)
    assert torch.equal(again.largest, whole.largest)
    with pytest.raises(FeatureError, match="other settings"):
        parity_values(subject, BASE, "faithfulness", folder=tmp_path / "run")
