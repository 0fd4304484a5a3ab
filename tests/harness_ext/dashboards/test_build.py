import json
import re
from pathlib import Path

import pytest

from harness_ext.cli import main
from harness_ext.dashboards.build import write_dashboards
from harness_ext.dashboards.choose import choose
from harness_ext.dashboards.view import number, share, snippet
from interventions.errors import FeatureError
from interventions.features.facts_store import (
    CausalEffect,
    Context,
    FactStore,
    Injection,
    TokenValue,
)
from interventions.features.scored import Scored, write_scored
from tests.harness_ext.dashboards.facts_folder import SUBJECT, make_facts


def _ids(folder: Path) -> set[int]:
    return {int(path.stem) for path in (folder / "features").glob("*.html")}


def test_a_page_for_each_feature_and_an_index(store: FactStore, tmp_path: Path) -> None:
    built = write_dashboards(store, choose(store, features="7,2,9"), tmp_path)
    assert _ids(tmp_path) == {2, 7, 9}
    assert built.pages == 3
    files = [built.index, *(tmp_path / "features").iterdir()]
    assert built.bytes == sum(file.stat().st_size for file in files)
    page = (tmp_path / "features" / "2.html").read_text()
    assert 'href="7.html" rel="prev"' in page
    assert 'href="9.html" rel="next"' in page


def test_pages_of_an_earlier_choice_go_and_other_files_stay(
    store: FactStore, tmp_path: Path
) -> None:
    write_dashboards(store, choose(store, features="7,2,9"), tmp_path)
    (tmp_path / "features" / "notes.txt").write_text("mine")
    built = write_dashboards(store, choose(store, features="2,4"), tmp_path)
    assert _ids(tmp_path) == {2, 4}
    assert built.removed == 2
    assert (tmp_path / "features" / "notes.txt").exists()


def test_after_a_kill_the_next_call_still_knows_whose_pages_there_are(
    store: FactStore, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def stop(done: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        write_dashboards(store, choose(store, features="7,2,9"), tmp_path, on_page=stop)
    assert not (tmp_path / "index.html").exists()
    assert _ids(tmp_path) == {2, 7}
    write_dashboards(store, choose(store, features="1"), tmp_path)
    assert _ids(tmp_path) == {1}


def test_two_builds_are_equal_byte_for_byte(store: FactStore, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dashboards(store, choose(store), tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.html"))
    assert len(files) == 12
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )


def test_an_index_that_is_not_ours_is_not_overwritten(store: FactStore, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("a home page")
    with pytest.raises(FeatureError, match="no dashboard wrote"):
        write_dashboards(store, choose(store), tmp_path)
    assert (tmp_path / "index.html").read_text() == "a home page"


def test_a_damaged_list_and_a_file_in_the_way_are_named(store: FactStore, tmp_path: Path) -> None:
    (tmp_path / "dashboard.json").write_text("{}")
    with pytest.raises(FeatureError, match="is damaged"):
        write_dashboards(store, choose(store), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureError, match="cannot be written"):
        write_dashboards(store, choose(store), tmp_path / "file")


def test_pages_ask_the_network_for_nothing(store: FactStore, tmp_path: Path) -> None:
    write_dashboards(store, choose(store), tmp_path)
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)(?:\w+:)?//""", text), page
        assert "default-src 'none'" in text


def test_the_page_links_to_neuronpedia_where_its_sae_is_there(tmp_path: Path) -> None:
    subject = {**SUBJECT, "sae": {"release": "gpt2-small-res-jb", "id": "blocks.0.hook_resid_pre"}}
    store = FactStore.open(make_facts(tmp_path / "facts", subject=subject))
    write_dashboards(store, choose(store, features="5"), tmp_path / "out")
    page = (tmp_path / "out" / "features" / "5.html").read_text()
    assert 'href="https://www.neuronpedia.org/gpt2-small/0-res-jb/5" rel="noreferrer"' in page


def test_a_feature_that_never_fired_says_so(store: FactStore, tmp_path: Path) -> None:
    write_dashboards(store, choose(store, features="3"), tmp_path)
    page = (tmp_path / "features" / "3.html").read_text()
    assert "It never fired on this text." in page
    assert 'id="steer"' not in page
    assert "Promoted" in page


def test_measured_effects_and_injections_are_shown(facts: Path, tmp_path: Path) -> None:
    store = FactStore.open(facts)
    ups = [TokenValue(t.id, t.text, 0.02) for t in store.feature(5).promoted[:2]]
    downs = [*store.feature(5).suppressed[:1], ups[0]]  # the second is suppressed by no lens
    store.causal = {5: CausalEffect(12.0, ups, [], ups, downs, 0.25, 0.01, -0.21, 40)}
    store.injections = {5: Injection("mixed", ups, 0.5, 0.03, 0.4, 0.6, 0.41, 0.59, 160, 1.5)}
    write_dashboards(store, choose(store, features="5,6"), tmp_path)
    page = (tmp_path / "features" / "5.html").read_text()
    assert "KL 0.25 nats; a random direction of that length: 0.01" in page
    assert "Rank correlation with the lens \u22120.21" in page
    assert "+2\u2009pp" in page
    assert page.count('class="token both"') == 6  # three tokens, in lens and measurement
    assert "Injection check: mixed" in page
    assert "50\u2009% [41\u2009%, 59\u2009%] of 160 injections" in page
    assert "Injection check" not in (tmp_path / "features" / "6.html").read_text()
    assert "mixed" in (tmp_path / "index.html").read_text()


def test_scores_and_labels_are_on_page_and_index(store: FactStore, tmp_path: Path) -> None:
    rows = [{"feature": 5, "score": 0.125}, {"feature": 6, "score": -2.0}]
    write_scored(tmp_path / "s.json", Scored("reason", SUBJECT, None, {}, rows))
    (tmp_path / "l.json").write_text(json.dumps({"5": "music <3"}))
    choice = choose(store, scores=[tmp_path / "s.json"], labels=tmp_path / "l.json")
    write_dashboards(store, choice, tmp_path / "out")
    page = (tmp_path / "out" / "features" / "5.html").read_text()
    assert "Score: reason" in page
    assert "rank 1 of 2" in page
    assert "music &lt;3" in page
    index = (tmp_path / "out" / "index.html").read_text()
    assert '"values":[0.125,-2.0]' in index


def test_the_snippet_marks_the_strongest_firing() -> None:
    tokens = [" a", " b", "\n", " hit", " c"]
    weak = Context(tokens, [0] * 5, [0.0] * 5, "top", 1.0, 0, 0, 0, 0)
    strong = Context(tokens, [0] * 5, [0.0] * 5, "quantile-2", 9.0, 0, 0, 0, 3)
    assert snippet([weak, strong]) == " a b↵ «hit» c"
    assert snippet([]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (45.0953, "45.1"),
        (0.00002, "2e\u221205"),
        (12345.6, "1.235e+04"),
        (12345.0, "12,345"),
        (-3.14159, "\u22123.14"),
    ],
)
def test_numbers_keep_three_digits(value: float, text: str) -> None:
    assert number(value) == text
    assert share(0.1234) == "12.3\u2009%"


def test_the_command_prints_what_it_wrote(
    facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["dashboard", str(facts), "--out", str(tmp_path / "out"), "--top", "4"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pages"], found["index"]) == (4, str(tmp_path / "out" / "index.html"))
    assert main(command) == 0
    assert "4 pages" in capsys.readouterr().out


def test_the_command_refuses_in_one_line(
    facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "holds no facts" in error
    assert "sae-steered facts" in error
    assert error.count("\n") == 1
    options = ["--out", str(tmp_path / "out"), "--features", "99"]
    assert main(["dashboard", str(facts), *options]) == 2
    assert "feature 99 is outside 0..11" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
