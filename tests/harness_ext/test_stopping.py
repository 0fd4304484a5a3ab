import pytest
import torch

from harness_ext.generation import split_reasoning
from harness_ext.responses import build_response, decode
from harness_ext.stopping import Delimiters, RowStopper, TextStopper, cut_at_stops
from tests.tiny_models import make_tokenizer

THINK = Delimiters()


@pytest.mark.parametrize(
    ("text", "until", "opened", "kept"),
    [
        ("the answer\n\nQuestion: next", ["\n\n"], False, "the answer"),
        ("so\n\nthus</think>42\n\nQuestion:", ["\n\n"], True, "so\n\nthus</think>42"),
        ("<think>so\n\nthus</think>42\n\nx", ["\n\n"], False, "<think>so\n\nthus</think>42"),
        ("still\n\nthinking", ["\n\n"], True, "still\n\nthinking"),
        ("<think>still\n\nthinking", ["\n\n"], False, "<think>still\n\nthinking"),
        ("a stop b end c", ["end", "stop"], False, "a "),
        ("a</think>b</think>c stop d", ["stop"], True, "a</think>b</think>c "),
        ("nothing to cut", ["", "zzz"], False, "nothing to cut"),
        ("no list", [], False, "no list"),
    ],
)
def test_stop_strings_hold_for_the_answer_only(text, until, opened, kept):
    assert cut_at_stops(text, until, THINK, opened) == kept


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "final"),
    [
        ("a</think>b", True, "a", "b"),
        ("a</think>b", False, "a", "b"),
        ("a</think>b</think>c", True, "a</think>b", "c"),
        ("never closed", True, "never closed", ""),
        ("no reasoning", False, "", "no reasoning"),
        ("</think>b", True, "", "b"),
    ],
)
def test_split(text, opened, reasoning, final):
    assert split_reasoning(text, think_end="</think>", opened=opened) == (reasoning, final)


def run(tokenizer, texts, *, until=(), opened=None, budgets=None, eos=(1,)):
    """Feed the texts token by token; return the stopper and when each row ended."""
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    steps = max(map(len, rows))
    ended: dict[int, int] = {}

    def note(done, column):
        for row in done.nonzero().flatten().tolist():
            ended.setdefault(row, column - 2 + 1)

    stopper = RowStopper(
        tokenizer,
        prompt_width=2,
        eos_ids=eos,
        until=until,
        delimiters=THINK,
        opened=opened or [False] * len(rows),
        budgets=budgets or [1000] * len(rows),
        on_finish=note,
    )
    for step in range(1, steps + 1):
        ids = torch.tensor([[7, 7, *row[:step], *[2] * (step - len(row))] for row in rows])
        stopper(ids, None)
    return stopper, ended


@pytest.fixture(params=[False, True], ids=["plain", "special"])
def tokenizer(request):
    return make_tokenizer(special_think=request.param)


def test_rows_end_by_themselves(tokenizer):
    texts = ["ab</s>cd", "the cat\n\nsat", "abcdefgh", "xyz"]
    stopper, ended = run(tokenizer, texts, until=["\n\n"], budgets=[99, 99, 4, 99])
    counts = [len(tokenizer.encode(t, add_special_tokens=False)) for t in ("ab</s>", "the cat\n\n")]
    assert stopper.n_tokens[:3] == [*counts, 4]
    assert stopper.reasons == ["stop", "stop", "length", "length"]
    assert ended == {0: counts[0], 1: counts[1], 2: 4}


@pytest.mark.parametrize(
    ("text", "opened", "stops_after"),
    [
        ("so\n\nthus</think>42\n\nmore", True, "so\n\nthus</think>42\n\n"),
        ("<think>so\n\nthus</think>42\n\nmore", False, "<think>so\n\nthus</think>42\n\n"),
        ("42\n\nmore", False, "42\n\n"),
        ("<think>" + "long " * 40 + "\n\n", False, None),
        ("a</think>\n\nb", True, "a</think>\n\n"),
        ("<think>a</think>b<think>c\n\nd", False, None),
    ],
)
def test_stop_strings_never_end_the_reasoning(tokenizer, text, opened, stops_after):
    stopper, ended = run(tokenizer, [text], until=["\n\n"], opened=[opened])
    if stops_after is None:
        assert ended == {}
    else:
        assert ended == {0: len(tokenizer.encode(stops_after, add_special_tokens=False))}
        assert stopper.reasons == ["stop"]


def test_a_stop_string_of_many_byte_tokens(tokenizer):
    """Five emoji are twenty tokens of a byte-level tokenizer."""
    stop = "🙂" * 5
    _, ended = run(tokenizer, [f"ok {stop} more"], until=[stop])
    assert ended == {0: len(tokenizer.encode(f"ok {stop}", add_special_tokens=False))}


def test_a_row_without_end_of_text_ids(tokenizer):
    _, ended = run(tokenizer, ["ab</s>cd"], eos=())
    assert ended == {}


def response(tokenizer, text, *, opened=False, until=(), reason="stop"):
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids, build_response(
        tokenizer,
        ids,
        until=until,
        delimiters=THINK,
        opened=opened,
        finish_reason=reason,
        seed=None,
        intervention="none",
    )


def test_reasoning_and_answer_are_both_kept(tokenizer):
    ids, kept = response(tokenizer, "first this</think>then that</s>", opened=True)
    assert kept == "first this</think>then that"
    assert (kept.reasoning, kept.final) == ("first this", "then that")
    assert kept.n_tokens == len(ids)
    closing = tokenizer.encode("first this</think>", add_special_tokens=False)
    assert kept.n_reasoning_tokens == len(closing)


def test_reasoning_that_the_response_opens_and_never_closes_is_no_answer(tokenizer):
    ids, kept = response(tokenizer, "<think>the answer is 42", reason="length")
    assert kept == "<think>the answer is 42"
    assert kept.final == ""
    assert kept.n_reasoning_tokens == len(ids)


def test_a_response_without_reasoning(tokenizer):
    _, kept = response(tokenizer, "42\n\nmore", until=["\n\n"])
    assert (kept, kept.reasoning, kept.final) == ("42", "", "42")
    assert kept.n_reasoning_tokens == 0


def test_special_tokens_are_dropped_but_not_the_delimiters(tokenizer):
    ids = tokenizer.encode("a</think>b</s><pad>", add_special_tokens=False)
    assert decode(tokenizer, ids, THINK) == "a</think>b"


def test_a_closing_delimiter_of_several_tokens():
    """SmolLM2 has no token for it, and merges its first letters with what stands before."""
    tokenizer = make_tokenizer()
    delimiters = Delimiters("[[", "]]")
    ids = tokenizer.encode("why]] 42", add_special_tokens=False)
    kept = build_response(
        tokenizer,
        ids,
        until=(),
        delimiters=delimiters,
        opened=True,
        finish_reason="stop",
        seed=3,
        intervention="none",
    )
    assert (kept.reasoning, kept.final) == ("why", " 42")
    assert kept.n_reasoning_tokens == len(tokenizer.encode("why]]", add_special_tokens=False))


def test_a_response_that_begins_anew_is_looked_at_anew(tokenizer):
    delimiters = Delimiters("<think>", "</think>")
    stopper = TextStopper(tokenizer, ["mat"], delimiters, opened=True)
    ids = tokenizer("a mat</think> the mat", add_special_tokens=False).input_ids
    assert stopper.feed(ids)
    end = stopper.end
    assert not stopper.feed([])
    # Inside the reasoning again: the first 'mat' does not end it.
    assert not stopper.feed(ids[:4])
    assert stopper.feed(ids)
    assert stopper.end == end
