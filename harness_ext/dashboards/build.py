"""A folder of pages from a folder of facts."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness_ext.dashboards.choose import Choice
from harness_ext.dashboards.index import index_page, index_row
from harness_ext.dashboards.view import Neighbours, feature_page
from interventions.errors import FeatureError
from interventions.features.facts_store import FactStore
from interventions.train.files import write_text

INDEX, PAGES, LIST = "index.html", "features", "dashboard.json"


@dataclass(frozen=True)
class Built:
    """What was written.

    Attributes:
        index: path of the index.
        pages: how many pages of features.
        bytes: of all of them and the index.
        removed: pages of an earlier choice that are gone.
    """

    index: Path
    pages: int
    bytes: int
    removed: int


def write_dashboards(
    store: FactStore,
    choice: Choice,
    folder: Path,
    *,
    on_page: Callable[[int], None] = lambda done: None,
) -> Built:
    """Return what was written: `index.html`, `features/N.html` and `dashboard.json`.

    Each page holds all that it needs, and asks for nothing. The index is written last. Pages that
    an earlier call wrote for features that are not shown now are removed; other files stay.

    Args:
        store: facts.
        choice: features, in the order of the index.
        folder: made if need be.
        on_page: told how many pages are done.

    Raises:
        FeatureError: the folder holds other things than dashboards, or cannot be written.
    """
    before = _earlier(folder)
    near = {
        feature: Neighbours(
            choice.features[at - 1] if at else None,
            choice.features[at + 1] if at + 1 < len(choice.features) else None,
        )
        for at, feature in enumerate(choice.features)
    }
    shown = frozenset(choice.features)
    rows, size = {}, 0
    try:
        (folder / PAGES).mkdir(parents=True, exist_ok=True)
        # Before the first page, so that after a kill it is known whose pages these are.
        _list(folder, sorted(shown | before))
        # Contexts lie in the order of the features.
        for done, feature in enumerate(sorted(shown), 1):
            facts, contexts = store.feature(feature), store.contexts(feature)
            page = feature_page(store, facts, contexts, choice, near[feature], shown)
            size += _write(folder / PAGES / f"{feature}.html", page)
            rows[feature] = index_row(facts, contexts, choice)
            on_page(done)
        index = index_page(store, choice, [rows[feature] for feature in choice.features])
        size += _write(folder / INDEX, index)
        gone = [folder / PAGES / f"{feature}.html" for feature in sorted(before - shown)]
        for path in gone:
            path.unlink(missing_ok=True)
        _list(folder, sorted(shown))
    except OSError as error:
        raise FeatureError(f"{folder} cannot be written: {error}; name another folder") from error
    return Built(folder / INDEX, len(shown), size, len(gone))


def _earlier(folder: Path) -> frozenset[int]:
    """Return the features of the pages that are there."""
    path = folder / LIST
    if not path.is_file():
        if (folder / INDEX).exists():
            raise FeatureError(
                f"{folder} has an {INDEX} that no dashboard wrote; name another folder with --out"
            )
        return frozenset()
    try:
        return frozenset(int(feature) for feature in json.loads(path.read_text())["features"])
    except (ValueError, KeyError, TypeError) as error:
        raise FeatureError(
            f"{path} is damaged ({error}); remove it, or name another folder with --out"
        ) from error


def _list(folder: Path, features: list[int]) -> None:
    write_text(folder / LIST, json.dumps({"features": features}) + "\n")


def _write(path: Path, text: str) -> int:
    # A token may hold half of a pair of UTF-16 surrogates.
    data = text.encode("utf-8", "replace").decode("utf-8")
    write_text(path, data)
    return len(data.encode("utf-8"))
