"""What a leaderboard's folder holds: its rows, what ran them, and every response's record."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from harness_ext.errors import RecordError
from harness_ext.records import Record, read_records, write_records

BASELINE = "baseline"
"""Id of the row that edits nothing."""

ROWS = "rows.json"
INFO = "info.json"
RECORDS = "records"

Kind = Literal["baseline", "feature", "random_feature", "random_direction", "prompt"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Strict):
    """One row: an intervention, a null, a prompt, or the baseline, on every task.

    Attributes:
        id: unique, safe as a file name.
        kind: what the row is; the two random kinds are the null that candidates are held against.
        label: what a reader sees.
        spec: the intervention as plain data, None where nothing is edited.
        fingerprint: of model, SAE, edits and positions; `none` where nothing is edited.
        prompt: the instruction that a `prompt` row adds; None for all others.
        sae: name of the SAE.
        feature: index of the feature; None for directions, prompts and specs of several edits.
        op, value, strength: of the edit; `value` in `unit`, `strength` its multiple of max_act.
        unit: `sae` or `residual`, as in a spec; None where nothing is edited, or several times.
        hook_point, positions: where the edit holds.
        matches: for a null, the id of the row whose mean change of the residual it was scaled to.
        mean_change: mean L2 length that the row adds to the residual at an edited token, measured
            on the calibration text; None where it was not measured.
        promoted: the tokens that the direction promotes most through the unembedding.
        lexical: those of them that a detector of hint mentions would count, so that the row is
            left out of rankings by those detectors.
        stage: how many stages of screening the row went through; 1 without screening.
        dropped: the stage after which screening dropped it, None if it ran on every task.
        sensitivity: share of texts, written by an LLM after the feature's examples, on which it
            fires; None where `sae-steered sensitivity` was not joined.
        sensitivity_control: the same of texts that were written for another feature.
    """

    id: str
    kind: Kind
    label: str
    spec: dict[str, Any] | None = None
    fingerprint: str = "none"
    prompt: str | None = None
    sae: str | None = None
    feature: int | None = None
    op: str | None = None
    value: float | None = None
    unit: Literal["sae", "residual"] | None = None
    strength: float | None = None
    hook_point: str | None = None
    positions: str | None = None
    matches: str | None = None
    mean_change: float | None = None
    promoted: tuple[str, ...] = ()
    lexical: tuple[str, ...] = ()
    stage: int = 1
    dropped: int | None = None
    sensitivity: float | None = None
    sensitivity_control: float | None = None


class TaskInfo(_Strict):
    """One task as it was run.

    Attributes:
        name: lm-eval task.
        n_questions: distinct questions that were asked.
        repeats: samples a question and arm.
        gen_kwargs: decoding, as it was resolved.
        metadata: the task's, data source and digest included.
        stage: the stage of screening that ran it, from 1.
    """

    name: str
    n_questions: int
    repeats: int = 1
    gen_kwargs: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    stage: int = 1


class Info(_Strict):
    """What made the responses.

    Attributes:
        name: of the leaderboard.
        model: label of the model; `model_identity` a digest of its weights.
        backend: `hf`, `vllm` or `server`.
        dtype: of the model.
        engine: facts of the engine: versions, device, parallelism.
        versions: of the packages.
        seed: of the sampling.
        split_seed: of the dev and test split of the questions.
        dev_share: share of the questions on which rows are ranked.
        tasks: as they were run.
        config: the configuration, whole.
        created: UTC, ISO 8601.
    """

    name: str
    model: str
    model_identity: str
    backend: str
    dtype: str
    engine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    seed: int = 0
    split_seed: int = 0
    dev_share: float = 0.5
    tasks: tuple[TaskInfo, ...] = ()
    config: dict[str, Any] = {}
    created: str = ""


@dataclass(frozen=True)
class Board:
    """A leaderboard that was run: everything that statistics and reports start from.

    Attributes:
        info: what made the responses.
        rows: the baseline first.
        records: of each row, by its id; all tasks and arms.
    """

    info: Info
    rows: tuple[Row, ...]
    records: Mapping[str, tuple[Record, ...]]

    def row(self, row_id: str) -> Row:
        """Return the row with that id.

        Raises:
            RecordError: there is none.
        """
        for row in self.rows:
            if row.id == row_id:
                return row
        raise RecordError(f"no row '{row_id}'; rows are {', '.join(r.id for r in self.rows[:20])}")

    def of(self, row_id: str, task: str) -> list[Record]:
        """Return a row's records on one task."""
        return [record for record in self.records.get(row_id, ()) if record.task == task]


def write_board(board: Board, folder: Path) -> None:
    """Write a board as `info.json`, `rows.json` and one records file a row below `records/`."""
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    for row_id, records in board.records.items():
        write_records(records, folder / RECORDS / f"{row_id}.jsonl")
    rows = [row.model_dump(mode="json", exclude_defaults=True) for row in board.rows]
    (folder / ROWS).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (folder / INFO).write_text(board.info.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_board(folder: Path) -> Board:
    """Return the board in `folder`.

    Raises:
        RecordError: a file is missing or damaged; names it.
    """
    info = _read(folder, INFO, TypeAdapter(Info))
    rows = _read(folder, ROWS, TypeAdapter(tuple[Row, ...]))
    records = {row.id: tuple(read_records(folder / RECORDS / f"{row.id}.jsonl")) for row in rows}
    return Board(info, rows, records)


def _read(folder: Path, name: str, kind: TypeAdapter[Any]) -> Any:
    again = f"`sae-steered leaderboard score {folder} --from-store`"
    try:
        return kind.validate_json((folder / name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise RecordError(
            f"{folder} holds no leaderboard ({reason}: {folder / name}); give the folder that"
            f" `leaderboard run` wrote, or make these files from its store with {again}"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecordError(
            f"{folder / name} is damaged{f' at {where}' if where else ''}: {first['msg']}; make it"
            f" again with {again}"
        ) from error
