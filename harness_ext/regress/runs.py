"""A run, from whatever folder or files hold it: what made it, and its records."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness_ext.errors import RecordError
from harness_ext.leaderboard.board import INFO, ROWS, Board, read_board
from harness_ext.records import Record, read_records

BASELINE = "baseline"
"""Name of the run that edits nothing."""

ASPECTS = ("model", "dtype", "sae", "intervention", "prompts", "decoding", "data", "task")
"""What must agree for two runs to be compared; `questions` besides, checked on the questions."""

# Of a task's metadata, what says where something lay or ran and not what was asked.
_PLACES = {"backend", "pretrained", "batch_size", "config_source", "data_source", "data_path",
           "base_url", "model", "spec", "edits", "journal", "device", "data_sha256", "dtype",
           "intervention"}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One intervention's responses.

    Attributes:
        name: of the intervention, `baseline` where nothing is edited.
        identity: by aspect, as plain data; an aspect that the files do not tell is missing.
        noted: what may differ and is shown: backend and versions.
        records: of all tasks.
    """

    name: str
    identity: Mapping[str, Any]
    noted: Mapping[str, Any]
    records: tuple[Record, ...]
    sources: tuple[str, ...] = field(default=(), compare=False)

    def by_task(self) -> dict[str, list[Record]]:
        """Return the records by task, sorted by its name."""
        out: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            out[record.task].append(record)
        return {task: out[task] for task in sorted(out)}


def load_runs(paths: Sequence[Path]) -> dict[str, Run]:
    """Return the runs in folders or files, by name.

    A path is a folder of `sae-steered evaluate`, of `lm_eval --output_path --log_samples`, of a
    leaderboard, or a file of records. Of several results of one run and task the newest counts.

    Raises:
        RecordError: nothing readable is there, or two different runs have one name.
    """
    found: list[Run] = []
    for path in paths:
        found += _load(path)
    runs: dict[str, Run] = {}
    for run in found:
        if run.name in runs:
            raise RecordError(
                f"two runs are called '{run.name}' ({', '.join(runs[run.name].sources)};"
                f" {', '.join(run.sources)}); give one at a time"
            )
        runs[run.name] = run
    return {name: runs[name] for name in sorted(runs, key=lambda n: (n != BASELINE, n))}


def runs_of(
    runs: Mapping[str, Run], names: Collection[str], tasks: Collection[str]
) -> dict[str, Run]:
    """Return the runs that have one of those names, with the records of those tasks."""
    return {
        name: replace(run, records=tuple(r for r in run.records if r.task in tasks))
        for name, run in runs.items()
        if name in names
    }


def _load(path: Path) -> list[Run]:
    if path.is_file():
        return runs_of_records(read_records(path), str(path))
    if not path.is_dir():
        raise RecordError(f"{path}: no such file or folder; give what a run wrote")
    if (path / INFO).is_file() and (path / ROWS).is_file():
        return runs_of_board(read_board(path))
    results = sorted(path.rglob("results_*.json"))
    if results:
        return _merge(_of_results(file) for file in results)
    files = sorted(path.rglob("*.jsonl"))
    if files:
        return runs_of_records([r for f in files for r in read_records(f)], str(path))
    raise RecordError(
        f"{path}: neither results_*.json nor records; run lm_eval with --log_samples --output_path"
    )


def runs_of_records(records: Iterable[Record], source: str) -> list[Run]:
    """Return a run for each intervention of bare records, which tell nothing of the model."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.intervention].append(record)
    return [
        Run(
            BASELINE if name == "none" else name,
            {"intervention": {"fingerprint": name}},
            {},
            tuple(group),
            (source,),
        )
        for name, group in groups.items()
    ]


def runs_of_board(board: Board) -> list[Run]:
    """Return a run for each row of a leaderboard that has records."""
    info = board.info
    tasks = {task.name: task for task in info.tasks}
    prompts = {k: v for k, v in info.config.items() if k in ("chat_template", "system")}
    shots = {t["name"]: t.get("num_fewshot") for t in info.config.get("tasks", ())}
    shared = {
        "model": info.model_identity,
        "dtype": info.dtype,
        "decoding": {
            name: {"gen_kwargs": task.gen_kwargs, "repeats": task.repeats, "seed": info.seed}
            for name, task in tasks.items()
        },
        "data": {name: task.metadata.get("data_sha256") for name, task in tasks.items()},
        "task": {
            name: _asked(task.metadata) | ({"n_shot": n} if (n := shots.get(name)) else {})
            for name, task in tasks.items()
        },
    }
    return [
        Run(
            row.id,
            {
                **shared,
                "prompts": {**prompts, **({"added": row.prompt} if row.prompt else {})},
                "sae": row.sae,
                "intervention": {"fingerprint": row.fingerprint},
            },
            {"backend": info.backend, "versions": info.versions},
            board.records[row.id],
            (info.name,),
        )
        for row in board.rows
        if board.records.get(row.id)
    ]


def _of_results(path: Path) -> tuple[str, Run]:
    """Return the time and the run of one results file of lm-eval."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        config, configs = results["config"], results["configs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a results file of lm-eval ({error!r})") from error
    stamp = path.stem.removeprefix("results_")
    records: list[Record] = []
    unread = []
    for task in configs:
        samples = path.parent / f"samples_{task}_{stamp}.jsonl"
        if samples.is_file():
            try:
                records += read_records(samples)
            except RecordError as error:
                unread.append(str(error))
    if not records:
        why = unread[0] if unread else "no samples beside it; run lm_eval with --log_samples"
        raise RecordError(f"{path}: no records: {why}")
    ours = config.get("sae_steered") or {}
    asked = {record.task for record in records}
    identity = {
        "model": ours.get("model_identity") or _foreign_model(results),
        "dtype": config.get("model_dtype"),
        "prompts": {
            key: results.get(key)
            for key in ("chat_template_sha", "system_instruction_sha", "fewshot_as_multiturn")
        },
        "decoding": {
            task: {
                "generation_kwargs": c.get("generation_kwargs"),
                "repeats": c.get("repeats"),
                "seed": ours.get("seed"),
            }
            for task, c in configs.items()
            if task in asked
        },
        "data": {t: (c.get("metadata") or {}).get("data_sha256") for t, c in configs.items()},
        "task": {
            task: {
                "version": results.get("versions", {}).get(task),
                "n_shot": results.get("n-shot", {}).get(task),
                **_asked(c.get("metadata") or {}),
            }
            for task, c in configs.items()
            if task in asked
        },
        **_edited(ours),
    }
    noted = {"backend": ours.get("backend"), "versions": ours.get("versions", {})}
    name = ours.get("name") or BASELINE
    name = BASELINE if ours.get("intervention", "none") == "none" else name
    known = {aspect: value for aspect, value in identity.items() if value is not None}
    return stamp, Run(name, known, noted, tuple(records), (str(path),))


def _edited(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was edited, and with which SAEs, apart."""
    told = ours.get("edits") or {}
    edits = [dict(edit) for edit in told.get("edits", ())]
    saes = [edit.pop("sae", None) for edit in edits]
    guard = {"norm_guard": told.get("norm_guard"), "thinking": told.get("thinking")}
    return {
        "sae": sorted({str(sae) for sae in saes if sae}),
        "intervention": {"edits": edits, **(guard if edits else {})},
    }


def _foreign_model(results: Mapping[str, Any]) -> str | None:
    config = results.get("config", {})
    name = results.get("model_name") or config.get("model")
    return None if name is None else " ".join(filter(None, (str(name), config.get("model_sha"))))


def _asked(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in _PLACES}


def _merge(found: Iterable[tuple[str, Run]]) -> list[Run]:
    """Return runs by name: results of different tasks together, of one task the newest."""
    by_name: dict[str, list[Run]] = defaultdict(list)
    for _, run in sorted(found, key=lambda pair: pair[0]):
        by_name[run.name].append(run)
    merged = []
    for name, runs in by_name.items():
        newest = runs[-1]
        for run in runs:
            for aspect in ("model", "dtype", "sae", "intervention", "prompts"):
                if run.identity.get(aspect) != newest.identity.get(aspect):
                    raise RecordError(
                        f"two runs are called '{name}' and differ in their {aspect}"
                        f" ({run.sources[0]}; {newest.sources[0]}); give one at a time"
                    )
        records: dict[str, list[Record]] = {}
        identity: dict[str, Any] = dict(newest.identity)
        for aspect in ("decoding", "data", "task"):
            identity[aspect] = {k: v for run in runs for k, v in run.identity[aspect].items()}
        for run in runs:
            records |= run.by_task()
        rows = tuple(record for group in records.values() for record in group)
        sources = tuple(source for run in runs for source in run.sources)
        merged.append(Run(name, identity, newest.noted, rows, sources))
    return merged
