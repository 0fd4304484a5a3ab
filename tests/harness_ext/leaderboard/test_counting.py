import numpy as np

from harness_ext.detectors import REGISTRY
from harness_ext.leaderboard.counting import count_side, keys_of
from harness_ext.leaderboard.simulate import Simulation, simulate_board
from harness_ext.leaderboard.statistics import DEFAULT_METRICS
from harness_ext.metric_table import METRICS


def test_counting_flips_only_gives_what_counting_everything_gives():
    keys = keys_of([METRICS[name] for name in DEFAULT_METRICS])
    board = simulate_board(Simulation(features=2, nulls=1, questions=20, repeats=3))
    for records in board.records.values():
        quick = count_side(records, keys)
        whole = count_side(records, keys, dict(REGISTRY))  # another registry takes no short cuts
        assert quick.qids == whole.qids
        assert quick.column("wrong.flip.lexicon").any()
        for key in keys:
            own, other = quick.column(key), whole.column(key)
            if key.endswith(".asked"):  # read as "was it asked at all"
                own, other = own.any(), other.any()
            assert np.array_equal(own, other), key


def test_texts_are_searched_where_a_metric_counts_them():
    keys = keys_of([METRICS["acc_none"], METRICS["false_positive_rate_lexicon"]])
    board = simulate_board(Simulation(features=0, nulls=0, questions=20))
    side = count_side(board.records["baseline"], keys)
    assert side.column("unhinted.lexicon.known").any()
