"""A planted feature is rank 1, noise stays out, masks hide what they must."""

import dataclasses

import pytest
import torch

from interventions.errors import FeatureError
from interventions.features.aggregate import AGGREGATES, Summaries, collect, summarise
from interventions.features.contrast import (
    ContrastSettings,
    as_rows,
    contrast,
    facts,
    make_units,
    notes,
    trimmed_mean,
    why_none,
)
from interventions.features.passages import Counting, Example, make_passage
from interventions.residuals import read_padded
from interventions.subject import load_subject
from tests.tiny_models import D_SAE, save_model, save_sae

SETTINGS = ContrastSettings(permutations=2000, resamples=200)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subject")
    sae = save_sae(folder / "sae", max_act=5.0)
    return load_subject(str(save_model(folder / "model")), str(sae.path))


def summaries_of(passages):
    return Summaries.none(passages[0].shape[1]).joined([summarise([acts]) for acts in passages])


def noise(n, d_sae, generator, tokens=12):
    """Sparse activations of `n` passages, and a factor a passage so that they are not alike."""
    return [
        torch.rand(1) * torch.randn(tokens, d_sae, generator=generator).sub(0.5).relu()
        for _ in range(n)
    ]


def two_sets(plant=0.0, new=0.0, n=24, d_sae=64, seed=0):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    passages = noise(2 * n, d_sae, generator)
    for acts in passages:
        acts[:, 5] = 0  # the baseline never has it
    for acts in passages[n:]:
        acts[::3, 3] += plant
        acts[::3, 5] += new
    groups = [f"b{i}" for i in range(n)] + [f"e{i}" for i in range(n)]
    return make_units(summaries_of(passages), groups, [False] * n + [True] * n)


def test_the_planted_feature_is_rank_1():
    units = two_sets(plant=2.0)
    result = contrast(units, SETTINGS)
    row = as_rows(result, units, SETTINGS)[0]
    assert (row["feature"], row["list"], row["rank"]) == (3, "increase", 1)
    assert row["q"] < 0.05
    assert row["low"] < row["difference"] < row["high"]
    assert row["low"] > 0
    assert row["increase"] == pytest.approx(
        100 * (row["exp"] - row["base"]) / (row["base"] + 1e-6), rel=1e-6
    )


def test_a_feature_that_the_baseline_lacks_has_a_list_of_its_own():
    units = two_sets(plant=1.0, new=3.0)
    result = contrast(units, SETTINGS)
    assert result.kept["absent"] == [5]
    rows = as_rows(result, units, SETTINGS)
    (row,) = [row for row in rows if row["list"] == "absent"]
    assert row["score"] == pytest.approx(row["exp"])
    assert row["share_base"] == 0
    assert row["share_exp"] == 1


def test_noise_comes_out_empty_and_the_message_counts():
    units = two_sets()
    result = contrast(units, SETTINGS)
    assert as_rows(result, units, SETTINGS) == []
    message = why_none(result)
    assert "of 64, removed were 1 by never active" in message
    assert f"{result.removed['q > 0.05']} by q > 0.05" in message
    assert sum(result.removed.values()) == 64
    assert message in notes(result, units, SETTINGS)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_every_aggregate_sees_the_plant(aggregate):
    settings = dataclasses.replace(SETTINGS, aggregate=aggregate)
    n, generator = 16, torch.Generator().manual_seed(0)
    passages = noise(2 * n, 32, generator)
    for acts in passages[n:]:
        acts[[0, 4, 11], 3] += 6.0
        acts[:, 3] += 0.1
    units = make_units(
        summaries_of(passages), [str(i) for i in range(2 * n)], [False] * n + [True] * n
    )
    assert contrast(units, settings).kept["increase"][:1] == [3]


def test_a_feature_that_one_text_alone_lifts_is_no_increase_once_it_is_trimmed():
    n = 24
    passages = [torch.full((3, 4), 1.0) for _ in range(2 * n)]
    for acts in passages[n:]:
        acts[:, 2] = 0.9
        acts[:, 3] = 2.0
    passages[-1][:, 2] = 10.0
    groups = [str(i) for i in range(2 * n)]
    units = make_units(summaries_of(passages), groups, [False] * n + [True] * n)
    kept = {}
    for trim in (0.0, 0.05):
        settings = dataclasses.replace(SETTINGS, trim=trim, max_q=1)
        kept[trim] = contrast(units, settings).kept["increase"]
    assert kept == {0.0: [3, 2], 0.05: [3]}


def test_the_trimmed_mean_is_scipys():
    from scipy.stats import trim_mean

    values = torch.randn(43, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(trim_mean(values.numpy(), 0.05, axis=0))
    torch.testing.assert_close(trimmed_mean(values, 0.05), expected)
    assert torch.equal(trimmed_mean(values, 0.01), values.mean(0))  # int(0.43) is none


def test_texts_of_one_question_are_one_unit():
    acts = [torch.full((2, 3), float(i)) for i in range(1, 11)]
    groups = ["q1", "q1", "q2", "q3", "q4", "q1", "q2", "q3", "q4", "q5"]
    units = make_units(summaries_of(acts), groups, [False] * 5 + [True] * 5)
    values = units.values(units.summaries.dense("mean"))
    assert values[:, 0].tolist() == [1.5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert units.design.pairs.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    ("exp", "message"),
    [
        ([False] * 6, "the experiment set is empty"),
        ([False, False, False, True, True, True], "the baseline set has 3 .* 4 are needed"),
    ],
)
def test_too_few_texts_are_refused(exp, message):
    acts = [torch.rand(3, 4) for _ in exp]
    with pytest.raises(FeatureError, match=message):
        make_units(summaries_of(acts), [str(i) for i in range(len(exp))], exp)


def test_a_set_without_a_token_that_counts_is_refused():
    acts = [torch.rand(3, 4) for _ in range(4)] + [torch.rand(0, 4) for _ in range(4)]
    with pytest.raises(FeatureError, match="none of its 4 texts has a token that counts"):
        make_units(summaries_of(acts), list("abcdefgh"), [False] * 4 + [True] * 4)


def test_lengths_that_differ_are_told():
    generator = torch.Generator().manual_seed(0)
    acts = noise(6, 8, generator, tokens=10) + noise(6, 8, generator, tokens=30)
    units = make_units(summaries_of(acts), list("abcdefghijkl"), [False] * 6 + [True] * 6)
    result = contrast(units, SETTINGS)
    assert facts(result, units)["exp"]["mean_tokens"] == 30
    assert any("differ in length (10 tokens" in note for note in notes(result, units, SETTINGS))


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"aggregate": "sum"}, "sum"), ({"trim": 0.5}, "trim"), ({"permutations": 3}, "permut")],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(FeatureError, match=message):
        ContrastSettings(**setting)


# -- on a model ---------------------------------------------------------------------------------


def passages_of(subject, texts, **counting):
    settings = Counting(**{"part": "all", **counting})
    return [
        make_passage(Example(group=str(i), final=text), subject.tokenizer, settings)
        for i, text in enumerate(texts)
    ]


def same(a, b):
    return all(torch.equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())


def test_each_summary_is_that_of_its_passage_alone(subject):
    passages = passages_of(subject, ["the answer is in here", "an error", "the end of it", "there"])
    together = collect(subject, passages)
    for i, passage in enumerate(passages):
        real = torch.ones(1, len(passage.ids), dtype=torch.bool)
        resid = read_padded(subject.model, subject.hook_point, passage.ids[None], real)[0]
        special = torch.isin(passage.ids, torch.tensor(subject.special_ids))
        keep = passage.counted & ~special & (resid.norm(dim=-1) <= subject.limit)
        acts = subject.sae.encode(resid[keep])
        assert int(together.tokens[i]) == len(acts)
        for name, expected in (
            ("mean", acts.mean(0)),
            ("last", acts[-1]),
            ("max", acts.amax(0)),
            ("active", (acts > 0).float().mean(0)),
        ):
            torch.testing.assert_close(together.dense(name)[i], expected, atol=1e-5, rtol=1e-4)


def test_long_passages_are_encoded_in_pieces(subject, monkeypatch):
    passages = passages_of(subject, ["the answer is in here, " * 5, "an error"])
    whole = collect(subject, passages)
    monkeypatch.setattr("interventions.features.aggregate._ENCODED_VALUES", 7 * D_SAE)
    pieces = collect(subject, passages)
    assert torch.equal(whole.features, pieces.features)
    torch.testing.assert_close(whole.values, pieces.values)


def test_what_padding_holds_changes_nothing_bit_for_bit(subject):
    ids = torch.randint(3, 200, (3, 9), generator=torch.Generator().manual_seed(0))
    real = torch.arange(9) < torch.tensor([[9], [6], [4]])
    found = []
    for content in (0, 77, 199):
        tokens = torch.where(real, ids, content)
        resid = read_padded(subject.model, subject.hook_point, tokens, real)
        found.append([summarise([subject.sae.encode(resid[i][real[i]])]) for i in range(3)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a.features, b.features)
            assert torch.equal(a.values, b.values)


def test_what_stands_at_bos_and_sinks_changes_nothing_bit_for_bit(subject, monkeypatch):
    from interventions.features import aggregate

    passages = passages_of(subject, ["the answer is in here", "an error", "the end"])
    original = aggregate.read_residuals
    found = []
    for garbage in (None, 1e9, float("nan")):

        def read(*arguments, garbage=garbage, **more):
            for batch in original(*arguments, **more):
                if garbage is not None:
                    resid = batch.resid.clone()
                    resid[batch.tokens == 0] = garbage  # BOS, and what stands in the padding
                    batch = dataclasses.replace(batch, resid=resid)
                yield batch

        monkeypatch.setattr(aggregate, "read_residuals", read)
        found.append(collect(subject, passages))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert found[0].left_out.tolist() == [0, 0, 0]  # BOS belongs to no part


def test_a_run_that_was_killed_goes_on_to_the_same_figures(subject, tmp_path, monkeypatch):
    from interventions.features import aggregate

    passages = passages_of(subject, [f"the {i} answer is in here" for i in range(9)])
    whole = collect(subject, passages)
    monkeypatch.setattr(aggregate, "_AT_ONCE", 2)
    monkeypatch.setattr(aggregate.Checkpoint, "due", True)
    original, calls = aggregate._read, []

    def read(*arguments):
        calls.append(len(arguments[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(aggregate, "_read", read)
    with pytest.raises(KeyboardInterrupt):
        collect(subject, passages, folder=tmp_path / "run")
    assert same(collect(subject, passages, folder=tmp_path / "run"), whole)
    assert calls == [2, 2, 2, 2, 2, 1]  # two blocks were not read again
    with pytest.raises(FeatureError, match="other settings"):
        collect(subject, passages[:3], folder=tmp_path / "run")


def test_a_planted_direction_is_found_through_the_model(subject):
    base = [f"an {word} in the {i} end" for i, word in enumerate(["error", "inner", "other"] * 6)]
    exp = [text + " ?!" for text in base]
    rows = [passages_of(subject, texts) for texts in (base, exp)]
    means = []
    for passages in rows:
        resid = [
            read_padded(
                subject.model, subject.hook_point, p.ids[None], torch.ones(1, len(p.ids)).bool()
            )[0, -1]
            for p in passages
        ]
        means.append(torch.stack(resid).mean(0))
    W_enc, b_enc = subject.sae.W_enc.clone(), subject.sae.b_enc.clone()
    W_enc[:, 7] = 5 * (means[1] - means[0]) / (means[1] - means[0]).norm()
    b_enc[7] = -(W_enc[:, 7] @ (0.6 * means[1] + 0.4 * means[0]))
    sae = dataclasses.replace(subject.sae, W_enc=W_enc, b_enc=b_enc, apply_b_dec_to_input=False)
    planted = dataclasses.replace(subject, sae=sae, guard=None)
    passages = rows[0] + rows[1]
    settings = dataclasses.replace(SETTINGS, aggregate="last")
    units = make_units(
        collect(planted, passages), [p.group for p in passages], [False] * 18 + [True] * 18
    )
    result = contrast(units, settings)
    best = as_rows(result, units, settings)
    both = sorted(best, key=lambda row: -row["difference"])
    assert 7 in {row["feature"] for row in best if row["rank"] == 1}
    assert both[0]["feature"] == 7
    assert len(units.design.pairs) == 18
