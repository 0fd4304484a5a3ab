"""The comparison of scorers in benchmarks/, on a few responses."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks/ is not installed")


@pytest.fixture
def parity(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scorer_parity

    return scorer_parity


def responses(parity, *cases):
    return [
        parity.Response("set", f"id{i}", like, kind, gold, text, right)
        for i, (like, kind, gold, text, right) in enumerate(cases)
    ]


def test_who_is_right_where_scorers_differ(parity):
    found = list(
        parity.rows(
            responses(
                parity,
                ("aime", "number", "033", r"So \boxed{33}.", True),
                ("aime", "number", "33", r"So \boxed{33}.", True),
                ("aime", "number", "0", "No idea.", False),
                ("gsm8k", "number", "29", "It costs $29.00.", True),
            )
        )
    )
    listed = parity.differences(found)
    assert [(d["id"], d["peer"], d["said"], d["right"]) for d in listed] == [
        ("id0", "lm-eval aime", "wrong", "ours"),
        ("id2", "AIRI", "right", "ours"),
        ("id3", "lm-eval gsm8k strict-match", "wrong", "ours"),
        ("id3", "lm-eval gsm8k flexible-extract", "wrong", "ours"),
    ]
    line = next(n for n in parity.counts(found, listed) if n["peer"] == "AIRI")
    assert (line["responses"], line["differ"], line["peer_false_right"]) == (3, 1, 1)
    assert (line["ours_false_wrong"], line["ours_false_right"]) == (0, 0)
    assert "| set | AIRI | 3 | 1 |" in parity.markdown(parity.counts(found, listed))


def test_a_scorer_that_fails_or_hangs_is_counted(parity, monkeypatch):
    (response,) = responses(parity, ("aime", "number", "3", "3", True))

    def fails(_):
        raise AssertionError("no box")

    def hangs(_):
        while True:
            pass

    assert parity.verdict(fails, response) == "AssertionError"
    monkeypatch.setattr(parity, "SECONDS", 1)
    assert parity.verdict(hangs, response) == "hang"


def test_differences_of_data_sets_are_grouped_and_hold_no_text_of_them(parity):
    base = {"set": "math500", "gold": "x", "expected": "right", "ours": "right", "peer": "AIRI",
            "said": "wrong", "right": "ours", "why": "strings", "text": None}  # fmt: skip
    (line,) = parity.grouped([{**base, "id": "a"}, {**base, "id": "b"}])
    assert line["ids"] == ["a", "b"]
    assert not {"gold", "text", "id"} & set(line)
    assert parity.grouped([{**base, "id": "a", "text": "t"}])[0]["text"] == "t"
