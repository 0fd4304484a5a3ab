"""Tables of thousands of rows: data as JSON in the page, shown a page at a time by `table.js`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from harness_ext.errors import PageError
from harness_ext.pages.render import environment

Kind = Literal["text", "number", "percent", "signed", "points", "p", "interval", "pair", "list"]
"""How a value is shown.

`percent` is a share as 12.3 %; `points` a difference of shares as +1.2; `signed` a difference of
plain numbers; `p` a probability to three digits; `interval` a difference with the two ends that
`extra` names behind it; `pair` the value of `extra` and then the own one, with an arrow; `list`
several words, each a tag.
"""

Value = str | float | int | bool | None | Sequence[str]
_DICTIONARY_SHARE = 4  # rows a distinct text, from which texts are stored once


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key: of the rows.
        title: its head.
        kind: how values are shown, and whether they sort as numbers.
        digits: after the point.
        help: one sentence that the head shows on demand.
        filter: `select` offers every value that occurs; '' offers nothing.
        choice: what a `select` starts with; '' for all.
        extra: keys of further values that the kind shows.
        kind_key: key of a column that holds the kind of each row, where rows differ.
        href: key of a column that holds the link of each row.
        hidden: data only.
        search: whether the search field looks into it; by default texts that are shown.
    """

    key: str
    title: str = ""
    kind: Kind = "text"
    digits: int = 1
    help: str = ""
    filter: Literal["", "select"] = ""
    choice: str = ""
    extra: tuple[str, ...] = ()
    kind_key: str = ""
    href: str = ""
    hidden: bool = False
    search: bool | None = None


def table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Value]],
    *,
    id: str,
    caption: str,
    sort: str = "",
    descending: bool = False,
    page_size: int = 25,
    row_class: str = "",
    all_label: str = "all",
    searchable: bool = True,
) -> Markup:
    """Return a table that sorts, filters, searches and pages, for a template.

    Args:
        columns: in order; those that are hidden, too.
        rows: by column key; a key that is missing is an empty cell, which sorts last.
        id: of the element; letters, digits, `-` and `_`.
        caption: what the table holds, for everybody.
        sort: key of the column that it starts with; '' keeps the order given.
        descending: the direction.
        page_size: rows a page.
        row_class: key of a column whose value becomes `data-kind` of a row, for the style.
        all_label: of the choice that filters nothing.
        searchable: whether there is a search field.

    Raises:
        PageError: a key names no column, or the id is no name.
    """
    keys = {column.key for column in columns}
    if len(keys) != len(columns):
        raise PageError(f"table '{id}': a column key comes twice; keys are {', '.join(keys)}")
    named = [sort, row_class] + [key for c in columns for key in (*c.extra, c.kind_key, c.href)]
    unknown = [key for key in named if key and key not in keys]
    if unknown:
        raise PageError(
            f"table '{id}': no column '{unknown[0]}'; columns are {', '.join(sorted(keys))}"
        )
    if not id.replace("-", "").replace("_", "").isalnum():
        raise PageError(f"table id {id!r} is no name; use letters, digits, - and _")
    data = {
        "columns": [_column(column, rows) for column in columns],
        "n": len(rows),
        "sort": sort,
        "descending": descending,
        "pageSize": page_size,
        "rowClass": row_class,
        "allLabel": all_label,
    }
    template = environment().get_template("table.html")
    return Markup(
        template.render(
            id=id,
            caption=caption,
            data=to_json(data),
            filters=[c for c in columns if c.filter],
            searchable=searchable,
        )
    )


def to_json(data: Any) -> Markup:
    """Return compact JSON that no text in it can end: `<`, `>`, `&` and `'` are escaped."""
    return htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _column(column: Column, rows: Sequence[Mapping[str, Value]]) -> dict[str, Any]:
    values = [_plain(row.get(column.key)) for row in rows]
    search = column.search
    found: dict[str, Any] = {
        "key": column.key,
        "title": column.title,
        "kind": column.kind,
        "digits": column.digits,
        "help": column.help,
        "filter": column.filter,
        "choice": column.choice,
        "extra": list(column.extra),
        "kindKey": column.kind_key,
        "href": column.href,
        "hidden": column.hidden,
        "search": column.kind in ("text", "list") and not column.hidden
        if search is None
        else search,
    }
    # A task's name stands in thousands of rows.
    if all(value is None or isinstance(value, str) for value in values):
        levels = {v: i for i, v in enumerate(sorted({v for v in values if isinstance(v, str)}))}
        if len(levels) * _DICTIONARY_SHARE <= len(values):
            found["levels"] = list(levels)
            found["values"] = [None if v is None else levels[str(v)] for v in values]
            return found
    found["values"] = values
    return found


def _plain(value: Value) -> Any:
    """Return a value for JSON; floats keep six digits, more than any cell shows."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        return float(f"{value:.6g}")
    return list(value)
