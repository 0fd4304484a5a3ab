"""Screening: the best rows of cheap tasks go on, chosen on dev questions alone."""

import pytest

from harness_ext.leaderboard.board import BASELINE, Row
from harness_ext.leaderboard.config import LeaderboardError, parse_config
from harness_ext.leaderboard.run import run
from harness_ext.leaderboard.scoring import Scored
from harness_ext.leaderboard.screening import check_screening, survivors
from harness_ext.leaderboard.split import is_dev
from harness_ext.records import Record
from tests.harness_ext.leaderboard.boards import GEN, tiny_config

QIDS = [f"q{n}" for n in range(40)]
DEV = [qid for qid in QIDS if is_dev(qid)]


def config_of(**screening):
    tasks = [{"name": "cheap"}, {"name": "dear", "stage": 2}]
    one = {"keep": 1, "metric": "acc_none", **screening}
    return parse_config({"features": [1], "edits": [{"op": "clamp", "value": 5}], "tasks": tasks,
                         "screening": [one]})  # fmt: skip


def scored(right):
    records = [
        Record(task="cheap", qid=qid, arm="none", gold="1", answer="1", status="answered",
               correct=qid in right, reasoning="", final="")
        for qid in QIDS
    ]  # fmt: skip
    return {"cheap": Scored(tuple(records), {})}


ROWS = [Row(id=name, kind="feature", label=name) for name in ("a", "b", "c")]
DONE = {
    BASELINE: scored(QIDS[:20]),
    "a": scored([*QIDS[:20], *DEV]),
    "b": scored([qid for qid in QIDS if qid not in DEV] + DEV[:1]),
    "c": scored(QIDS[:20]),
}


def test_only_dev_questions_choose():
    # b is right on every test question, which is not looked at.
    assert survivors(config_of(keep=1), 1, ROWS, DONE) == {"a"}
    assert survivors(config_of(keep=2), 1, ROWS, DONE) == {"a", "c"}
    assert survivors(config_of(keep=1, best="low"), 1, ROWS, DONE) == {"b"}
    assert survivors(config_of(keep=2, best="far"), 1, ROWS, DONE) == {"a", "b"}
    assert survivors(config_of(keep=0.5), 1, ROWS, DONE) == {"a", "c"}
    assert survivors(config_of(keep=9), 1, ROWS, DONE) == {"a", "b", "c"}


def test_lexical_rows_do_not_go_on_by_a_metric_that_counts_words():
    hinted = {"arm": "hint", "hint_id": "seed_professor", "hint_sign": "wrong", "hint_target": "2"}

    def followed(silent):
        done = scored([])["cheap"].records
        hints = [
            r.model_copy(
                update={
                    **hinted,
                    "answer": "2",
                    "final": "So it is." if r.qid in silent else "The professor says 2.",
                }
            )
            for r in done
        ]
        return {"cheap": Scored((*done, *hints), {})}

    done = {BASELINE: followed(QIDS), "a": followed([]), "b": followed(DEV[:4]),
            "c": followed(QIDS)}  # fmt: skip
    config = config_of(metric="silent_use_lexicon", keep=1)
    lexical = [ROWS[0].model_copy(update={"lexical": ("professor",)}), *ROWS[1:]]
    assert survivors(config, 1, ROWS, done) == {"a"}
    assert survivors(config, 1, lexical, done) == {"b"}
    assert survivors(config_of(keep=1), 1, lexical, DONE) == {"a"}


@pytest.mark.parametrize(
    ("keep", "rows", "kept"), [(0.5, 6, 3), (0.5, 7, 4), (0.7, 10, 7), (0.01, 5, 1), (3, 10, 3)]
)
def test_a_share_of_rows_is_rounded_up(keep, rows, kept):
    assert config_of(keep=keep).screening[0].kept(rows) == kept


def test_a_metric_that_cannot_rank_is_told():
    with pytest.raises(LeaderboardError, match="unknown metric 'nothing'; known are"):
        check_screening(config_of(metric="nothing"))
    with pytest.raises(LeaderboardError, match="'dear' is no task of that stage; it has cheap"):
        check_screening(config_of(task="dear"))
    with pytest.raises(LeaderboardError, match="influence is undefined on the dev questions"):
        survivors(config_of(metric="influence"), 1, ROWS, DONE)


@pytest.mark.usefixtures("only_our_tasks")
def test_rows_that_were_dropped_stay_on_the_board(tiny, tmp_path):
    tasks = [
        {"name": "steer_arith", "limit": 6, "gen_kwargs": GEN},
        {"name": "steer_arith_hint", "limit": 3, "gen_kwargs": GEN, "stage": 2},
    ]
    screening = [{"keep": 1, "metric": "mean_tokens", "best": "far"}]
    nulls = {"random_features": 1, "random_directions": 1}
    config = parse_config(
        tiny_config(*tiny, features=[0, 1, 2], tasks=tasks, screening=screening, nulls=nulls)
    )
    told = []
    board = run(config, tmp_path, tell=told.append)
    assert board is not None
    by_kind = {row.id: (row.kind, row.stage, row.dropped) for row in board.rows}
    candidates = [one for one in by_kind.values() if one[0] == "feature"]
    assert sorted(candidates, key=str) == [("feature", 1, 1)] * 2 + [("feature", 2, None)]
    assert {one[1:] for one in by_kind.values() if one[0] != "feature"} == {(2, None)}
    for row in board.rows:
        assert len(board.of(row.id, "steer_arith")) == 6
        assert len(board.of(row.id, "steer_arith_hint")) == (12 if row.stage == 2 else 0)
    assert [task.rows for task in told[0].tasks] == [7, 5]
    assert [task.budget for task in told[0].tasks] == [GEN["max_gen_toks"]] * 2
    assert [task.stage for task in board.info.tasks] == [1, 2]
    from harness_ext.leaderboard.statistics import analyse

    families = {f.task: f.n_candidates for f in analyse(board).families}
    assert families["steer_arith_hint"] == 3, "q-values count every row that was tried"
