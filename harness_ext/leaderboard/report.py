"""A leaderboard as files: a page that opens without a network, Markdown, CSV and Parquet."""

import json
from pathlib import Path
from typing import Any

from harness_ext.errors import RecordError
from harness_ext.leaderboard.board import BASELINE, Board, TaskInfo
from harness_ext.leaderboard.export import write_csv, write_parquet
from harness_ext.leaderboard.flat import RECOMPUTE, flat_rows
from harness_ext.leaderboard.names import NULLS, metric_title, row_link, row_title
from harness_ext.leaderboard.pairs import funnel_steps, responses, signs
from harness_ext.leaderboard.report_charts import (
    Cells,
    by_key,
    family_dose,
    family_forest,
    use_scatter,
)
from harness_ext.leaderboard.report_markdown import markdown
from harness_ext.leaderboard.report_rows import write_rows
from harness_ext.leaderboard.report_table import rows_table
from harness_ext.leaderboard.results import Family, Results
from harness_ext.leaderboard.summary import (
    PRIMARY,
    as_detectable,
    as_effect,
    as_level,
    as_p,
    as_size,
    count,
    detectable,
    discoveries,
    families_of,
    first_family,
    needed,
)
from harness_ext.pages import render
from harness_ext.pages.charts import funnel

PAGE, MARKDOWN, CSV, PARQUET = (
    "index.html",
    "leaderboard.md",
    "leaderboard.csv",
    "leaderboard.parquet",
)


def write_report(board: Board, results: Results, folder: Path) -> list[Path]:
    """Return the paths of the report's files, the page first.

    `index.html` holds every statistic and chart; the transcripts of a row are in `rows/` beside
    it and are loaded when a reader opens the row. `leaderboard.csv` and `.parquet` have a line
    for every row, task and metric with all that made it.

    Args:
        board: what was run.
        results: its statistics, of the same rows.
        folder: where the files go; made where it is missing, and files of the same name are
            replaced.

    Raises:
        RecordError: the results are of other rows, or the folder cannot be written.
    """
    known = {row.id for row in board.rows}
    foreign = sorted({cell.row for cell in results.cells} - known)
    if foreign:
        raise RecordError(
            f"statistics of row '{foreign[0]}', which is not on the leaderboard '{board.info.name}'"
            f" ({len(known)} rows); run `sae-steered leaderboard score` again"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / PAGE
        page.write_text(page_text(board, results), encoding="utf-8")
        lines = flat_rows(board, results)
        (folder / MARKDOWN).write_text(markdown(board, results), encoding="utf-8")
        tables = [write_csv(lines, folder / CSV), write_parquet(lines, folder / PARQUET)]
        return [page, folder / MARKDOWN, *tables, *write_rows(board, folder)]
    except OSError as error:
        raise RecordError(
            f"{folder}: the report cannot be written ({error.strerror}: {error.filename});"
            " responses and statistics are untouched"
        ) from error


def page_text(board: Board, results: Results) -> str:
    """Return the page."""
    cells = by_key(results)
    places = {task.name: place for place, task in enumerate(board.info.tasks)}
    first = first_family(results)
    families = sorted(results.families, key=lambda family: family is not first)
    return render(
        "leaderboard.html",
        info=board.info,
        counts={
            "feature": count(board.rows, ["feature"]),
            "null": count(board.rows, NULLS),
            "prompt": count(board.rows, ["prompt"]),
        },
        n_candidates=max((f.n_candidates for f in results.families), default=0),
        level=f"{first.level:g}" if first else ".05",
        discoveries=_discoveries(board, results, places),
        detectable=[
            {
                "task": f.task,
                "metric": metric_title(f.metric),
                "effect": needed(f),
            }
            for f in detectable(results)
        ],
        families=_families(board, results),
        table=rows_table(
            board,
            results,
            task=first.task if first else "",
            metric=first.metric if first else "",
            places=places,
        ),
        panels=[_panel(board, cells, family, places) for family in families],
        tasks=[_task(board, cells, results, task, places) for task in board.info.tasks],
        recompute=RECOMPUTE,
        files=[CSV, PARQUET, MARKDOWN],
        facts=_facts(board, results),
        task_json=_json([task.model_dump() for task in board.info.tasks]),
        config_json=_json(board.info.config),
    )


def _discoveries(board: Board, results: Results, places: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "title": row_title(d.row),
            "href": row_link(d.row.id, places.get(d.cell.task, 0)),
            "task": d.cell.task,
            "metric": metric_title(d.cell.metric),
            "effect": as_effect(d.cell.metric, d.cell.effect.value),
            "ends": ", ".join(
                as_effect(d.cell.metric, end, unit=False)
                for end in (d.cell.effect.lo, d.cell.effect.hi)
                if end is not None
            ),
            "q": as_p(d.cell.q),
            "flags": d.cell.flags,
        }
        for d in discoveries(board, results)
    ]


def _families(board: Board, results: Results) -> list[dict[str, Any]]:
    return [
        {
            "task": f.task,
            "metric": metric_title(f.metric),
            "base": as_level(f.metric, base),
            "n_candidates": f.n_candidates,
            "n_null": f.n_null,
            "n_found": len(f.discoveries),
            "smallest": as_detectable(f.metric, f.smallest_effect),
            "corrected": as_detectable(f.metric, f.smallest_discovery),
            "nulls": _nulls(f),
            "note": f.note,
        }
        for f, base in families_of(board, results)
    ]


def _nulls(family: Family) -> str:
    if family.null_mean is None or family.null_sd is None:
        return "\u2013"
    mean = as_effect(family.metric, family.null_mean, unit=False)
    return f"{mean} \u00b1 {as_size(family.metric, family.null_sd)}"


def _panel(board: Board, cells: Cells, family: Family, places: dict[str, int]) -> dict[str, Any]:
    place = places.get(family.task, 0)
    return {
        "task": family.task,
        "metric": metric_title(family.metric),
        "forest": family_forest(board, cells, family, place),
        "dose": family_dose(board, cells, family, place),
        "caption": "Test questions, 95 % intervals: discoveries and best ranks, then lexical"
        " rows, prompts, and the largest nulls.",
    }


def _task(
    board: Board, cells: Cells, results: Results, task: TaskInfo, places: dict[str, int]
) -> dict[str, Any]:
    base = responses(board.of(BASELINE, task.name))
    use = next((m for m in PRIMARY if m.startswith("silent") and m in results.metrics), None)
    place = places[task.name]
    return {
        "name": task.name,
        "n_questions": task.n_questions,
        "repeats": task.repeats,
        "href": row_link(BASELINE, place),
        "scatter": use_scatter(board, cells, task.name, place, accuracy="acc_none", use=use)
        if use
        else None,
        "funnels": [
            funnel(funnel_steps(base, sign), title=f"From {sign} hints to silent use, responses")
            for sign in signs(base)
        ],
    }


def _facts(board: Board, results: Results) -> list[tuple[str, str]]:
    info = board.info
    facts = [
        ("model", info.model),
        ("weights", info.model_identity),
        ("dtype", info.dtype),
        ("backend", info.backend),
        ("engine", ", ".join(f"{k} {v}" for k, v in info.engine.items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in info.versions.items())),
        ("sampling seed", str(info.seed)),
        ("split", f"seed {info.split_seed}, {info.dev_share:.0%} of the questions rank rows"),
        ("SAE", ", ".join(sorted({row.sae for row in board.rows if row.sae}))),
        ("hook points", ", ".join(sorted({r.hook_point for r in board.rows if r.hook_point}))),
        ("statistics", ", ".join(f"{k} {v}" for k, v in results.settings.items())),
        ("made", info.created),
    ]
    return [(name, value) for name, value in facts if value]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
