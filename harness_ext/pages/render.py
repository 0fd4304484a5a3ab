"""Templates to pages."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).resolve().parent
STYLE = "page.css"
SCRIPT = "table.js"


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the environment of every page: all is escaped, a name that is missing is an error."""
    # Sorted by no locale and without extensions, so that one input gives one page, byte for byte.
    found = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals["static"] = static
    return found


@lru_cache(maxsize=16)
def static(name: str) -> Markup:
    """Return a file of `pages/static/` as it is, for a `<style>` or `<script>` element."""
    return Markup((FOLDER / "static" / name).read_text(encoding="utf-8"))


def render(template: str, **context: Any) -> str:
    """Return a page as text.

    Args:
        template: a file of `pages/templates/`, such as `feature.html`; it extends `base.html`.
        context: its names. All text is escaped unless it is `Markup`. `assets` names a folder,
            relative to the page, that `write_assets` filled; without it the page holds style and
            scripts itself.
    """
    return environment().get_template(template).render(**context)


def write_assets(folder: Path) -> list[Path]:
    """Return the paths of style and script, written to `folder`.

    For hundreds of pages that share them: `render(..., assets="../assets")`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / STYLE, folder / SCRIPT]
    for path in paths:
        path.write_text(static(path.name), encoding="utf-8")
    return paths
