"""What a leaderboard will cost: requests, tokens and time, known before any weights are loaded."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from harness_ext.generation import Generation
from harness_ext.journal import Journal
from harness_ext.leaderboard.config import Config
from harness_ext.leaderboard.expand import settings
from harness_ext.leaderboard.questions import Task

ASSUMED_RATE = {"hf": 100.0, "vllm": 400.0, "server": 400.0}
"""Generated tokens a second of a small model on a few CPU cores, until one was measured."""

_PILOT = 500


@dataclass(frozen=True)
class TaskForecast:
    """One task.

    Attributes:
        task, stage: which.
        questions: distinct ones.
        requests: of one row, repeats included.
        prompt_tokens: of one row.
        budget: most new tokens of one request; 0 where nothing is generated.
        rows: that run it, as far as that is known: screening may keep fewer.
    """

    task: str
    stage: int
    questions: int
    requests: int
    prompt_tokens: int
    budget: int
    rows: int


@dataclass(frozen=True)
class Forecast:
    """A whole leaderboard.

    Attributes:
        rows: number of rows by kind.
        tasks: one by one.
        requests, prompt_tokens: of all rows.
        kept: responses that the store holds already.
        new_tokens: expected, of what is left to make.
        tokens_a_response: expected.
        tokens_from: `store` (mean of what it holds) or `budget` (the most there can be).
        rate: new tokens a second, all requests together.
        rate_from: `measured`, `config` or `assumed`.
        seconds: `new_tokens / rate`.
    """

    rows: dict[str, int]
    tasks: tuple[TaskForecast, ...]
    requests: int
    prompt_tokens: int
    kept: int
    new_tokens: int
    tokens_a_response: float
    tokens_from: str
    rate: float
    rate_from: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def count_rows(config: Config, n_features: int) -> dict[str, int]:
    """Return the number of rows of each kind.

    Args:
        config: of the leaderboard.
        n_features: that are candidates.
    """
    sizes = len(settings(config))
    return {
        "baseline": 1,
        "feature": n_features * sizes + len(config.specs),
        "random_feature": config.nulls.random_features * sizes,
        "random_direction": config.nulls.random_directions * sizes,
        "prompt": len(config.prompts),
    }


def forecast(
    config: Config,
    rows: dict[str, int],
    tasks: Sequence[Task],
    encode: Callable[[str], Sequence[int]],
    store: Path,
    measured: float | None = None,
) -> Forecast:
    """Return what a leaderboard will cost.

    Args:
        config: of the leaderboard.
        rows: of `count_rows`.
        tasks: with their requests.
        encode: text to token ids.
        store: folder of the responses; it need not be there.
        measured: new tokens a second of an earlier run of this leaderboard.
    """
    found, alive = [], rows["feature"]
    others = sum(rows.values()) - alive
    for stage in range(1, config.stages + 1):
        if stage > 1:
            alive = min(alive, config.screening[stage - 2].kept(alive))
        budget = int(config.model.get("max_gen_toks") or 256)  # where a task names none
        found += [
            _of_task(task, encode, alive + others, budget) for task in tasks if task.stage == stage
        ]
    requests = sum(one.requests * one.rows for one in found)
    kept, pilot = _kept(store)
    left = max(0, requests - kept)
    most = sum(one.requests * one.rows * one.budget for one in found) / max(requests, 1)
    mean = most if pilot is None else pilot
    rate, source = ASSUMED_RATE.get(config.backend, 100.0), "assumed"
    if measured:
        rate, source = measured, "measured"
    if config.tokens_per_second:
        rate, source = config.tokens_per_second, "config"
    return Forecast(
        rows=rows,
        tasks=tuple(found),
        requests=requests,
        prompt_tokens=sum(one.prompt_tokens * one.rows for one in found),
        kept=kept,
        new_tokens=round(left * mean),
        tokens_a_response=round(mean, 1),
        tokens_from="budget" if pilot is None else "store",
        rate=round(rate, 1),
        rate_from=source,
        seconds=round(left * mean / rate, 1),
    )


def _of_task(
    task: Task, encode: Callable[[str], Sequence[int]], rows: int, default: int
) -> TaskForecast:
    texts: Counter[str] = Counter()
    budget = 0
    for request in task.requests[""]:
        texts["".join(str(part) for part in _texts(request))] += request.repeats or 1
        if request.request_type == "generate_until":
            arguments: Any = request.args
            given: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments[1]), default))
            budget = max(budget, int(given["max_gen_toks"]))
    return TaskForecast(
        task=task.name,
        stage=task.stage,
        questions=task.info().n_questions,
        requests=texts.total(),
        prompt_tokens=sum(len(encode(text)) * n for text, n in texts.items()),
        budget=budget,
        rows=rows,
    )


def _texts(request: Any) -> Sequence[str]:
    generated = request.request_type == "generate_until"
    return request.args[:1] if generated else request.args


def _kept(store: Path) -> tuple[int, float | None]:
    """Return how many responses a store holds, and their mean length; None without any."""
    if not any(store.glob("*.jsonl")):
        return 0, None
    with Journal.open(store) as journal:
        keys = journal.keys()
        step = max(1, len(keys) // _PILOT)
        entries = (journal.get(key) for key in keys[::step])
        lengths = [
            entry.response.n_tokens
            for entry in entries
            if entry is not None and isinstance(entry.response, Generation)
        ]
        return len(keys), sum(lengths) / len(lengths) if lengths else None
