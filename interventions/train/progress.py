"""One progress bar for every step, on stderr, silent where nobody watches."""

import sys
from types import TracebackType

from tqdm import tqdm


class Progress:
    """A bar that is told absolute positions; a resumed step starts where it had stopped."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        """Show `label` and `total` units; not a terminal: one line a half-minute."""
        quiet = not sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=label,
            unit=unit,
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=not quiet,
            mininterval=30.0 if quiet else 0.2,
        )

    def to(self, position: int, **postfix: str | float) -> None:
        """Move to `position` and show the figures in `postfix`."""
        if postfix:
            self._bar.set_postfix(postfix, refresh=False)
        self._bar.update(position - self._bar.n)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
