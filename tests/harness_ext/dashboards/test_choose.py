import json
from pathlib import Path
from typing import Any

import pytest

from harness_ext.dashboards.choose import choose
from interventions.errors import FeatureError
from interventions.features.facts_store import FactStore
from interventions.features.scored import Scored, write_scored
from tests.harness_ext.dashboards.facts_folder import SUBJECT, make_facts


def _scores(path: Path, kind: str, rows: list[dict[str, Any]], **subject: Any) -> Path:
    write_scored(path, Scored(kind, {**SUBJECT, **subject}, None, {}, rows))
    return path


def test_the_largest_come_first_and_silent_ones_not_at_all(store: FactStore) -> None:
    found = choose(store).features
    acts = store.column("max_act")
    assert sorted(found) == [f for f in range(12) if f != 3]
    assert [acts[f] for f in found] == sorted((acts[f] for f in found), reverse=True)
    dense = choose(store, by="density", top=4).features
    densities = store.column("density")
    assert [densities[f] for f in dense] == sorted(densities, reverse=True)[:4]


def test_lists_and_ranges_keep_their_order_and_each_feature_once(store: FactStore) -> None:
    assert choose(store, features="7, 3,5-8,7").features == [7, 3, 5, 6, 8]


def test_scores_give_order_and_rank_of_each_file(store: FactStore, tmp_path: Path) -> None:
    rows = [{"feature": 9, "score": 0.9}, {"feature": 2, "score": 0.5}, {"feature": 4}]
    first = _scores(tmp_path / "a.json", "reason", rows)
    second = _scores(tmp_path / "b.json", "contrast", [{"feature": 2, "score": 7}])
    found = choose(store, scores=[second, first])
    assert found.features == [2, 9]
    assert [score.name for score in found.scores] == ["contrast", "reason"]
    assert found.scores[1].values == {9: 0.9, 2: 0.5}
    assert found.scores[1].ranks == {9: 1, 2: 2, 4: 3}
    assert choose(store, scores=[first], features="0").features == [0]


def test_two_files_of_one_kind_are_told_apart(store: FactStore, tmp_path: Path) -> None:
    row = [{"feature": 1, "score": 1.0}]
    files = [_scores(tmp_path / name, "reason", row) for name in ("a.json", "b.json")]
    names = [score.name for score in choose(store, scores=files).scores]
    assert names == ["reason (a.json)", "reason (b.json)"]


def test_labels_are_read_from_json_and_csv(store: FactStore, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"5": "music"}))
    (tmp_path / "a.csv").write_text('feature,label\n5,"music, song"\n')
    assert choose(store, labels=tmp_path / "a.json").labels == {5: "music"}
    assert choose(store, labels=tmp_path / "a.csv").labels == {5: "music, song"}


@pytest.mark.real
def test_the_default_sae_brings_its_names_and_an_older_one_does_not(tmp_path: Path) -> None:
    from interventions.sae.io import load_sae
    from interventions.spec import SAERef

    subject = {**SUBJECT, "sae": {"default": True}}
    old = FactStore.open(make_facts(tmp_path / "old", subject=subject))
    assert choose(old).labels == {}
    subject["sae_hash"] = load_sae(SAERef(default=True)).content_hash
    new = FactStore.open(make_facts(tmp_path / "new", subject=subject))
    assert choose(new).labels[3036].startswith("music")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "7,12"}, "feature 12 is outside 0..11"),
        ({"features": "0-99999999999"}, "feature 99999999999 is outside 0..11"),
        ({"features": "seven"}, "'seven' is no feature"),
        ({"features": "-3"}, "'-3' is no feature"),
        ({"features": "8-5"}, "write 5-8"),
        ({"features": "1,,2"}, "'' is no feature"),
        ({"top": 0}, "--top 0 shows nothing"),
        ({"by": "beauty"}, "choose max_act, density"),
    ],
)
def test_choices_that_show_nothing_are_refused(
    store: FactStore, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(FeatureError, match=message):
        choose(store, **settings)


def test_scores_of_another_sae_are_refused(store: FactStore, tmp_path: Path) -> None:
    path = _scores(tmp_path / "a.json", "reason", [{"feature": 1, "score": 1}], sae_hash="cd" * 32)
    with pytest.raises(FeatureError, match=r"the SAE cdcd.* has facts of abab.*one SAE"):
        choose(store, scores=[path])


def test_scores_without_features_are_refused(store: FactStore, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="no feature is left"):
        choose(store, scores=[_scores(tmp_path / "a.json", "reason", [])])


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", "[1, 2]"), ("a.json", '{"x": "y"}'), ("a.csv", "a,b\n1,2\n"), ("a.json", "{")],
)
def test_labels_in_other_shapes_are_refused(
    store: FactStore, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FeatureError, match="holds no labels"):
        choose(store, labels=tmp_path / name)
