"""Every kind of reply that holds nothing, or less than it should: each is counted and kept."""

import json

import pytest

from harness_ext import cli
from harness_ext.sensitivity import output
from harness_ext.sensitivity.prompts import SEPARATOR, copied
from tests.harness_ext.sensitivity.runs import (
    command,
    example_texts,
    only_folder,
    table,
    texts,
)
from tests.llm_server import Action, completion, serve


def choices(*some):
    return Action(body=json.dumps({"choices": list(some)}).encode())


REFUSAL = {"message": {"role": "assistant", "content": None, "refusal": "no"}}
# What an endpoint answers, and how it counts.
BAD = {
    "no JSON": (Action(body=b"<html>busy</html>"), "malformed"),
    "no body": (Action(body=b""), "malformed"),
    "JSON of another kind": (Action(body=b'["a"]'), "malformed"),
    "no choices": (Action(body=b'{"nothing": 1}'), "malformed"),
    "an empty list of choices": (choices(), "malformed"),
    "a choice without a message": (choices({"index": 0}), "malformed"),
    "bytes that are no text": (Action(body=b'{"choices": "\xff\xfe"}'), "malformed"),
    "content that is no text": (choices({"message": {"content": ["a"]}}), "malformed"),
    "no content": (choices({"message": {"content": None}}), "empty"),
    "an empty text": (completion(""), "empty"),
    "white space": (completion(" \n\t "), "empty"),
    "separators alone": (completion(f"{SEPARATOR}\n{SEPARATOR}"), "empty"),
    "a refusal": (choices(REFUSAL), "refused"),
}


@pytest.mark.parametrize(("action", "status"), BAD.values(), ids=BAD)
def test_a_reply_without_a_text_is_counted_and_its_feature_keeps_its_row(
    place, tmp_path, capsys, action, status
):
    seen = []

    def reply(n, body):
        first = example_texts(body)[0]
        if not seen:
            seen.append(first)
        return action if first == seen[0] else texts()

    more = ("--tries", "1", "--attempts", "2", "--max-workers", "1", "--json")
    with serve(reply) as server:
        assert cli.main(command(place, tmp_path, server.url, *more)) == 0
    data = json.loads(capsys.readouterr().out)[0]
    assert data["llm"]["tries"] == {status: 2, "ok": 2}
    assert data["n_without_texts"] == 1
    assert sorted(row["status"] for row in data["features"]) == sorted([status, "ok", "ok"])
    folder = only_folder(tmp_path)
    stats = table(folder / "feature_stats.csv")
    assert [row["generated_sensitivity"] for row in stats].count("") == 1
    queries = table(folder / "generation_queries_with_responses.csv")
    assert [row["status"] for row in queries].count("Failed") == 1
    assert f"No texts came: {status}" in (folder / output.PAGE).read_text()


def test_a_reply_that_ends_at_the_limit_of_tokens_is_counted(place, tmp_path, capsys):
    cut = json.loads(texts(4).body)
    cut["choices"][0]["finish_reason"] = "length"
    with serve(lambda n, body: Action(body=json.dumps(cut).encode())) as server:
        assert cli.main(command(place, tmp_path, server.url, "--json")) == 0
    data = json.loads(capsys.readouterr().out)[0]
    assert data["llm"]["cut"] == 3
    assert data["llm"]["tries"] == {"short": 3}


@pytest.mark.parametrize(
    ("text", "old"),
    [
        ("the inn in the rain", True),
        (" The  INN in the{{ rain}}", True),
        ("inn in", True),
        ("1. the inn in the rain, again", True),
        ("the inn in the snow", False),
        ("an inn", False),
    ],
)
def test_a_copy_is_an_example_or_a_piece_of_one_or_holds_one(text, old):
    assert copied(text, ["the {{inn}} in the↵rain", "another"]) is old


def test_copies_of_the_examples_are_counted_and_left_out_of_the_rate_of_new_texts(
    place, tmp_path, capsys
):
    def reply(n, body):
        return completion(
            SEPARATOR.join([*example_texts(body)[:4], *(f"zz {i}" for i in "abcdef")])
        )

    with serve(reply) as server:
        assert cli.main(command(place, tmp_path, server.url)) == 0
    assert "copies: 12 of 30 new texts" in capsys.readouterr().out
    data = json.loads((only_folder(tmp_path) / output.SUMMARY).read_text())
    assert (data["copied"]["active"], data["copied"]["n"]) == (12, 30)
    for row in data["features"]:
        assert row["copied"] == 4
        assert row["generated_new"]["n"] == 6
        assert row["generated"]["active"] - row["generated_new"]["active"] <= 4
