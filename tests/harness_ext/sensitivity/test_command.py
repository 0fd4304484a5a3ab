"""Feature sensitivity end to end: a tiny model, and a writer that does what a test tells it."""

import json
from dataclasses import replace

import pytest
import torch

from harness_ext import cli
from harness_ext.sensitivity import collected, measure, output, run, writer
from harness_ext.sensitivity.prompts import SEPARATOR, cleaned, marked, parse, user_prompt
from interventions.features.examples import Example
from interventions.text.config import parse_text
from tests.harness_ext.sensitivity.runs import (
    FEATURES,
    command,
    example_texts,
    only_folder,
    table,
    texts,
    without,
)
from tests.llm_server import Action, completion, failure, serve
from tests.tiny_models import save_sae


@pytest.fixture(scope="module")
def found(place, subject, tmp_path_factory):
    text = parse_text(
        {"sources": [{"path": str(place / "text.jsonl")}], "context": 100, "bos": True}
    )
    settings = collected.Settings(features=(3, 7, 11))
    return collected.collect(subject, text, settings, tmp_path_factory.mktemp("run") / "density")


def test_marks_stand_around_what_is_over_one_percent_of_the_features_largest(subject):
    weak, strong = Example((5, 6), (0.2, 0.0), "weighted"), Example((5, 6), (30.0, 0.1), "top")
    text = "".join(measure.pieces(subject, (5, 6)))
    (only,) = collected.marked_texts(subject, {1: [weak]})[1]
    assert only.startswith("{{")
    first, second = collected.marked_texts(subject, {1: [strong, weak]})[1]
    assert (first, second) == (only, text)


def test_marks_stand_around_what_is_over_the_level():
    one = Example((1, 2, 3, 4), (0.0, 10.0, 0.2, 0.05), "top")
    assert marked(one, ["a", " b", "\n", "c\ufffd"], 0.1) == "a{{ b}}{{↵}}c"
    assert cleaned("a{{ b}}{{↵}}c") == "a b\nc"


@pytest.mark.parametrize(
    ("reply", "count"),
    [
        (SEPARATOR.join("abcdefghijk"), 10),
        (SEPARATOR.join("abcdefghij"), 10),
        (SEPARATOR.join("abcdefghi"), 9),
        (SEPARATOR.join("abc"), 3),
        (SEPARATOR.join("abcdefghijklm"), 13),
        ("a\n\nb\n\n\n\nc", 3),
        (f"{SEPARATOR}  {SEPARATOR}", 0),
        ("  ", 0),
    ],
)
def test_replies_are_taken_apart_as_published(reply, count):
    assert len(parse(reply, 10)) == count


def test_a_prompt_asks_for_one_more_and_holds_every_example():
    asked = user_prompt(["one", "two"], 10)
    assert "exactly 11 texts" in asked
    assert asked.endswith(f"2 examples, separated by {SEPARATOR}:\none\n{SEPARATOR}\ntwo")
    assert "exactly 1 texts" in user_prompt(["one"], 1)


def test_activations_are_those_of_the_model_and_bos_and_sinks_do_not_count(subject):
    ids = [measure.tokenize(subject, text) for text in ("the inn in the rain", "a", "then " * 90)]
    assert ids[0][0] == subject.tokenizer.bos_token_id
    assert len(ids[2]) == measure.MAX_LENGTH
    pairs = [(ids[0], 3), (ids[1], 7), (ids[2], 11), ((), 3)]
    read = measure.activations(subject, pairs)
    for (tokens, feature), one in zip(pairs[:3], read[:3], strict=True):
        with torch.no_grad():
            hidden = subject.model(torch.tensor([tokens]), output_hidden_states=True)
        resid = hidden.hidden_states[2][0]
        acts = subject.sae.encode(resid)[:, feature]
        acts[0] = 0
        acts[resid.norm(dim=-1) > subject.limit] = 0
        torch.testing.assert_close(torch.tensor(one.acts), acts, atol=1e-4, rtol=1e-4)
    assert read[3] == measure.Read((), ())
    assert not read[3].active


def test_examples_are_read_once(place, subject, tmp_path, monkeypatch):
    text = parse_text({"sources": [{"path": str(place / "text.jsonl")}], "context": 100})
    settings = collected.Settings(number=4, top=2, weighted=2)
    first = collected.collect(subject, text, settings, tmp_path / "density")
    assert len(first.examples) == 4
    for name in ("density", "firings"):
        monkeypatch.setattr(collected, name, None)
    other_writer = replace(settings, per_call=3, attempts=1)
    for same in (settings, other_writer):
        assert vars(collected.collect(subject, text, same, tmp_path / "density")) == vars(first)
    with pytest.raises(TypeError):  # other settings: the text has to be read
        collected.collect(subject, text, collected.Settings(number=3), tmp_path / "density")


def test_texts_that_are_the_originals_have_the_originals_sensitivity(subject, found):
    same = [
        writer.Written(
            f, "", "", tuple(subject.tokenizer.decode(list(x.ids)) for x in some), "ok", ("ok",)
        )
        for f, some in found.examples.items()
    ]
    for one in run.results_of(subject, found, same, collected.Settings()):
        assert len(one.original) == len(found.examples[one.feature]) > 3
        assert measure.rate(one.generated) == measure.rate(one.original)
        assert [r.acts for r in one.generated] == [r.acts for r in one.original]
        assert one.control.count == len(one.original)
        assert one.injection.count == one.injection_baseline.count > 0
        assert one.injected_token


def test_braces_of_a_text_itself_survive_in_the_originals(place, subject, tmp_path):
    path = tmp_path / "braces.txt"
    path.write_text("{{inn}} a the " * 120)
    text = parse_text({"sources": [{"path": str(path)}], "context": 100, "bos": True})
    settings = collected.Settings(features=tuple(range(16)))
    found = collected.collect(subject, text, settings, tmp_path / "run")
    results = run.results_of(subject, found, [], settings)
    read = [r for one in results for r in one.original]
    assert any("{{in" in subject.tokenizer.decode(list(r.ids)) for r in read)
    assert all(one.generated == [] for one in results)


def test_the_control_is_another_features_texts_and_everyones_once():
    pairs = measure.others([1, 2, 3, 4, 5], seed=0)
    assert sorted(pairs) == sorted(pairs.values()) == [1, 2, 3, 4, 5]
    assert all(a != b for a, b in pairs.items())
    assert measure.others([1], 0) == {}


def test_the_command_writes_the_six_files_and_their_numbers_follow_from_them(
    place, tmp_path, capsys
):
    def reply(n, body):
        return completion(f"\n{SEPARATOR}\n".join(example_texts(body)[:11]))

    with serve(reply) as server:
        assert cli.main(command(place, tmp_path, server.url)) == 0
        sent = len(server.bodies)
        shown = capsys.readouterr()
        assert sent == 3
        assert "3 requests to writer" in shown.err
        assert "features an hour" in shown.out
        folder = only_folder(tmp_path)
        first = {p.name: p.read_bytes() for p in folder.glob("*.csv")}
        # The same command again: from disk.
        assert cli.main(command(place, tmp_path, server.url, "--json")) == 0
        assert len(server.bodies) == sent
        again = json.loads(capsys.readouterr().out)[0]
        assert cli.main(command(place, tmp_path, server.url)) == 0
        assert "3 replies came from disk, so no speed is given" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in folder.glob("*.csv")} == first
    body = server.bodies[0]
    assert body["temperature"] == 1.0
    assert body["max_tokens"] == 4096
    assert "response_format" not in body
    assert again["llm"]["usage"]["cached"] == 3
    columns = {
        "feature_examples": "feature_index Top_act Sequence",
        "generation_queries_with_responses": "sae_name eval_name feature_index system_prompt"
        " user_prompt separator num_per_call llm_response status",
        "generated_samples": "feature_index sample_index text",
        "generated_samples_with_activations": "feature_index sample_index text_annotated text_clean"
        " tokenized_text max_activation all_activations",
        "original_examples_with_activations": "feature_index Top_act text_annotated text_clean"
        " tokenized_text max_activation all_activations",
        "feature_stats": "feature_index generated_sensitivity original_sensitivity",
    }
    tables = {name: table(folder / f"{name}.csv") for name in columns}
    for name, heads in columns.items():
        assert list(tables[name][0]) == heads.split()
    queries = tables["generation_queries_with_responses"]
    assert all(row["status"] == "Success with writer" for row in queries)
    # The published definition, from the files alone.
    for row in tables["feature_stats"]:
        for arm, name in (
            ("generated", "generated_samples_with_activations"),
            ("original", "original_examples_with_activations"),
        ):
            mine = [r for r in tables[name] if r["feature_index"] == row["feature_index"]]
            largest = [max(json.loads(r["all_activations"])) for r in mine]
            assert largest == pytest.approx([float(r["max_activation"]) for r in mine])
            share = sum(value > 1e-6 for value in largest) / len(largest)
            assert float(row[f"{arm}_sensitivity"]) == pytest.approx(share)
    page = (folder / output.PAGE).read_text()
    assert "https://" not in page.replace("http://www.w3.org", "")
    assert 'class="tokens"' in page
    data = json.loads((folder / output.SUMMARY).read_text())
    assert data["n_features"] == 3
    # All from disk: what the calls were is known, how fast they were is not.
    assert data["llm"]["usage"]["sent"] == 0
    assert data["llm"]["calls_per_feature"] == 1
    assert data["features_per_hour"] is data["share_of_time_in_model"] is None
    low, value = data["features"][0]["generated"]["low"], data["features"][0]["generated"]["value"]
    assert 0 <= low <= value <= 1


def test_bad_replies_are_asked_for_again_a_bounded_number_of_times_and_counted(
    place, tmp_path, capsys
):
    calls = {}

    def reply(n, body):
        key = example_texts(body)[0]
        calls[key] = calls.get(key, 0) + 1
        number = calls[key]
        if list(calls).index(key) == 0:
            return completion("")  # never a text
        if list(calls).index(key) == 1:
            return completion("") if number == 1 else texts(4)  # too few
        return failure(503) if number == 1 else texts(10)

    with serve(reply) as server:
        code = cli.main(command(place, tmp_path, server.url, "--json", "--max-workers", "1"))
    assert code == 0
    data = json.loads(capsys.readouterr().out)[0]
    assert data["llm"]["tries"] == {"empty": 4, "ok": 1, "short": 1}
    assert data["n_without_texts"] == 1
    by_status = {row["status"]: row for row in data["features"]}
    assert set(by_status) == {"empty", "short", "ok"}
    assert by_status["empty"]["generated"]["value"] is None
    assert by_status["short"]["generated"]["n"] == 4
    assert data["llm"]["usage"]["sent"] == 3 + 2 + 2
    stats = table(only_folder(tmp_path) / "feature_stats.csv")
    assert [row["generated_sensitivity"] for row in stats].count("") == 1
    assert len(stats) == 3
    queries = table(only_folder(tmp_path) / "generation_queries_with_responses.csv")
    assert sorted(row["status"] for row in queries) == ["Failed"] + ["Success with writer"] * 2


def test_a_run_that_was_ended_by_the_endpoint_goes_on_with_the_rest(place, tmp_path, capsys):
    broken = [True]

    def reply(n, body):
        return failure(401) if broken[0] and n >= 1 else texts()

    with serve(reply) as server:
        more = ("--max-workers", "1", "--json")
        assert cli.main(command(place, tmp_path, server.url, *more)) == 2
        assert "401" in capsys.readouterr().err
        before = len(server.bodies)
        broken[0] = False
        assert cli.main(command(place, tmp_path, server.url, *more)) == 0
        assert len(server.bodies) == before + 2
        data = json.loads(capsys.readouterr().out)[0]
    assert data["llm"]["usage"]["cached"] == 1


def test_unusable_answers_of_the_server_are_counted_as_malformed(place, tmp_path, capsys):
    with serve(lambda n, body: Action(body=b'{"nothing": 1}')) as server:
        more = ("--tries", "1", "--attempts", "2", "--json")
        assert cli.main(command(place, tmp_path, server.url, *more)) == 0
    data = json.loads(capsys.readouterr().out)[0]
    assert data["llm"]["tries"] == {"malformed": 6}
    assert data["n_without_texts"] == 3
    assert data["mean"]["generated"]["value"] is None
    assert data["mean"]["original"]["value"] is not None
    assert "No texts came: malformed" in (only_folder(tmp_path) / output.PAGE).read_text()


def test_without_an_output_path_a_second_call_reads_no_text_again(
    place, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("SAE_STEERED_CACHE", str(tmp_path / "kept"))
    monkeypatch.chdir(tmp_path)
    broken = [True]
    with serve(lambda n, body: failure(401) if broken[0] else texts()) as server:
        given = without(command(place, tmp_path, server.url, "--json"), "--output-path")
        assert cli.main(given) == 2
        assert "401" in capsys.readouterr().err
        broken[0] = False
        for name in ("density", "firings"):
            monkeypatch.setattr(collected, name, None)
        assert cli.main(given) == 0
    assert json.loads(capsys.readouterr().out)[0]["n_features"] == 3
    assert list((tmp_path / "evals").glob("*/*/sensitivity.json"))
    # Of what was read the examples and the counts stay, and nothing that grows with the text.
    names = [path.name.split("-")[0] for path in (tmp_path / "kept/runs/sensitivity").iterdir()]
    assert sorted(names) == ["density", "examples"]


def test_a_dry_run_sends_nothing_and_says_what_it_would_cost(place, tmp_path, capsys):
    with serve(lambda n, body: texts()) as server:
        more = ("--dry-run", "--price", "0.4", "1.6", "--json")
        assert cli.main(command(place, tmp_path, server.url, *more)) == 0
        assert server.bodies == []
    shown = capsys.readouterr()
    cost = json.loads(shown.out)[0]["estimate"]
    assert cost["calls"] == 3
    assert cost["prompt_tokens"] > 1000
    assert "at 0.4 and 1.6 a million" in shown.err


def test_spearman_and_means_have_intervals_or_say_that_they_are_undefined():
    pairs = [(i / 10, float(i)) for i in range(10)]
    found = output._spearman(pairs)
    assert found["rho"] == pytest.approx(1.0)
    assert found["low"] < found["rho"]
    assert output._spearman(pairs[:4])["rho"] is None
    assert output._spearman([(1.0, float(i)) for i in range(9)])["rho"] is None
    assert output._mean([]) == {"value": None, "low": None, "high": None, "n": 0}
    assert output._mean([0.5, None, 1.0])["value"] == 0.75
    for same in ([1.0], [1.0, 1.0, 1.0]):
        assert output._mean(same) == {"value": 1.0, "low": None, "high": None, "n": len(same)}


def test_examples_come_from_a_fact_store_of_the_same_sae(place, tmp_path, capsys):
    facts = tmp_path / "facts"
    common = ["--model", str(place / "model"), "--sae-path", str(place / "sae"), "--no-check"]
    text = ["--text", str(place / "text.jsonl"), "--tokens", "2000", "--context", "100"]
    assert cli.main(["facts", *common, *text, "--out", str(facts)]) == 0
    capsys.readouterr()
    with serve(lambda n, body: texts()) as server:
        more = ("--facts", str(facts), "--json")
        given = without(command(place, tmp_path, server.url, *more), "--text")
        assert cli.main(given) == 0
        found = json.loads(capsys.readouterr().out)[0]
        other = save_sae(tmp_path / "other", seed=9).path
        wrong = list(given)
        wrong[wrong.index("--sae-path") + 1] = str(other)
        assert cli.main(wrong) == 2
        assert "make them with `sae-steered facts` for this SAE" in capsys.readouterr().err
    assert found["text"] == {"facts": str(facts)}
    assert [row["feature"] for row in found["features"]] == [int(f) for f in FEATURES]
    assert found["mean"]["original"]["n"] == 3
    assert all(row["density"] > 0 for row in found["features"])
