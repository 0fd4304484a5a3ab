"""Which reader a folder or a file belongs to."""

from pathlib import Path
from types import ModuleType

from interventions.errors import SAEError, SAENotFoundError
from interventions.sae.build import RawSAE
from interventions.sae.core import SAE
from interventions.sae.formats import (
    dictionary_learning,
    gemma_scope,
    llama_scope,
    saelens,
    single_file,
    sparsify,
)

READERS = (saelens, sparsify, dictionary_learning, gemma_scope, llama_scope)

KNOWN_FILES = (
    saelens.CFG,
    saelens.WEIGHTS,
    sparsify.WEIGHTS,
    dictionary_learning.CFG,
    dictionary_learning.WEIGHTS,
    gemma_scope.NPZ,
    gemma_scope.WEIGHTS,
    llama_scope.HYPERPARAMS,
    "checkpoints/final.safetensors",
    "checkpoints/pruned.safetensors",
    "stats.safetensors",
)
"""All file names, relative to an SAE's folder, that some reader asks for."""

_LAYOUTS = (
    "cfg.json + sae_weights.safetensors (SAELens), cfg.json + sae.safetensors (sparsify),"
    " config.json + ae.pt (dictionary_learning), params.npz or params.safetensors (Gemma Scope),"
    " hyperparams.json + checkpoints/ or config.json + sae_weights.safetensors (OpenMOSS)"
)


def read_folder(folder: Path, source: str) -> RawSAE:
    """Return the SAE in `folder`, whichever library wrote it.

    Args:
        folder: an existing folder.
        source: for messages.

    Raises:
        SAENotFoundError: no known layout.
        SAEError: a known layout with wrong content.
    """
    for reader in READERS:
        if reader.matches(folder):
            return reader.read(folder, source)
    inside = sorted(
        str(path.parent.relative_to(folder))
        for name in ("cfg.json", "config.json", "hyperparams.json", "params.npz")
        for path in folder.glob(f"*/{name}")
    )
    hint = f"; set `id` to one of its folders: {', '.join(inside[:5])}" if inside else ""
    raise SAENotFoundError(f"{folder} holds no known SAE{hint or f'; known: {_LAYOUTS}'}")


def read_file(path: Path, source: str, tensor: str | None) -> RawSAE | SAE:
    """Return the SAE or the directions in a single file.

    A weights file beside its configuration is read as its folder.

    Args:
        path: an existing file.
        source: for messages.
        tensor: for `.safetensors` with several directions, which.

    Raises:
        SAEError: an unknown kind of file, or wrong content.
    """
    for reader in READERS:
        if path.name in _own_files(reader) and reader.matches(path.parent):
            return reader.read(path.parent, source)
    if path.suffix == ".safetensors":
        return single_file.read_vectors(path, source, tensor)
    if path.suffix == ".npz":
        return gemma_scope.read_npz_file(path, source)
    if path.suffix in (".pt", ".pth"):
        return single_file.read_pt_file(path, source)
    raise SAEError(f"{path} is none of .safetensors, .npz, .pt; give an SAE's folder or file")


def _own_files(reader: ModuleType) -> set[str]:
    return {getattr(reader, name) for name in ("WEIGHTS", "NPZ") if hasattr(reader, name)}
