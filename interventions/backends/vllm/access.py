"""Which SAEs a client of a server may name.

A spec names files and downloads. In one's own process that is one's own business; a server does it
for whoever can reach its port, so there the person who starts it says which SAEs it reads.
"""

from collections.abc import Sequence
from pathlib import Path

from interventions.errors import SpecError
from interventions.sae.registry import is_release
from interventions.spec import InterventionSpec, SAERef


def check_saes(spec: InterventionSpec, allowed: Sequence[SAERef]) -> None:
    """Return nothing if a spec names no SAE but those that a server reads.

    These are the embedded one, the releases of SAELens, and `allowed`. An allowed folder or
    repository without an `id` allows every `id` inside it. `facts` names a folder of the server's
    too, so it must be that of an allowed one.

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
        if ref.facts is not None and not any(_same_facts(ref, one) for one in allowed):
            raise SpecError(
                f"edit {number}: this server does not read `facts` '{ref.facts}'; give `max_act`"
                f" in the edit, or name them in `saes` of its additional_config"
            )


def _public(ref: SAERef) -> bool:
    # A release that sae_lens does not know would be taken for a repository of that name.
    return ref.default is True or (ref.release is not None and is_release(ref.release))


def _inside(ref: SAERef, allowed: SAERef) -> bool:
    if ref.path is not None and allowed.path is not None:
        whole = allowed.id is None and _target(ref).is_relative_to(_path(allowed))
        return whole or (_path(ref) == _path(allowed) and ref.id == allowed.id)
    if ref.repo is not None and (ref.repo, ref.revision) == (allowed.repo, allowed.revision):
        return ref.id == allowed.id or (allowed.id is None and not _climbs(ref.id))
    return ref.release is not None and (ref.release, ref.id) == (allowed.release, allowed.id)


def _same_facts(ref: SAERef, allowed: SAERef) -> bool:
    folders = [one.facts and Path(one.facts).expanduser().resolve() for one in (ref, allowed)]
    return folders[0] == folders[1]


def _path(ref: SAERef) -> Path:
    return Path(ref.path or "").expanduser().resolve()


def _target(ref: SAERef) -> Path:
    """Return what would be read; links are followed before it is compared."""
    path = _path(ref)
    # In a file, `id` names a tensor.
    return path if ref.id is None or path.is_file() else (path / ref.id).resolve()


def _climbs(name: str | None) -> bool:
    return name is not None and (".." in Path(name).parts or Path(name).is_absolute())
