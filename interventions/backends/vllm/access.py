"""Which SAEs a client of a server may name.

A spec names files and downloads. In one's own process that is one's own business; a server does it
for whoever can reach its port, so there the person who starts it says which SAEs it reads.
"""

from collections.abc import Sequence
from pathlib import Path

from interventions.errors import SpecError
from interventions.sae.registry import is_release
from interventions.spec import InterventionSpec, SAERef

Allowed = tuple[SAERef, ...]


def check_saes(spec: InterventionSpec, allowed: Sequence[SAERef]) -> None:
    """Return nothing if a spec names no SAE but those that a server reads.

    These are the embedded one, the releases of SAELens, and `allowed`. An allowed folder or
    repository without an `id` allows every `id` inside it.

    Raises:
        SpecError: it names another; the message does not tell whether that one exists.
    """
    for number, edit in enumerate(spec.edits, 1):
        ref = spec.sae_of(edit)
        if not (_public(ref) or any(_inside(ref, one) for one in allowed)):
            listed = ", ".join(["default", "releases of SAELens", *(one.label for one in allowed)])
            raise SpecError(
                f"edit {number}: this server does not read the SAE '{ref.label}'; it reads {listed}"
                f" (`saes` in its additional_config)"
            )


def _public(ref: SAERef) -> bool:
    # A release that sae_lens does not know would be taken for a repository of that name.
    return ref.default is True or (ref.release is not None and is_release(ref.release))


def _inside(ref: SAERef, allowed: SAERef) -> bool:
    if ref.path is not None and allowed.path is not None:
        if allowed.id is not None:
            return _path(ref) == _path(allowed) and ref.id == allowed.id
        return _path(ref) == _path(allowed) and (
            # The file of a tensor, or a folder below; links are followed before it is compared.
            ref.id is None or _path(ref).is_file() or _within(_path(ref), ref.id)
        )
    if ref.default or allowed.default:
        return False
    same = (ref.release, ref.repo, ref.revision) == (
        allowed.release,
        allowed.repo,
        allowed.revision,
    )
    whole = allowed.id is None and not _climbs(ref.id)
    return same and ref.path is None and allowed.path is None and (whole or ref.id == allowed.id)


def _path(ref: SAERef) -> Path:
    return Path(ref.path or "").expanduser().resolve()


def _within(folder: Path, name: str) -> bool:
    return (folder / name).resolve().is_relative_to(folder)


def _climbs(name: str | None) -> bool:
    return name is not None and (".." in Path(name).parts or Path(name).is_absolute())
