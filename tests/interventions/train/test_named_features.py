import pytest
import torch
from transformers import AutoTokenizer

from interventions.hook_points import HookPoint
from interventions.train.export import calibrated, fold, save_saelens
from interventions.train.files import read_tensors
from interventions.train.generate import chat_tokens
from interventions.train.harvest import _write_chunk, residuals
from interventions.train.named_features import (
    PROMPTS,
    Answers,
    Lab,
    clamp,
    measure,
    rank_features,
    token_classes,
)
from interventions.train.pipeline import load_trained
from interventions.train.stats import feature_stats, firing
from interventions.train.trainer import Dictionary


@pytest.fixture
def setup(tiny_model, tiny_model_dir, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 250, (n,), generator=generator) for n in (40, 25, 60)]
    resid = residuals(tiny_model, HookPoint(1), rows, 256)
    path = tmp_path / "train_00000.safetensors"
    _write_chunk(path, rows, resid)
    w_dec = torch.randn(48, 32, generator=generator)
    w_dec /= w_dec.norm(dim=-1, keepdim=True)
    start = Dictionary(w_dec.T.contiguous(), torch.zeros(48), w_dec, resid.mean(0), 1.0)
    folded = calibrated(fold(start, torch.float32), resid, 6)
    meta = {"model_name": "m", "median_norm": float(resid.norm(dim=-1).median())}
    folder = save_saelens(tmp_path / "sae", folded, HookPoint(1), meta).parent
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    return tiny_model, tokenizer, folder, path


def test_classes_hold_what_their_names_say(setup):
    tokenizer = setup[1]
    classes = token_classes(tokenizer)
    for name, text in (("digit", "7"), ("question mark", "?"), ("I", "i"), ("new line", "\n")):
        assert classes[name][tokenizer.encode(text)[0]]
    assert classes["digit"].sum() == 10
    assert not any(members[:3].any() for members in classes.values())  # special tokens


def test_ranks_equal_a_loop_over_tokens(setup):
    _, tokenizer, folder, path = setup
    sae = load_trained(folder)
    stored = read_tensors(path)
    limit = float(stored["norms"].sort().values[-4])  # three tokens count as sinks
    known = token_classes(tokenizer)
    everything = torch.zeros(len(tokenizer), dtype=torch.bool)
    everything[100:180] = True
    classes = {"digit": known["digit"], "high": everything, "music": everything}
    found = rank_features(sae, [path], classes, limit)
    acts = sae.encode(stored["acts"].float())
    ends = set((stored["lengths"].cumsum(0) - 1).tolist())
    tokens = stored["tokens"].tolist()
    for name, members in classes.items():
        offset = 0 if name == "music" else 1  # topics are ranked by the token itself
        share, total = torch.zeros(48), torch.zeros(48)
        for i in range(len(tokens)):
            if i in ends or stored["norms"][i] > limit:
                continue
            total += acts[i]
            share += acts[i] * float(members[tokens[i + offset]])
        torch.testing.assert_close(found[name], share / total.clamp(min=1e-6))


def test_distinct_bigrams_and_rate_by_hand():
    answers = Answers(torch.tensor([[1, 2, 1, 2, 1], [1, 2, 3, 4, 5]]), 0.0)
    assert answers.distinct_2() == pytest.approx((2 / 4 + 4 / 4) / 2)
    members = torch.tensor([False, True, False, False, True, False])
    assert answers.rate(members) == pytest.approx((3 + 2) / 10)


def test_unsteered_answers_are_those_of_plain_greedy_decoding(setup):
    model, tokenizer, folder, _ = setup
    lab = Lab(model, tokenizer, folder, new_tokens=12)
    found = lab.answers(None)
    for prompt in (0, 7):
        ids = torch.tensor([chat_tokens(tokenizer, PROMPTS[prompt])])
        alone = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            suppress_tokens=[2],
        )
        assert found.tokens[prompt].tolist() == alone[0, ids.shape[1] :].tolist()


def test_controls_are_live_others_and_the_same_on_every_call(setup):
    model, tokenizer, folder, path = setup
    sae = load_trained(folder)
    acts = read_tensors(path)["acts"]
    stats = feature_stats(firing(sae.encode, acts, lambda _: None))
    stats["count"][11] = 0
    feature = int(stats["max_act"].argmax())
    lab = Lab(model, tokenizer, folder, new_tokens=8)
    members = token_classes(tokenizer)["digit"]
    first = measure(lab, feature, members, stats, 1.5)
    assert first == measure(lab, feature, members, stats, 1.5)
    assert first["measured"]["value"] == pytest.approx(1.5 * float(stats["max_act"].max()))
    assert feature not in first["random_control"]["features"]
    assert 11 not in first["random_control"]["features"]
    base, steered = lab.answers(None), lab.answers(clamp(feature, first["measured"]["value"]))
    assert not torch.equal(base.tokens, steered.tokens)
