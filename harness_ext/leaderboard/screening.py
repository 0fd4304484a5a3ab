"""Which candidates go on: by cheap tasks first, on the questions that rank and never publish.

Only dev questions are looked at, so that what is published of a row that went on was not selected
on. Random rows, prompts and the baseline always go on: without them the last stage has no null.
"""

from collections.abc import Mapping, Sequence

from harness_ext.leaderboard.board import BASELINE, Row
from harness_ext.leaderboard.config import Config, LeaderboardError, ScreeningConfig
from harness_ext.leaderboard.counting import is_lexical
from harness_ext.leaderboard.scoring import Scored
from harness_ext.leaderboard.split import is_dev
from harness_ext.metric_table import METRICS
from harness_ext.metrics import estimate
from harness_ext.records import Record


def check_screening(config: Config) -> None:
    """Return nothing if every stage ranks by a metric there is, on a task that it runs.

    Raises:
        LeaderboardError: names the entry and what is known.
    """
    for stage, one in enumerate(config.screening, 1):
        if one.metric not in METRICS:
            raise LeaderboardError(
                f"screening after stage {stage}: unknown metric '{one.metric}'; known are"
                f" {', '.join(sorted(METRICS))}"
            )
        names = [task.name for task in config.tasks if task.stage == stage]
        if one.task is not None and one.task not in names:
            raise LeaderboardError(
                f"screening after stage {stage}: '{one.task}' is no task of that stage; it has"
                f" {', '.join(names)}"
            )
    if config.screening and not 0 < config.dev_share < 1:
        raise LeaderboardError(
            f"screening selects on dev questions and dev_share is {config.dev_share:g}; give a"
            f" share between 0 and 1"
        )


def survivors(
    config: Config, stage: int, rows: Sequence[Row], scored: Mapping[str, Mapping[str, Scored]]
) -> set[str]:
    """Return the ids of the candidates that go on after a stage.

    Lexical rows are in no ranking by a metric that counts words, and do not go on by one.

    Args:
        config: of the leaderboard.
        stage: from 1.
        rows: candidates that ran it.
        scored: of every row on every task of the stage.

    Raises:
        LeaderboardError: the task has no records to rank by, or the metric is undefined for all.
    """
    one = config.screening[stage - 1]
    tasks = list(scored[BASELINE])
    task = one.task or tasks[0]
    base = _value(config, one, scored[BASELINE][task].records)
    ranked = []
    for row in rows:
        if row.lexical and is_lexical(one.metric):
            continue
        value = _value(config, one, scored[row.id][task].records)
        if value is not None and base is not None:
            ranked.append((_merit(one, value - base), row.id))
    if not ranked:
        raise LeaderboardError(
            f"screening after stage {stage}: {one.metric} is undefined on the dev questions of"
            f" {task}; ask more questions, or rank by another metric"
        )
    ranked.sort(key=lambda pair: (-pair[0], pair[1]))
    return {row_id for _, row_id in ranked[: one.kept(len(rows))]}


def _value(config: Config, one: ScreeningConfig, records: Sequence[Record]) -> float | None:
    seed, share = config.split_seed, config.dev_share
    dev = [record for record in records if is_dev(record.qid, seed=seed, share=share)]
    return estimate(dev, one.metric).value if dev else None


def _merit(one: ScreeningConfig, effect: float) -> float:
    good = METRICS[one.metric].higher_is_better
    best = one.best or {True: "high", False: "low", None: "far"}[good]
    return {"high": effect, "low": -effect, "far": abs(effect)}[best]
