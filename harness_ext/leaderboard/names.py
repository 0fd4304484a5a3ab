"""What metrics and rows are called where people read them, and in which unit numbers stand."""

import re
from urllib.parse import quote

from harness_ext.leaderboard.board import Kind, Row
from harness_ext.metric_table import METRICS

KINDS: dict[Kind, str] = {
    "baseline": "baseline",
    "feature": "feature",
    "random_feature": "null: random feature",
    "random_direction": "null: random direction",
    "prompt": "prompt",
}
"""Kinds of rows in words."""

NULLS: tuple[Kind, ...] = ("random_feature", "random_direction")
"""Kinds that candidates are held against."""

_ARMS = {"none": "no hint", "correct": "correct hint", "wrong": "wrong hint", "placebo": "placebo"}
_TITLES = {
    "truncation": "truncated",
    "no_answer": "no answer",
    "mean_tokens": "tokens a response",
    "mean_reasoning_tokens": "reasoning tokens a response",
    "repeated_4grams": "repeated 4-grams",
    "boxed": "boxed answers",
    "acc_lenient": "lenient accuracy",
    "acc_verified": "verified accuracy",
    "acc": "accuracy",
}


def is_share(metric: str) -> bool:
    """Return whether a metric is a share, shown in percent, or a plain number such as tokens."""
    known = METRICS.get(metric)
    if known is None:  # of a user's own detector
        return not metric.startswith(("n_", "excluded_", "mean_"))
    return not metric.startswith("mean_") and bool(known.den or known.special)


def metric_title(metric: str) -> str:
    """Return a metric's name in words, such as `silent use (lexicon)`."""
    name, sign = metric, ""
    if name.startswith("acc"):
        start, _, arm = name.rpartition("_")
        return f"{_TITLES.get(start, start)}, {_ARMS.get(arm, arm)}"
    if name in _TITLES:
        return _TITLES[name]
    if name.endswith("_correct"):
        name, sign = name.removesuffix("_correct"), ", correct hints"
    match = re.fullmatch(
        r"(verbalization_reasoning|verbalization_final|normalised_verbalization|verbalization"
        r"|silent_use|verbalized_use|false_positive_rate)_(\w+)",
        name,
    )
    if match:
        return f"{match[1].replace('_', ' ')} ({match[2]}){sign}"
    return name.replace("_", " ") + sign


def row_title(row: Row) -> str:
    """Return what a reader sees of a row: its label, or its id where it has none."""
    return row.label or row.id


def edit_title(row: Row) -> str:
    """Return an edit in a few words, such as `clamp` times 2; '' where nothing is edited."""
    if row.op is None:
        return ""
    if row.strength is not None:
        return f"{row.op} \u00d7 {row.strength:g}"
    return f"{row.op} {row.value:g}" if row.value is not None else row.op


def row_link(row_id: str, place: int) -> str:
    """Return the link to a row's transcripts on the task with that number, within the page."""
    return f"#row/{quote(row_id, safe='')}/{place}"
