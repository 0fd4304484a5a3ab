"""Where files that can be made again are kept."""

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """Return a folder below `$SAE_STEERED_CACHE`, or below the user's cache; it is created."""
    named = os.environ.get("SAE_STEERED_CACHE")
    if named:
        base = Path(named).expanduser()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sae-steered"
    folder = base.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
