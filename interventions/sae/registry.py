"""SAELens' registry of releases, read without importing sae_lens (which takes 12 s)."""

import difflib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from interventions.errors import SAENotFoundError


@dataclass(frozen=True)
class RegistryEntry:
    """One SAE of the registry: where it lies and the model it was made for."""

    release: str
    id: str
    repo: str
    path: str
    model: str
    loader: str


def is_release(name: str) -> bool:
    """Return whether the installed sae_lens knows a release of this name."""
    return importlib.util.find_spec("sae_lens") is not None and name in _registry()


def find_release(release: str, sae_id: str) -> RegistryEntry:
    """Return the registry's entry of an SAE.

    Args:
        release: SAELens release.
        sae_id: SAE id within it.

    Raises:
        SAENotFoundError: sae_lens is not installed, or it knows no such release or id; with the
            closest names.
    """
    registry = _registry()
    if release not in registry:
        raise SAENotFoundError(
            f"unknown SAELens release '{release}' ({len(registry)} known)"
            f"{_close(release, list(registry))}"
        )
    entry = registry[release]
    paths = {str(sae["id"]): str(sae["path"]) for sae in entry["saes"]}
    if sae_id not in paths:
        raise SAENotFoundError(
            f"release '{release}' has no SAE '{sae_id}' ({len(paths)} known)"
            f"{_close(sae_id, list(paths))}"
        )
    return RegistryEntry(
        release,
        sae_id,
        entry["repo_id"],
        paths[sae_id],
        str(entry["model"]),
        entry.get("conversion_func") or "sae_lens",
    )


def neuronpedia_id(name: str, sae_id: str) -> str | None:
    """Return the name that Neuronpedia has for an SAE, such as `gpt2-small/0-res-jb`, or None.

    Args:
        name: SAELens release, or repository.
        sae_id: SAE id within the release, or folder in the repository.

    Raises:
        SAENotFoundError: sae_lens is not installed.
    """
    registry = _registry()
    if name in registry:
        wanted = [sae for sae in registry[name]["saes"] if str(sae["id"]) == sae_id]
    else:
        releases = [entry for entry in registry.values() if entry["repo_id"] == name]
        wanted = [sae for e in releases for sae in e["saes"] if str(sae["path"]) == sae_id]
    return next((str(sae["neuronpedia"]) for sae in wanted if sae.get("neuronpedia")), None)


@cache
def _registry() -> dict[str, Any]:
    import yaml

    spec = importlib.util.find_spec("sae_lens")
    if spec is None or spec.origin is None:
        raise SAENotFoundError(
            "SAELens releases need sae_lens, which is not installed; run"
            " `pip install 'sae-steered[sae]'`, or name the SAE by `repo` or `path`"
        )
    # The C loader reads the 1.5 MB five times faster; PyYAML can be built without it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = Path(spec.origin).with_name("pretrained_saes.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=loader)


def _close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    shown = close or sorted(known)[:3]
    return f"; {'closest' if close else 'for example'}: {', '.join(shown)}"
