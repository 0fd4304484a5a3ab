"""Results of a shortlist of features in a JSON file that grows, and goes on after a kill."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from interventions.errors import FeatureError
from interventions.train.files import write_text


class Shortlist:
    """Rows by feature, measured with one set of settings on one store.

    Attributes:
        rows: what is known, by feature.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], key: str, *, every: float = 30.0
    ) -> None:
        """Read what is there.

        Args:
            path: of the JSON file.
            settings: of the measurement.
            key: of the store.
            every: seconds between two saves.

        Raises:
            FeatureError: the file was measured with other settings, or is damaged.
        """
        self._path, self._every = path, every
        self._head: dict[str, Any] = {"settings": dict(settings), "key": key}
        self._saved = time.monotonic()
        self.rows: dict[int, dict[str, Any]] = {}
        if not path.is_file():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.rows = {int(feature): row for feature, row in stored["features"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FeatureError(
                f"{path} is damaged ({type(error).__name__}: {error}); remove it, and these"
                f" features are measured again"
            ) from error
        for name, value in self._head.items():
            if stored.get(name) != value:
                raise FeatureError(
                    f"{path} was measured with {name} {stored.get(name)}, now {value}; remove it,"
                    f" or measure with the same"
                )

    def missing(self, features: Iterable[int]) -> list[int]:
        """Return those of `features` that have no row, each once."""
        return [feature for feature in dict.fromkeys(features) if feature not in self.rows]

    def add(self, feature: int, row: Mapping[str, Any]) -> None:
        """Keep the row of a feature."""
        self.rows[feature] = dict(row)

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self._every

    def save(self) -> None:
        """Write the file, whole or not at all."""
        rows = {str(feature): self.rows[feature] for feature in sorted(self.rows)}
        write_text(
            self._path,
            json.dumps({**self._head, "features": rows}, indent=1, ensure_ascii=False) + "\n",
        )
        self._saved = time.monotonic()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the file with a summary of all rows."""
        self._head["summary"] = dict(summary)
        self.save()
