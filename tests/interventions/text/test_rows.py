"""Text sources and rows: mixing, packing, chat, tokens, bad input."""

import json
from itertools import islice

import pytest
import torch
from pyarrow import Table, parquet

from interventions.errors import SpecError, TextError
from interventions.text.config import parse_text
from interventions.text.rows import MIN_ROW, documents, rows
from tests.tiny_models import make_tokenizer

CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(chat_template=CHAT)


@pytest.fixture
def folder(tmp_path):
    lines = [{"text": f"text number {i} " * 4, "n": i} for i in range(12)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "b.txt").write_text("another kind of text. " * 40)
    chat = [{"q": f"what is {i}?", "a": f"it is {i}, of course"} for i in range(4)]
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    parquet.write_table(
        Table.from_pylist([{"ids": [5, 6, 7, 8] * 5}] * 3), tmp_path / "ids.parquet"
    )
    return tmp_path


def config(folder, *names, **settings):
    sources = [{"path": str(folder / name)} if isinstance(name, str) else name for name in names]
    return parse_text({"sources": sources, "context": 32, **settings})


def texts(tokenizer, found):
    return [tokenizer.decode(item.ids) for item in found]


def test_two_readings_give_the_same_rows(folder, tokenizer):
    settings = config(folder, "a.jsonl", "b.txt", shuffle=5, seed=3, epochs=2)
    first, again = list(rows(settings, tokenizer)), list(rows(settings, tokenizer))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))
    other = list(rows(config(folder, "a.jsonl", "b.txt", shuffle=5, seed=4, epochs=2), tokenizer))
    assert [r.ids.tolist() for r in other] != [r.ids.tolist() for r in first]


def test_rows_of_documents_never_mix_two(folder, tokenizer):
    for row in rows(config(folder, "a.jsonl", "b.txt"), tokenizer):
        assert MIN_ROW <= len(row.ids) <= 32
        assert len(set(row.document.tolist())) == 1


def test_concatenated_rows_are_full_and_lose_no_token(folder, tokenizer):
    settings = config(folder, "a.jsonl", pack="concat", bos=True, eos=True)
    found = list(rows(settings, tokenizer))
    assert {len(row.ids) for row in found} == {32}
    assert {int(row.ids[0]) for row in found} == {tokenizer.bos_token_id}
    assert {int(row.document[0]) for row in found} == {-1}
    joined = torch.cat([row.ids[1:] for row in found]).tolist()
    whole = [i for d in documents(settings, tokenizer) for i in d.ids.tolist()]
    assert joined == whole[: len(joined)]
    assert whole.count(tokenizer.eos_token_id) == 12
    assert len(whole) - len(joined) < 31


def test_weights_are_shares_of_tokens(folder, tokenizer):
    source = {"path": str(folder / "a.jsonl"), "weight": 3}
    settings = config(folder, source, {"path": str(folder / "a.jsonl")}, epochs=50)
    spent = [0, 0]
    for document in islice(documents(settings, tokenizer), 200):
        spent[document.source] += len(document.ids)
    assert spent[0] / spent[1] == pytest.approx(3, rel=0.05)


def test_the_budget_is_kept_to_the_token(folder, tokenizer):
    for budget in (8, 40, 63, 64, 101):
        found = rows(config(folder, "b.txt", tokens=budget), tokenizer)
        assert budget - MIN_ROW < sum(len(row.ids) for row in found) <= budget


def test_conversations_go_through_the_template(folder, tokenizer):
    source = {"path": str(folder / "chat.json"), "prompt": "q", "response": "a"}
    found = texts(tokenizer, documents(config(folder, source), tokenizer))
    assert found[1] == "[user] what is 1?\n[assistant] it is 1, of course\n"


@pytest.mark.parametrize("pack", ["document", "concat"])
def test_documents_at_the_beginning_can_be_kept_to_the_first_epoch(folder, tokenizer, pack):
    settings = config(folder, "a.jsonl", epochs=3, pack=pack, eos=True)
    ids = [d.ids.tolist() for d in documents(settings, tokenizer)][:12]
    found = [i for row in rows(settings, tokenizer, once=100) for i in row.ids.tolist()]
    often = [i for row in rows(settings, tokenizer) for i in row.ids.tolist()]

    def times(text, document):
        return " ".join(map(str, text)).count(" ".join(map(str, document)))

    # Documents of some sixty tokens: the first rows of 100 tokens hold two of them.
    assert times(found, ids[0]) == times(found, ids[1]) == 1
    assert times(often, ids[0]) == 3
    assert times(found, ids[-2]) == times(often, ids[-2]) == 3


def test_templates_join_columns_and_braces_in_the_text_survive(tmp_path, tokenizer):
    (tmp_path / "r.jsonl").write_text(json.dumps({"q": "what is {x}?", "r": "it is {{7}}."}))
    settings = config(tmp_path, {"path": str(tmp_path / "r.jsonl"), "template": "{q} {r}"})
    assert texts(tokenizer, documents(settings, tokenizer)) == ["what is {x}? it is {{7}}."]


def test_token_ids_are_taken_as_they_are(folder, tokenizer):
    source = {"path": str(folder / "ids.parquet"), "tokens": "ids"}
    found = list(rows(config(folder, source), tokenizer))
    assert [row.ids.tolist() for row in found] == [[5, 6, 7, 8] * 5] * 3


def test_documentation_of_packages_is_text(tokenizer):
    settings = parse_text({"sources": [{"docs": ["stdlib"], "limit": 3}], "context": 64})
    assert len(list(documents(settings, tokenizer))) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": []}, "at least 1 item"),
        ({"sources": [{}]}, "exactly one of `path`, `dataset`, `docs`"),
        ({"sources": [{"path": "x", "dataset": "y"}]}, "exactly one of"),
        ({"sources": [{"path": "x", "text": "a", "tokens": "b"}]}, "give one of `text`"),
        ({"sources": [{"path": "x", "prompt": "a"}]}, "go together"),
        ({"sources": [{"path": "x", "wieght": 2}]}, "sources.0.wieght"),
        ({"sources": [{"path": "x", "weight": 0}]}, "sources.0.weight"),
        ({"sources": [{"path": "x"}], "context": 2}, "context"),
        ({"sources": [{"path": "x", "template": "{q"}]}, "expected '}' before end of string"),
        ({"sources": [{"path": "x", "template": "{} {}"}]}, "names a column that is no plain name"),
    ],
)
def test_a_bad_configuration_is_one_line(data, message):
    with pytest.raises(SpecError, match=message) as caught:
        parse_text(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "source", "message"),
    [
        ("no.jsonl", None, {}, "no file"),
        ("a.csv", "a,b", {}, "unknown kind of file"),
        ("a.jsonl", "{not json", {}, "a.jsonl:1: not JSON"),
        ("a.jsonl", "[1]", {}, "a list; one object a line"),
        ("a.jsonl", '{"body": "x"}', {}, "no column 'text'; it has body"),
        ("a.jsonl", '{"text": 5}', {}, "holds a int, not text"),
        ("a.jsonl", "", {}, "gives no text"),
        ("a.jsonl", '{"text": "hi"}', {}, "no row of at least 8 tokens"),
        ("a.jsonl", '{"ids": [1, 900000]}', {"tokens": "ids"}, "made with another tokenizer"),
        ("a.jsonl", '{"ids": null}', {"tokens": "ids"}, "column 'ids' holds no list of token ids"),
        ("a.jsonl", '{"ids": [[1]]}', {"tokens": "ids"}, "column 'ids' holds no list of token ids"),
        ("a.jsonl", '{"q": "x"}', {"template": "{q:d}"}, "`template` does not fit a record"),
        (
            "a.jsonl",
            '{"c": [{"from": "human", "value": "x"}]}',
            {"messages": "c"},
            "turns of from, value; a conversation is a list of `role` and `content`",
        ),
        ("a.jsonl", '{"c": "hello"}', {"messages": "c"}, "turns of str; a conversation"),
        ("a.json", '{"text": "x"}', {}, "give a list of objects"),
        ("a.json", "", {}, "is not JSON"),
        ("a.json", '["x"]', {}, "item 1 is a str; give a list of objects"),
        ("a.parquet", "", {}, "is no Parquet file, or is damaged"),
        ("a.parquet", "PAR1 something else PAR1", {}, "is no Parquet file, or is damaged"),
    ],
)
def test_bad_text_is_one_line(name, content, source, message, tmp_path, tokenizer):
    if content is not None:
        (tmp_path / name).write_text(content)
    settings = config(tmp_path, {"path": str(tmp_path / name), **source})
    with pytest.raises(TextError, match=message) as caught:
        list(rows(settings, tokenizer))
    assert "\n" not in str(caught.value)


def test_conversations_need_a_template(folder):
    source = {"path": str(folder / "chat.json"), "prompt": "q", "response": "a"}
    with pytest.raises(TextError, match="no chat template"):
        list(rows(config(folder, source), make_tokenizer()))


def test_a_folder_of_datasets_is_read(tmp_path, tokenizer):
    import datasets

    saved = datasets.Dataset.from_list([{"text": "some words of a saved data set " * 3}] * 2)
    saved.save_to_disk(str(tmp_path / "saved"))
    assert len(list(documents(config(tmp_path, "saved"), tokenizer))) == 2
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(TextError, match="holds the splits train"):
        list(documents(config(tmp_path, "splits"), tokenizer))
