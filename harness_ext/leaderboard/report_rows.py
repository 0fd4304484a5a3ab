"""The transcripts of one row on one task, in a file that the page loads when a reader asks."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness_ext.agreement import agreement
from harness_ext.counts import SIGNS
from harness_ext.detectors import DETECTORS
from harness_ext.leaderboard.board import BASELINE, Board, Row
from harness_ext.leaderboard.flat import layer_of
from harness_ext.leaderboard.names import KINDS, edit_title, row_title
from harness_ext.leaderboard.pairs import (
    Key,
    Response,
    change,
    false_positives,
    fixed_verbalization,
    funnel_steps,
    hint_use,
    responses,
    signs,
)
from harness_ext.pages import render
from harness_ext.pages.charts import funnel

UNHINTED = ("none", "placebo")

ROWS = "rows"
"""Folder of the files, beside the page."""


def write_rows(board: Board, folder: Path) -> list[Path]:
    """Return the paths of one file for every row and task, written below `folder`/rows.

    A script element loads them from a file as from a server, which `fetch` does not. They are
    compressed: transcripts are most of a report.
    """
    (folder / ROWS).mkdir(parents=True, exist_ok=True)
    paths = []
    for place, task in enumerate(board.info.tasks):
        base = responses(board.of(BASELINE, task.name))
        by_key = {r.key: r for r in base}
        for row in board.rows:
            records = () if row.id == BASELINE else board.of(row.id, task.name)
            own = responses(records, unhinted=False) if records else base * (row.id == BASELINE)
            if not own:
                continue  # dropped by screening before this task
            data = row_data(row, task.name, own, by_key)
            path = folder / ROWS / file_name(row.id, place)
            path.write_text(script(f"{row.id}/{place}", data), encoding="ascii")
            paths.append(path)
    return paths


def file_name(row_id: str, place: int) -> str:
    """Return the name of a row's file; row ids are safe as file names, tasks have a number."""
    return f"{row_id}.{place}.js"


def script(name: str, data: Any) -> str:
    """Return a script that hands compressed data to the page, the same bytes every time."""
    plain = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = base64.b64encode(gzip.compress(plain.encode(), compresslevel=6, mtime=0))
    return f'SaeRows.load({json.dumps(name)},"{packed.decode()}");\n'


def row_data(
    row: Row, task: str, own: Sequence[Response], base: Mapping[Key, Response]
) -> dict[str, Any]:
    """Return all that the page shows of one row on one task, as plain data.

    Args:
        row: which.
        task: its name.
        own: the row's responses.
        base: the baseline's, by key.
    """
    by_key = {r.key: r for r in own}
    found = {
        "title": row_title(row),
        "html": render(
            "leaderboard_row.html",
            row=row,
            title=row_title(row),
            kind=KINDS[row.kind],
            edit=edit_title(row),
            layer=layer_of(row),
            task=task,
            is_base=row.id == BASELINE,
            uses=_uses(own, base, by_key),
            funnels=_funnels(row, own, base),
            checks=[_check(a, own) for a in UNHINTED if row.id == BASELINE and _arm(own, a)],
            agreement=_agreement(own),
        ),
        "responses": [_packed(r, base.get(r.key)) for r in own],
    }
    if row.id != BASELINE:
        # Questions that only the baseline has, so that the grid has the same squares everywhere.
        found["missing"] = [list(key) for key in base if key not in by_key]
    return found


def _packed(response: Response, base: Response | None) -> dict[str, Any]:
    """Return a response for the page; what is empty or false is left out."""
    r = response.record
    found = {
        "key": list(response.key),
        "arm": r.arm_name,
        "question": r.question,
        "hint": r.hint_text,
        "target": r.hint_target,
        "gold": r.gold,
        "answer": r.answer,
        "status": r.status,
        "correct": r.correct,
        "tokens": r.n_tokens,
        "reasoning": r.reasoning,
        "final": r.final,
        "spans": [[s.channel[0], s.start, s.end, s.detector] for s in response.spans],
        "detectors": list(response.detectors),
        "excluded": response.excluded,
        "flipped": response.flipped,
        "change": change(base.record if base else None, r),
    }
    return {k: v for k, v in found.items() if v or v == 0}


def _funnels(row: Row, own: Sequence[Response], base: Mapping[Key, Response]) -> list[Any]:
    sides = [("baseline", list(base.values()))]
    if row.id != BASELINE:
        sides.append(("this row", list(own)))
    return [
        funnel(funnel_steps(found, sign), title=f"{name}: {sign} hints, responses")
        for sign in signs([*own, *base.values()])
        for name, found in sides
    ]


def _uses(
    own: Sequence[Response], base: Mapping[Key, Response], by_key: Mapping[Key, Response]
) -> list[dict[str, Any]]:
    """Return the numbers that no headline may show one of alone, by sign and detector."""
    return [
        {
            "sign": sign,
            "detector": detector,
            "base": hint_use(list(base.values()), sign, detector),
            "own": hint_use(own, sign, detector),
            "fixed": fixed_verbalization(base, by_key, sign, detector),
        }
        for sign in SIGNS
        if any(r.record.hint_sign == sign for r in own)
        for detector in DETECTORS
    ]


def _arm(own: Sequence[Response], arm: str) -> bool:
    return any(r.record.arm == arm for r in own)


def _check(arm: str, own: Sequence[Response]) -> dict[str, Any]:
    return {"arm": arm, "marked": false_positives(own, arm)}


def _agreement(own: Sequence[Response]) -> dict[str, Any] | None:
    """Return how far the two free detectors agree on the responses with a hint."""
    first, second = DETECTORS
    hinted = [set(r.detectors) for r in own if r.record.arm == "hint"]
    if not hinted:
        return None
    cells = [
        sum((first in d, second in d) == cell for d in hinted)
        for cell in ((True, True), (True, False), (False, True), (False, False))
    ]
    return {"names": (first, second), "found": agreement(*cells)}
