"""ReasonScore: its definition, the published algorithm, and what must not change it."""

import dataclasses
import signal
import subprocess
import sys

import pytest
import torch

from interventions.errors import FeatureError
from interventions.features.reason import (
    ReasonSettings,
    ReasonSums,
    add_tokens,
    collect,
)
from interventions.features.reason_scores import as_rows, notes, reason_scores, score
from interventions.features.words import (
    WordGroups,
    around_words,
    read_words,
    word_groups,
)
from interventions.subject import load_subject
from interventions.text.config import parse_text
from tests.interventions.features.reasoning import RollingMeans, open_subject, padded
from tests.tiny_models import make_tokenizer, save_model, save_sae

GROUPS = {"wait": ((11,), (12,)), "but": ((13,),), "let me": ((14, 15), (14, 16, 17))}


def groups(ids=GROUPS):
    return WordGroups({name: tuple(map(str, found)) for name, found in ids.items()}, ids)


def sums_of(subject, batches, settings, words=None, **more):
    words = words or groups()
    sums = ReasonSums.zero(len(words.names), subject.sae.d_sae, settings.blocks, "cpu")
    for batch, document in batches:
        add_tokens(sums, subject, batch, document, words, settings, **more)
    return sums


def some_rows(n=24, d=9, seed=0, low=8, high=40):
    generator = torch.Generator().manual_seed(seed)
    rows, acts, owners = [], [], []
    for i in range(n):
        length = int(torch.randint(low, high, (1,), generator=generator))
        rows.append(torch.randint(5, 22, (length,), generator=generator))
        acts.append(torch.randn(length, d, generator=generator) * 2)
        owners.append(torch.full((length,), i // 2))
    return rows, acts, owners


def as_batch(rows, acts, owners):
    batch = padded(rows, acts)
    document = torch.full(batch.tokens.shape, -2)
    for slot, owner in enumerate(owners):
        document[slot, : len(owner)] = owner
    return batch, document


def test_the_worked_value():
    near, rest = torch.tensor([4.0, 1, 5]).double(), torch.tensor([1.0, 1, 2]).double()
    by_group = torch.tensor([[4.0, 4], [2, 0], [9, 1]]).double()
    found, entropy = reason_scores(near, rest, by_group, 0.7)
    torch.testing.assert_close(entropy, torch.tensor([1, 0, 0.468996]).double(), atol=1e-6, rtol=0)
    want = torch.tensor([0.15, -0.25, -0.205701]).double()
    torch.testing.assert_close(found, want, atol=1e-6, rtol=0)


def test_without_the_penalty_the_score_is_the_difference_of_shares():
    near, rest = torch.tensor([3.0, 1]), torch.tensor([1.0, 1])
    found, _ = reason_scores(near, rest, torch.tensor([[3.0, 0], [1, 0]]), alpha=0)
    torch.testing.assert_close(found, torch.tensor([0.25, -0.25]))


@pytest.mark.parametrize("window", [(1, 2), (0, 0), (3, 1)])
@pytest.mark.parametrize("ignore", [(), (8, 12)])
def test_parity_mode_equals_the_published_rolling_means(window, ignore):
    norms = torch.linspace(0.3, 2.0, 9)
    subject = open_subject(9, norms=norms)
    settings = ReasonSettings(window, ignore, cross_documents=True)
    published = RollingMeans(GROUPS.values(), ignore, window)
    batches = []
    for seed in range(4):
        rows, acts, owners = some_rows(5, seed=seed, low=30, high=31)
        batches.append(as_batch(rows, acts, owners))
        published.update(torch.stack(rows), torch.stack(acts).relu() * norms)
    sums = sums_of(subject, batches, settings)
    found = score(sums, groups(), weights=subject.sae.W_dec.norm(dim=-1))
    assert sums.counts.sum(0).tolist() == published.counts
    assert min(published.counts) > 0
    torch.testing.assert_close(
        found.score, published.scores(0.7).double(), atol=1e-6, rtol=0
    )  # fmt: skip
    # In SAE units it is another ranking: the test would notice.
    assert (score(sums, groups()).score - published.scores(0.7)).abs().max() > 1e-3


def test_batch_size_padding_and_chunks_change_nothing():
    rows, acts, owners = some_rows()
    subject = open_subject(9, guard=3.0, median=2.0)
    settings = ReasonSettings(ignore=(8,))
    whole = sums_of(subject, [as_batch(rows, acts, owners)], settings)
    each = [as_batch([r], [a], [o]) for r, a, o in zip(rows, acts, owners, strict=True)]
    alone = sums_of(subject, each, settings, chunk_elements=64 * 9)
    assert int(whole.skipped) > 20
    for name in ("counts", "hits", "active", "largest", "skipped", "tokens"):
        assert torch.equal(getattr(whole, name), getattr(alone, name)), name
    a, b = score(whole, groups()), score(alone, groups())
    torch.testing.assert_close(a.score, b.score, atol=1e-7, rtol=0)
    assert a.error is not None
    torch.testing.assert_close(a.error, b.error, atol=1e-7, rtol=0)


def test_an_even_feature_is_first_a_one_word_feature_gets_nothing_and_constants_score_zero():
    d = 6
    subject = open_subject(d)
    rows, acts = [], []
    for i in range(30):
        ids = torch.full((40,), 20)
        ids[10], ids[20] = (11, 12)[i % 2], 13
        ids[30], ids[31] = 14, 15
        a = torch.ones(40, d)
        a[:, 0] = 0.0
        for start, stop in ((9, 13), (19, 23), (29, 34)):
            a[start:stop, 0] = 2.0  # all groups alike
        a[:, 1] = 0.0
        a[19:23, 1] = 2.0  # `but` alone
        rows.append(ids)
        acts.append(a)
    owners = [torch.full((40,), i) for i in range(30)]
    sums = sums_of(subject, [as_batch(rows, acts, owners)], ReasonSettings())
    found = score(sums, groups())
    assert int(found.score.argmax()) == 0
    assert as_rows(found, sums, groups(), most=1)[0]["feature"] == 0
    torch.testing.assert_close(found.entropy[0], torch.tensor(1.0).double())
    assert float(found.entropy[1]) == 0
    assert float(found.score[1]) <= 0
    constant = open_subject(4)
    flat = sums_of(
        constant,
        [as_batch(rows, [torch.ones(40, 4) * torch.arange(1.0, 5)] * 30, owners)],
        ReasonSettings(),
    )
    torch.testing.assert_close(
        score(flat, groups()).score, torch.zeros(4).double(), atol=1e-6, rtol=0
    )


def test_windows_end_with_rows_and_documents_and_words_do_not_span_documents():
    tokens = torch.tensor([[11, 20, 20, 20, 14, 15, 20, 11]])
    document = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2]])
    near, hits = around_words(groups(), tokens, document, (1, 2))
    # 14 15 lies across two documents and is no `let me`.
    assert hits.tolist() == [2, 0, 0]
    assert near[0, 0].tolist() == [True, True, False, False, False, False, True, True]
    near, hits = around_words(groups(), tokens, torch.zeros_like(document), (1, 2))
    assert hits.tolist() == [2, 0, 2]
    assert near[0, 0].tolist() == [True, True, True, False, False, False, True, True]
    assert near[2, 0].tolist() == [False, False, False, True, True, True, True, True]
    shorter, none = around_words(
        groups({"x": ((1, 2, 3),)}), tokens[:, :2], document[:, :2], (1, 2)
    )
    assert not shorter.any()
    assert none.tolist() == [0]


def test_padding_is_no_word_even_where_its_id_is_one():
    words = groups({"zero": ((0,),), "but": ((13,),)})
    rows = [torch.tensor([0, 20, 20, 20, 13]), torch.tensor([20] * 9)]
    batch = as_batch(
        rows, [torch.ones(len(r), 3) for r in rows], [torch.zeros(len(r)) for r in rows]
    )
    sums = sums_of(open_subject(3), [(batch[0], batch[1].long())], ReasonSettings(), words)
    assert sums.hits.tolist() == [1, 1]
    assert sums.counts.sum(0).tolist() == [3, 2, 5, 9]


def test_the_jackknife_leaves_out_one_block_at_a_time():
    rows, acts, owners = some_rows(12)
    subject = open_subject(9)
    settings = ReasonSettings(blocks=3)
    found = score(sums_of(subject, [as_batch(rows, acts, owners)], settings), groups())
    left_out = []
    for block in range(3):
        keep = [i for i in range(12) if int(owners[i][0]) % 3 != block]
        some = as_batch(*([x[i] for i in keep] for x in (rows, acts, owners)))
        left_out.append(score(sums_of(subject, [some], settings), groups()).score)
    each = torch.stack(left_out)
    want = ((each - each.mean(0)) ** 2).sum(0).mul(2 / 3).sqrt()
    assert found.blocks == 3
    torch.testing.assert_close(found.error, want, atol=1e-7, rtol=0)


def test_one_document_has_no_standard_error():
    rows, acts, _ = some_rows(1, high=41, low=40)
    sums = sums_of(
        open_subject(9), [as_batch(rows, acts, [torch.zeros(40).long()])], ReasonSettings()
    )
    found = score(sums, groups(), drop_missing=True)
    assert found.error is None
    assert "error" not in as_rows(found, sums, groups())[0]


def test_groups_that_never_occur_are_said_and_can_be_left_out():
    words = groups({**GROUPS, "hmm": ((99,),)})
    rows, acts, owners = some_rows()
    sums = sums_of(open_subject(9), [as_batch(rows, acts, owners)], ReasonSettings(), words)
    assert notes(sums, words)[0].startswith("no token near hmm: each lowers every entropy")
    low, high = score(sums, words), score(sums, words, drop_missing=True)
    assert bool((low.entropy < high.entropy).all())
    three = sums_of(open_subject(9), [as_batch(rows, acts, owners)], ReasonSettings())
    torch.testing.assert_close(high.score, score(three, groups()).score)
    assert notes(three, groups(), few=10**6)[0].startswith("few tokens near wait (")


def test_a_text_without_words_or_with_nothing_else_is_refused():
    rows = [torch.full((20,), 20)]
    batch = as_batch(rows, [torch.ones(20, 3)], [torch.zeros(20).long()])
    sums = sums_of(open_subject(3), [batch], ReasonSettings())
    with pytest.raises(FeatureError, match="no token is near a word of wait, but, let me in 20"):
        score(sums, groups())
    batch = as_batch([torch.full((20,), 11)], [torch.ones(20, 3)], [torch.zeros(20).long()])
    with pytest.raises(FeatureError, match="every token is near a word"):
        score(sums_of(open_subject(3), [batch], ReasonSettings()), groups())


def test_signed_activations_and_impossible_settings_are_refused():
    subject = open_subject(3, architecture="abstopk")
    with pytest.raises(FeatureError, match="abstopk SAE, whose activations may be negative"):
        collect(subject, parse_text({"sources": [{"path": "x.txt"}]}), groups(), ReasonSettings())
    with pytest.raises(FeatureError, match="window"):
        ReasonSettings(window=(-1, 2))
    with pytest.raises(FeatureError, match="0 blocks"):
        ReasonSettings(blocks=0)


def test_word_lists_come_from_yaml_or_the_published_list(tmp_path):
    default = read_words()
    assert sum(map(len, default.values())) == 34
    assert list(default) == [
        "alternatively", "hmm", "maybe", "wait", "perhaps", "let me", "therefore", "however",
        "but", "another",
    ]  # fmt: skip
    flat = tmp_path / "flat.json"
    flat.write_text('["wait", " Wait", "But"]')
    assert read_words(flat) == {"wait": ("wait", " Wait"), "but": ("But",)}
    tokenizer = make_tokenizer()
    found = word_groups({"the": ("the", " the"), "let me": ("let me",)}, tokenizer)
    assert [len(ids) for ids in found.ids["the"]] == [1, 1]
    assert len(found.ids["let me"][0]) > 3
    with pytest.raises(FeatureError, match="same tokens in the groups 'a' and 'b'"):
        word_groups({"a": ("the",), "b": ("the",)}, tokenizer)
    with pytest.raises(FeatureError, match="has no token"):
        word_groups({"a": ("",)}, tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no: [no, yes]", "group 'False' is"),
        ("wait: wait", "give a list of strings"),
        ("[]", "holds no groups"),
        ("just text", "holds no groups"),
        ("{a: [", "cannot be read"),
    ],
)
def test_bad_word_lists_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "words.yaml"
    path.write_text(text)
    with pytest.raises(FeatureError, match=message) as caught:
        read_words(path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder / "model")
    save_sae(folder / "sae", median_norm=5.0)
    lines = [f"the wait {i}. But let me see in the end, wait an hour\n" * 3 for i in range(300)]
    (folder / "text.jsonl").write_text(
        "".join(f'{{"text": {line!r}}}\n'.replace("'", '"') for line in lines)
    )
    return folder


def tiny_pass(folder, run, **more):
    subject = load_subject(str(folder / "model"), str(folder / "sae"))
    text = parse_text({"sources": [{"path": str(folder / "text.jsonl")}], "context": 64})
    words = word_groups({"wait": ("wait",), "but": ("But",)}, subject.tokenizer)
    return collect(subject, text, words, ReasonSettings(), folder=run, every=0.0, **more), words


KILLED = """
import os, pathlib, signal, sys
from interventions.features.checkpoint import Checkpoint
from tests.interventions.features.test_reason import tiny_pass
save = Checkpoint.save
def once(self, sums, **more):
    written = save(self, sums, **more)
    if int(sums["rows"]) >= 256:
        os.kill(os.getpid(), signal.SIGKILL)
    return written
Checkpoint.save = once
tiny_pass(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


def test_a_killed_pass_goes_on_and_ends_with_the_same_bits(tiny, tmp_path, repo_root):
    whole, words = tiny_pass(tiny, None)
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny), str(tmp_path / "run")],
        cwd=repo_root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    resumed, _ = tiny_pass(tiny, tmp_path / "run")
    assert int(resumed.rows) == int(whole.rows) > 256
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name
    assert int(whole.counts.sum()) > 0
    # Done: a third call reads no text at all.
    (tmp_path / "moved").mkdir()
    again, _ = tiny_pass(tiny, tmp_path / "run")
    assert torch.equal(again.sums, whole.sums)
    assert torch.isfinite(score(whole, words).score).all()


def test_sums_of_other_settings_are_not_taken(tiny, tmp_path):
    tiny_pass(tiny, tmp_path / "run")
    subject = load_subject(str(tiny / "model"), str(tiny / "sae"))
    text = parse_text({"sources": [{"path": str(tiny / "text.jsonl")}], "context": 64})
    words = word_groups({"wait": ("wait",), "but": ("But",)}, subject.tokenizer)
    other = dataclasses.replace(ReasonSettings(), window=(0, 0))
    with pytest.raises(FeatureError, match="holds files of other settings"):
        collect(subject, text, words, other, folder=tmp_path / "run")
