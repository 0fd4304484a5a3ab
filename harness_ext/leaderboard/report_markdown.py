"""The leaderboard as Markdown: for a README, an issue, a summary of a job."""

import re
from collections.abc import Iterable, Sequence

from harness_ext.leaderboard.board import Board, Row
from harness_ext.leaderboard.flat import RECOMPUTE
from harness_ext.leaderboard.names import KINDS, NULLS, edit_title, metric_title, row_title
from harness_ext.leaderboard.results import Cell, Family, Results
from harness_ext.leaderboard.summary import (
    as_detectable,
    as_effect,
    as_level,
    as_p,
    count,
    detectable,
    discoveries,
    families_of,
    needed,
)

TOP = 10
"""Ranked rows that each family shows."""


def markdown(board: Board, results: Results, *, top: int = TOP) -> str:
    """Return the headline, what was tested, and of each family the best ranks.

    Prompts, lexical rows and the largest null stand below them.

    Args:
        board: rows and what made them.
        results: their statistics.
        top: ranked rows a family; discoveries are always shown.
    """
    info = board.info
    parts = [
        f"# {text(info.name)}",
        f"{text(info.model)}, {text(info.dtype)}, on {text(info.backend)};"
        f" {count(board.rows, ['feature'])} candidates, {count(board.rows, NULLS)} nulls,"
        f" {count(board.rows, ['prompt'])} with a prompt.",
        *_headline(board, results),
        "## What was tested",
        _families(board, results),
    ]
    rows = {row.id: row for row in board.rows}
    for family in results.families:
        cells = [c for c in results.cells if (c.task, c.metric) == (family.task, family.metric)]
        parts += [
            f"## {metric_title(family.metric)}, {text(family.task)}",
            _family(family, rows, cells, top),
        ]
    parts += [
        "## Source",
        f"Every number is made again from the stored responses by `{RECOMPUTE}`."
        f" Model {text(info.model)} (`{text(info.model_identity)}`), seed {info.seed},"
        f" split seed {info.split_seed}, dev share {info.dev_share:g}.",
        "; ".join(f"{text(name)} {text(version)}" for name, version in info.versions.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def text(value: object) -> str:
    """Return anybody's text as one line that is neither Markdown nor HTML."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)


def _headline(board: Board, results: Results) -> list[str]:
    found = discoveries(board, results)
    if found:
        lines = [
            f"- **{text(row_title(d.row))}** on {text(d.cell.task)}:"
            f" {metric_title(d.cell.metric)}"
            f" {as_effect(d.cell.metric, d.cell.effect.value)}{_ends(d.cell)},"
            f" q {as_p(d.cell.q)}"
            for d in found
        ]
        noun = "discovery" if len(found) == 1 else "discoveries"
        return [f"**{len(found)} {noun}**", "\n".join(lines)]
    sizes = "; ".join(
        f"{needed(f)} ({metric_title(f.metric)}, {text(f.task)})" for f in detectable(results)
    )
    known = (
        f"With 80 % power a single effect would have been found from {sizes} on; smaller ones are"
        " not ruled out."
        if sizes
        else "No size of effect can be named that would have been found: too few questions."
    )
    return [f"**No discovery.** {known}"]


def _families(board: Board, results: Results) -> str:
    return _table(
        [
            *("task", "metric", "baseline", "candidates", "nulls", "discoveries"),
            *("detectable, one row", "detectable, corrected", "note"),
        ],
        [
            [
                text(f.task),
                metric_title(f.metric),
                as_level(f.metric, base),
                str(f.n_candidates),
                str(f.n_null),
                str(len(f.discoveries)),
                as_detectable(f.metric, f.smallest_effect),
                as_detectable(f.metric, f.smallest_discovery),
                text(f.note),
            ]
            for f, base in families_of(board, results)
        ],
        left=(0, 1, 8),
    )


def _family(family: Family, rows: dict[str, Row], cells: Sequence[Cell], top: int) -> str:
    ranked = sorted((c for c in cells if c.rank is not None), key=lambda c: c.rank or 0)
    shown = [c for i, c in enumerate(ranked) if i < top or c.discovery]
    shown += [c for c in cells if "lexical" in c.flags or (c.discovery and c not in shown)]
    prompts = [c for c in cells if rows[c.row].kind == "prompt"]
    nulls = [c for c in cells if rows[c.row].kind in NULLS and c.effect.value is not None]
    largest = sorted(nulls, key=lambda c: -abs(c.effect.value or 0.0))[:1]
    head = [
        "rank",
        "row",
        "edit",
        "base",
        "with",
        "effect",
        "q",
        "null p",
        "shrunk (dev)",
        "truncated",
        "tokens",
        "flags",
    ]
    lines = [_line(rows[c.row], c) for c in (*shown, *prompts, *largest)]
    left_out = len(cells) - len(shown) - len(prompts) - len(largest)
    note = f"\n\n{left_out} more rows are in the CSV file." if left_out > 0 else ""
    return _table(head, lines, left=(1, 2, 11)) + note


def _line(row: Row, cell: Cell) -> list[str]:
    kind = "" if row.kind == "feature" else f" ({KINDS[row.kind]})"
    name = f"{text(row_title(row))}{kind}"
    flags = [*(["**discovery**"] if cell.discovery else []), *map(text, cell.flags)]
    return [
        "" if cell.rank is None else str(cell.rank),
        name,
        text(edit_title(row)),
        as_level(cell.metric, cell.base.value),
        as_level(cell.metric, cell.value.value),
        as_effect(cell.metric, cell.effect.value, unit=False) + _ends(cell),
        as_p(cell.q),
        as_p(cell.p_null),
        as_effect(cell.metric, cell.shrunk_dev, unit=False),
        _pair("truncation", cell.truncation_base, cell.truncation),
        _pair("mean_tokens", cell.tokens_base, cell.tokens),
        ", ".join(flags),
    ]


def _ends(cell: Cell) -> str:
    lo, hi = (as_effect(cell.metric, end, unit=False) for end in (cell.effect.lo, cell.effect.hi))
    return "" if cell.effect.lo is None or cell.effect.hi is None else f" [{lo}, {hi}]"


def _pair(metric: str, base: float | None, value: float | None) -> str:
    return "" if value is None else f"{as_level(metric, base)} → {as_level(metric, value)}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], *, left: Sequence[int]) -> str:
    rule = ["---" if i in left else "--:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])
