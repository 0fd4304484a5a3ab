"""Facts are those of a plain loop over the text, whatever batches and interruptions there were."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from interventions.errors import FeatureError
from interventions.features import facts
from interventions.features.facts import collect
from interventions.features.facts_store import FactStore
from interventions.features.running import FactSettings, Running
from tests.interventions.features.facts_cases import every_activation, make_subject, make_text

SETTINGS = FactSettings(top=4, sample=12, per_quantile=1, window=5, tokens=6, strongest=8, lens=5)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    # A guard that calls some tokens sinks.
    return make_subject(tmp_path_factory.mktemp("subject"), guard=0.9)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def store(subject, text, tmp_path_factory):
    return collect(subject, text, tmp_path_factory.mktemp("facts") / "f", SETTINGS)


@pytest.fixture(scope="module")
def rows(subject, text):
    return every_activation(subject, text)


def test_statistics_are_those_of_a_plain_loop(store, subject, text, rows):
    acts = torch.cat([acts for _, acts in rows])
    counted = store.info["tokens"]
    assert 0 < store.info["sinks"] < store.info["read"] == len(acts)
    assert counted == store.info["read"] - store.info["sinks"]
    for f in range(store.d_sae):
        found, column = store.feature(f), acts[:, f]
        fired = column[column > 0]
        assert found.count == len(fired) == sum(found.histogram.counts)
        assert found.density == pytest.approx(len(fired) / counted, rel=1e-6)
        if len(fired):
            assert found.max_act == pytest.approx(float(fired.max()), rel=1e-5)
            assert found.mean_act == pytest.approx(float(fired.mean()), rel=1e-4)
            assert found.p999 == found.max_act  # fewer than a thousand firings


def test_histogram_bins_hold_what_lies_between_their_edges(store, rows):
    acts = torch.cat([acts for _, acts in rows])
    found = store.feature(3).histogram
    column = acts[:, 3][acts[:, 3] > 0]
    edges = torch.tensor(found.edges)
    expected = [int(((column >= a) & (column < b)).sum()) for a, b in pairwise(edges)]
    assert found.counts == expected
    assert found.counts[0] > 0
    assert found.counts[-1] > 0


def test_p999_is_read_from_the_histogram_to_nine_percent():
    values = torch.rand(50_000, generator=torch.Generator().manual_seed(0)) ** 3 * 7 + 1e-3
    running = Running.empty(1, SETTINGS, torch.device("cpu"))
    acts = values.reshape(50, 1000, 1)
    numbers = torch.arange(50)
    tokens = torch.zeros(50, 1000, dtype=torch.long)
    running._take(acts, tokens, tokens == 0, numbers)
    running.sums["tokens"] += 50_000
    found = float(facts.statistics(running)["p999"])
    exact = float(values.sort().values[int(0.999 * 49_999)])
    assert abs(found / exact - 1) < 0.09


def test_top_contexts_are_the_strongest_rows_with_their_own_activations(store, rows):
    peaks = [(float(acts[:, 3].max()), n) for n, (_, acts) in enumerate(rows)]
    best = sorted((p for p in peaks if p[0] > 0), key=lambda p: -p[0])[:4]
    top = [c for c in store.contexts(3) if c.kind == "top"]
    assert [c.row for c in top] == [n for _, n in best]
    for context in store.contexts(3):
        ids, acts = rows[context.row]
        start = context.position - context.center
        part = slice(start, start + len(context.ids))
        assert context.ids == ids[part].tolist()
        assert context.acts == pytest.approx(acts[part, 3].tolist(), abs=1e-5)
        assert context.acts[context.center] == pytest.approx(context.value, abs=1e-5)
        assert len(context.ids) <= 11


def test_quantiles_rise_and_share_no_row_with_the_top(store):
    for f in range(store.d_sae):
        contexts = store.contexts(f)
        top = {c.row for c in contexts if c.kind == "top"}
        rest = [c for c in contexts if c.kind != "top"]
        assert not top & {c.row for c in rest}
        values = [c.value for c in rest]
        assert values == sorted(values)
        assert [c.kind for c in rest] == sorted(c.kind for c in rest)


def test_the_sample_is_uniform_over_firings():
    # One feature whose activation is the number of the token: sampled firings must be spread.
    running = Running.empty(1, FactSettings(sample=500, window=1), torch.device("cpu"))
    acts = (torch.arange(20_000).float() + 1).reshape(20, 1000, 1)
    tokens = torch.zeros(20, 1000, dtype=torch.long)
    running._take(acts, tokens, tokens == 0, torch.arange(20))
    drawn = running.sample.payload["value"][0] / 20_000
    assert abs(float(drawn.mean()) - 0.5) < 4 * (1 / 12 / 500) ** 0.5
    # Kolmogorov-Smirnov at one in a thousand.
    gap = (drawn.sort().values - torch.arange(1, 501) / 500).abs().max()
    assert float(gap) < 1.95 / 500**0.5


def test_tokens_are_those_with_the_largest_activations(store, rows):
    largest = {}
    for ids, acts in rows:
        for token, value in zip(ids.tolist(), acts[:, 5].tolist(), strict=True):
            if value > 0:
                largest[token] = max(value, largest.get(token, 0.0))
    best = sorted(largest, key=lambda t: -largest[t])[:6]
    found = store.feature(5).top_tokens
    assert [t.id for t in found] == best
    assert [t.value for t in found] == pytest.approx([largest[t] for t in best], rel=1e-5)


def test_frequent_tokens_and_cofiring_count_the_whole_sample_when_it_holds_every_firing(
    subject, text, tmp_path, rows
):
    everything = FactSettings(sample=2000, top=1, strongest=48, tokens=300, cofiring=48, lens=0)
    store = collect(subject, text, tmp_path / "all", everything)
    ids = torch.cat([ids for ids, _ in rows])
    acts = torch.cat([acts for _, acts in rows])
    fires = acts > 0
    for f in (3, 17):
        found = store.feature(f)
        for token in found.frequent_tokens:
            here = fires[:, f] & (ids == token.id)
            assert token.share == pytest.approx(float(here.sum() / fires[:, f].sum()), rel=1e-5)
            assert token.mean_act == pytest.approx(float(acts[here, f].mean()), rel=1e-4)
        assert sum(t.share for t in found.frequent_tokens) == pytest.approx(1, abs=1e-5)
        assert len(found.cofiring) > 5
        for other in found.cofiring:
            both = int((fires[:, f] & fires[:, other.feature]).sum())
            assert other.count == both
            share = both / int(fires[:, f].sum())
            base = int(fires[:, other.feature].sum()) / store.info["tokens"]
            assert other.pmi == pytest.approx(float(torch.tensor(share / base).log()), abs=1e-4)
        pmi = [other.pmi for other in found.cofiring]
        assert pmi == sorted(pmi, reverse=True)
        assert store.feature(f).promoted == []


@pytest.mark.parametrize("batch_tokens", [48, 300])
def test_batches_do_not_matter(store, subject, text, tmp_path, batch_tokens):
    other = collect(subject, text, tmp_path / "f", SETTINGS, batch_tokens=batch_tokens)
    for f in range(store.d_sae):
        one, two = store.feature(f), other.feature(f)
        assert one.count == two.count
        assert one.frequent_tokens == pytest.approx(two.frequent_tokens) or [
            (t.id, t.share) for t in one.frequent_tokens
        ] == [(t.id, t.share) for t in two.frequent_tokens]
        assert [(c.row, c.position, c.kind) for c in store.contexts(f)] == [
            (c.row, c.position, c.kind) for c in other.contexts(f)
        ]


def test_a_pass_that_was_stopped_goes_on_to_the_same_bytes(
    subject, text, tmp_path, monkeypatch, store
):
    monkeypatch.setattr(facts, "_ROWS_TOGETHER", 8)
    whole = collect(subject, text, tmp_path / "whole", SETTINGS)
    update, calls = Running.update, []

    def stop(self, *arguments):
        calls.append(self.rows)
        if len(calls) == 4:
            raise KeyboardInterrupt
        update(self, *arguments)

    monkeypatch.setattr(Running, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        collect(subject, text, tmp_path / "cut", SETTINGS, save_every=0)
    stopped = calls[-1]
    assert stopped > 0
    assert not (tmp_path / "cut" / "info.json").exists()
    cut = collect(subject, text, tmp_path / "cut", SETTINGS, save_every=0)
    assert calls[4] >= 8  # rows before were not read again
    for name in ("features.parquet", "contexts.parquet", "stats.safetensors", "info.json"):
        assert (whole.folder / name).read_bytes() == (cut.folder / name).read_bytes(), name
    assert not (tmp_path / "cut" / "partial").exists()


def test_facts_that_are_there_are_not_gathered_again(store, subject, text, monkeypatch):
    monkeypatch.setattr(facts, "gather", None)
    assert collect(subject, text, store.folder, SETTINGS).info == store.info


def test_the_text_is_read_once(store, subject, text, tmp_path, monkeypatch):
    original, calls = facts.rows, []

    def counted(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(facts, "rows", counted)
    again = collect(subject, text, tmp_path / "again", SETTINGS)
    assert len(calls) == 1
    assert again.contexts(3) == store.contexts(3)


def test_a_folder_of_other_facts_is_refused(store, subject, text):
    other = text.model_copy(update={"tokens": 600})
    with pytest.raises(FeatureError, match="holds facts of other text; name another --out"):
        collect(subject, other, store.folder, SETTINGS)


def test_facts_of_a_file_that_has_changed_since_are_refused(subject, tmp_path):
    text = make_text(tmp_path)
    collect(subject, text, tmp_path / "facts", SETTINGS)
    path = Path(str(text.sources[0].path))
    path.write_text(path.read_text() + "\n" + path.read_text().splitlines()[0])
    with pytest.raises(FeatureError, match="holds facts of other text files; name another --out"):
        collect(subject, text, tmp_path / "facts", SETTINGS)


def test_an_sae_that_never_fires_is_refused(text, tmp_path):
    silent = make_subject(tmp_path, guard=1e-6)
    with pytest.raises(FeatureError, match=r"fires at any of 0 tokens \(1\d\d\d read, 1\d\d\d of"):
        collect(silent, text, tmp_path / "f", SETTINGS)


def test_special_tokens_do_not_count(text, tmp_path):
    subject = make_subject(tmp_path)
    with_bos = text.model_copy(update={"bos": True, "context": 24})
    store = collect(subject, with_bos, tmp_path / "f", SETTINGS)
    assert store.info["tokens"] == store.info["read"] - store.info["rows"]
    special = set(subject.special_ids)
    for f in range(store.d_sae):
        assert not special & {t.id for t in store.feature(f).top_tokens}
        for context in store.contexts(f):
            assert not special & set(context.ids[: context.center + 1])


def test_windows_end_where_the_document_ends(tmp_path, text):
    subject = make_subject(tmp_path)
    packed = text.model_copy(update={"pack": "concat", "context": 40})
    store = collect(subject, packed, tmp_path / "f", SETTINGS)
    from interventions.text.rows import rows as rows_of

    known = list(rows_of(packed, subject.tokenizer))
    assert any(len(row.document.unique()) > 1 for row in known)
    for f in range(store.d_sae):
        for c in store.contexts(f):
            start = c.position - c.center
            owners = known[c.row].document[start : start + len(c.ids)]
            assert owners.unique().tolist() == [c.document]


def test_what_is_no_folder_of_facts_is_refused(tmp_path, store):
    with pytest.raises(FeatureError, match=r"holds no facts .* make them with `sae-steered facts"):
        FactStore.open(tmp_path)
    (tmp_path / "info.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(FeatureError, match="facts of version 99, this reads 1"):
        FactStore.open(tmp_path)
    for read in (store.feature, store.contexts):
        with pytest.raises(FeatureError, match=r"feature 48 is outside 0\.\.47"):
            read(48)


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("info.json", '{"version": 1}', lambda store: None),
        ("features.parquet", "PAR1 half of", lambda store: store.column("count")),
        ("contexts.parquet", None, lambda store: store.contexts(3)),
        ("vocabulary.parquet", "", lambda store: store.feature(3)),
        ("causal.json", '{"features', lambda store: store.feature(3)),
        ("injection.json", "{}", lambda store: store.feature(3)),
    ],
)
def test_damaged_facts_are_named_in_one_line(store, tmp_path, name, content, read):
    folder = shutil.copytree(store.folder, tmp_path / "copy")
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(FeatureError, match=f"{name} is damaged or missing") as caught:
        read(FactStore.open(folder))
    assert "\n" not in str(caught.value)


def test_contexts_of_all_features_read_each_part_of_the_file_once(store, tmp_path):
    import pyarrow.parquet

    folder = shutil.copytree(store.folder, tmp_path / "copy")
    table = pyarrow.parquet.read_table(folder / "contexts.parquet")
    pyarrow.parquet.write_table(table, folder / "contexts.parquet", row_group_size=50)
    parts = FactStore.open(folder)
    file, last = parts._context_groups
    groups: list[int] = []

    class Counted:
        def read_row_group(self, group):
            groups.append(group)
            return file.read_row_group(group)

    parts.__dict__["_context_groups"] = (Counted(), last)
    for feature in range(store.d_sae):
        assert parts.contexts(feature) == store.contexts(feature)
    assert groups == list(range(len(last)))
    assert len(groups) > 4


def test_any_parquet_reader_reads_the_files(store):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(store.folder / "contexts.parquet")
    assert table.num_rows == store.info["contexts"]
    assert table["feature"].to_pylist() == sorted(table["feature"].to_pylist())
    assert pyarrow.parquet.read_table(store.folder / "features.parquet").num_rows == store.d_sae
