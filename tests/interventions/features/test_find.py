"""Searching facts: conditions hold, what they removed is told, the result can be steered."""

import json

import pytest
import yaml

from interventions.errors import FeatureError, SAEError, SAENotFoundError, SpecError
from interventions.features.facts import collect
from interventions.features.facts_store import FactStore
from interventions.features.find import Query, find, parse_tokens, ranking, read_rankings
from interventions.features.running import FactSettings
from interventions.features.scored import write_scored, write_spec
from interventions.plan import ModelFacts, make_plan
from interventions.spec_io import load_spec
from tests.interventions.features.facts_cases import make_subject, make_text
from tests.tiny_models import D_MODEL, N_LAYERS


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module")
def store(subject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    return collect(subject, make_text(folder), folder / "f", FactSettings(window=4))


def test_words_ignore_case_and_spaces_and_expressions_do_not(tmp_path):
    vocabulary = [" the", "The", "then", " wait", "\n\n", "the\n"]
    assert parse_tokens(["THE"]).ids(vocabulary) == {0, 1, 5}
    assert parse_tokens(["/^ /"]).ids(vocabulary) == {0, 3}
    assert parse_tokens(["/\n+$/", "wait"]).ids(vocabulary) == {3, 4, 5}
    listed = tmp_path / "words.txt"
    listed.write_text("# words of doubt\nwait\n\n/^th/\n")
    assert parse_tokens([f"@{listed}"]).ids(vocabulary) == {2, 3, 5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["/(/"], "is no regular expression"),
        ([" "], "no word or expression"),
        (["@/nowhere/words.txt"], "cannot be read"),
    ],
)
def test_tokens_that_mean_nothing_are_refused(given, message):
    with pytest.raises(FeatureError, match=message):
        parse_tokens(given)


@pytest.mark.parametrize(
    ("condition", "column"),
    [("promotes", "promoted"), ("suppresses", "suppressed"), ("activates_on", "top_tokens")],
)
def test_a_token_is_looked_for_among_the_first_of_a_list(store, condition, column):
    wanted = {
        f for f in range(store.d_sae)
        if any(t.text.strip() == "t" for t in getattr(store.feature(f), column)[:4])
    }  # fmt: skip
    found = find(store, Query(**{condition: parse_tokens(["t"])}, top=4))
    assert {row["feature"] for row in found.features} == wanted
    assert 0 < len(wanted) < store.d_sae
    assert found.removed[condition.replace("_", " ")] == store.d_sae - len(wanted)
    scores = [row["score"] for row in found.features]
    assert scores == sorted(scores, reverse=True)
    first = store.feature(found.features[0]["feature"])
    match = next(t for t in getattr(first, column) if t.text.strip() == "t")
    assert scores[0] == pytest.approx(abs(match.value))


def test_mostly_on_sums_the_shares_of_the_sample(store):
    query = Query(mostly_on=parse_tokens(["/[a-z]/"]), share=0.7, sort="density", ascending=True)
    found = find(store, query)
    for row in found.features:
        tokens = store.feature(row["feature"]).frequent_tokens
        share = sum(t.share for t in tokens if any("a" <= c <= "z" for c in t.text))
        assert row["share"] == pytest.approx(share)
        assert share >= 0.7
    density = [row["density"] for row in found.features]
    assert density == sorted(density)


def test_when_nothing_passes_the_conditions_are_named_with_what_they_removed(store):
    query = Query(density=(0.0, 1.0), max_act=(1e6, None), promotes=parse_tokens(["the"]))
    with pytest.raises(FeatureError, match=r"no feature of 48 passes: `max_act >= 1e\+06` removed"):
        find(store, query)


def test_what_was_not_measured_is_not_searched(store, subject, tmp_path):
    with pytest.raises(FeatureError, match=r"no measured effects; .* --causal"):
        find(store, Query(makes=parse_tokens(["the"])))
    with pytest.raises(FeatureError, match=r"no injection verdicts; .* --inject"):
        find(store, Query(verdict="token"))
    bare = collect(subject, make_text(tmp_path), tmp_path / "f", FactSettings(lens=0, sample=4))
    with pytest.raises(FeatureError, match="without a logit lens"):
        find(bare, Query(promotes=parse_tokens(["the"])))


def test_rankings_are_merged_and_those_of_another_sae_refused(store, tmp_path):
    found = find(store, Query(sort="density"))
    half = ranking(store, type(found)(found.features[:10]), {})
    write_scored(tmp_path / "a.json", half)
    write_scored(tmp_path / "b.json", ranking(store, type(found)(found.features[5:20]), {}))
    scores = read_rankings(store, [tmp_path / "a.json", tmp_path / "b.json"])
    both = find(store, Query(scores=scores))
    assert {r["feature"] for r in both.features} == {r["feature"] for r in found.features[5:10]}
    assert all(row["a"] == row["b"] == row["score"] for row in both.features)
    other = json.loads((tmp_path / "a.json").read_text())
    other["subject"]["sae_hash"] = "00" * 32
    (tmp_path / "c.json").write_text(json.dumps(other))
    with pytest.raises(FeatureError, match="give a ranking of the same SAE"):
        read_rankings(store, [tmp_path / "c.json"])


def facts_of_model() -> ModelFacts:
    return ModelFacts("tiny", D_MODEL, N_LAYERS)


def test_what_is_found_can_be_steered_and_max_act_comes_from_the_facts(store, subject, tmp_path):
    found = find(store, Query(activates_on=parse_tokens(["t"])))
    write_spec(tmp_path / "best.yaml", ranking(store, found, {}))
    best = found.features[0]
    by_number = make_plan(load_spec(tmp_path / "best.yaml"), facts_of_model())
    spec = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert spec["edits"][0]["max_act"] == best["max_act"]
    del spec["edits"][0]["max_act"]
    with pytest.raises(SAEError, match="needs the feature's maximum"):
        make_plan(load_spec(spec), facts_of_model())
    spec["sae"]["facts"] = str(store.folder)
    from_facts = make_plan(load_spec(spec), facts_of_model())
    assert from_facts.fingerprint == by_number.fingerprint


def test_facts_of_another_sae_are_refused_by_a_spec(store, tmp_path):
    other = make_subject(tmp_path, seed=7)
    edit = {"feature": 3, "strength": 1.0}
    spec = {"sae": {"path": other.sae_ref.path, "facts": str(store.folder)}, "edits": [edit]}
    with pytest.raises(SAEError, match="are of another SAE"):
        make_plan(load_spec(spec), facts_of_model())
    spec["sae"]["facts"] = str(tmp_path)
    with pytest.raises(SAENotFoundError, match="name a folder that `sae-steered facts` made"):
        make_plan(load_spec(spec), facts_of_model())


def test_a_server_reads_facts_only_where_it_was_told_to(store, subject):
    from interventions.backends.vllm.access import check_saes
    from interventions.spec import SAERef

    plain = SAERef(path=subject.sae_ref.path)
    asked = plain.model_copy(update={"facts": str(store.folder)})
    edit = {"feature": 3, "strength": 1.0}
    spec = load_spec({"sae": asked.model_dump(exclude_none=True), "edits": [edit]})
    with pytest.raises(SpecError, match="does not read `facts`"):
        check_saes(spec, [plain])
    check_saes(spec, [asked])


def test_opening_reads_nothing_but_info(store):
    opened = FactStore.open(store.folder)
    assert "features" not in opened.__dict__
    assert opened.subject["sae_hash"] == store.subject["sae_hash"]
