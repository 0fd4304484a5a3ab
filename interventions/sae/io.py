"""Loading an SAE from wherever a spec says it is."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.errors import SAEError, SAENotFoundError, SteeringError
from interventions.sae.build import RawSAE, build_sae
from interventions.sae.core import SAE
from interventions.sae.formats import saelens
from interventions.sae.formats.detect import KNOWN_FILES, read_file, read_folder
from interventions.sae.formats.files import read_safetensors, safetensors_metadata
from interventions.sae.registry import RegistryEntry, find_release, is_release
from interventions.sae.threshold import with_threshold
from interventions.spec import SAERef

logger = logging.getLogger(__name__)

STATS = "stats.safetensors"
"""Statistics beside an SAE: `max_act (d_sae,)`, and optionally `median_norm` (one number)."""


def load_sae(ref: SAERef, *, features: Sequence[int] | None = None) -> SAE:
    """Return the SAE that `ref` names, fp32 on the CPU.

    Args:
        ref: where it lies.
        features: indices that will be used; checked against the SAE's size.

    Raises:
        SAENotFoundError: unknown release, id, folder or repo, or no network.
        SAEError: the files are damaged, of an unknown kind, or cannot do what is asked of them.
    """
    if ref.default:
        from interventions.default_model import default_sae_path

        path = default_sae_path()
        if not path.is_dir():
            raise SAENotFoundError(
                f"the default SAE is not at '{path}'; install sae-steered again, its files are part"
                f" of the package"
            )
        sae = _from_path(path, ref, "default")
    elif ref.path is not None:
        sae = _from_local(ref)
    elif ref.repo is not None:
        sae = _from_repo(ref, ref.repo)
    else:
        sae = _from_release(ref)
    if ref.threshold is not None:
        sae = with_threshold(sae, ref.threshold)
    if ref.facts is not None:
        sae = _with_facts(sae, Path(ref.facts).expanduser())
    if features is not None:
        sae.check_features(features)
    return sae


def _from_local(ref: SAERef) -> SAE:
    path = Path(ref.path or "").expanduser()
    tensor = None
    if ref.id is not None and path.is_file():
        tensor = ref.id
    elif ref.id is not None:
        path = path / ref.id
    if not path.exists():
        raise SAENotFoundError(
            f"SAE '{path}' does not exist; give `path` of a folder or file, or `repo` for the"
            f" Hugging Face hub"
        )
    return _from_path(path, ref, ref.label, tensor)


def _from_path(path: Path, ref: SAERef, source: str, tensor: str | None = None) -> SAE:
    folder = path if path.is_dir() else path.parent
    read = read_folder(path, source) if path.is_dir() else read_file(path, source, tensor)
    if isinstance(read, SAE):
        if ref.scale is not None:
            raise SAEError(f"{source} holds plain directions; remove `scale` from the spec")
        return read if ref.hook_point is None else _at(read, ref.hook_point)
    _add_stats(read, folder / STATS)
    return build_sae(read, scale=ref.scale, hook_point=ref.hook_point)


def _at(sae: SAE, hook_point: str) -> SAE:
    return dataclasses.replace(sae, hook_point=sae.resolve_hook_point(hook_point))


def _add_stats(raw: RawSAE, path: Path) -> None:
    if not path.is_file():
        return
    stats = read_safetensors(path)
    raw.max_act = stats.get("max_act")
    if raw.median_norm is None and "median_norm" in stats:
        raw.median_norm = float(stats["median_norm"])


def _with_facts(sae: SAE, folder: Path) -> SAE:
    """Return the SAE with `max_act`, and a median norm if it has none, from a folder of facts."""
    path = folder / STATS
    if not path.is_file():
        raise SAENotFoundError(
            f"`facts` {folder} holds no {STATS}; name a folder that `sae-steered facts` made"
        )
    about = safetensors_metadata(path)
    theirs = about.get("sae_hash", "")
    if theirs != sae.content_hash:
        raise SAEError(
            f"`facts` {folder} are of another SAE ({theirs[:12] or 'unnamed'}) than {sae.source}"
            f" ({sae.content_hash[:12]}); make them anew with `sae-steered facts`"
        )
    stats = read_safetensors(path)
    median = sae.median_norm
    if median is None and about.get("hook_point") == str(sae.hook_point):
        median = float(stats["median_norm"])
    return dataclasses.replace(sae, max_act=stats["max_act"].float(), median_norm=median)


def _from_repo(ref: SAERef, repo: str) -> SAE:
    """Download one SAE's files, and nothing else, then read them like a local folder."""
    if repo.count("/") != 1:
        raise SAENotFoundError(f"'{repo}' is no Hugging Face repo; write `repo` as 'owner/name'")
    prefix = f"{ref.id}/" if ref.id else ""
    patterns = [f"{prefix}{name}" for name in KNOWN_FILES]
    if ref.id:
        # The folder above may name the model; an `id` may also be a file.
        patterns += [ref.id, str(Path(ref.id).parent / "config.json")]
    root = Path(_hub_snapshot(repo, ref.revision, patterns))
    path = root / ref.id if ref.id else root
    if not path.exists():
        raise SAENotFoundError(
            f"repo '{repo}' has no SAE at '{ref.id or '.'}'; set `id` to the folder or file of one"
            f" SAE in it, as listed at huggingface.co/{repo}/tree/main"
        )
    return _from_path(path, ref, ref.label)


def _hub_snapshot(repo: str, revision: str | None, patterns: list[str]) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(repo, revision=revision, allow_patterns=patterns)
    except Exception as error:
        raise _hub_error(error, repo) from None


def _from_release(ref: SAERef) -> SAE:
    release, sae_id = str(ref.release), str(ref.id)
    if "/" in release and not is_release(release):
        return _from_repo(ref, release)
    entry = find_release(release, sae_id)
    if ref.revision is not None:
        raise SAEError(
            f"release '{release}' has a fixed repo; name '{entry.repo}' as `repo` with"
            f" `id` '{entry.path}' to use a `revision`"
        )
    raw, folded = _read_with_saelens(entry, ref.label)
    sae = build_sae(raw, scale=ref.scale, hook_point=ref.hook_point)
    return sae if folded is None else dataclasses.replace(sae, scale=folded)


def _read_with_saelens(entry: RegistryEntry, source: str) -> tuple[RawSAE, float | None]:
    """Return the SAE, and the registry's input scale where sae_lens has folded it in."""
    import sae_lens
    from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor

    try:
        sae, cfg, _ = sae_lens.SAE.from_pretrained_with_cfg_and_sparsity(entry.release, entry.id)
    except SteeringError:
        raise
    except Exception as error:
        raise _hub_error(error, entry.repo) from None
    weights: dict[str, Tensor] = {key: value.detach() for key, value in sae.state_dict().items()}
    raw = saelens.from_parts(_merged_config(sae.cfg.to_dict(), cfg), weights, source)
    if entry.loader == "llama_scope_r1_distill":
        # The loader names the base model, whose residual stream these SAEs have never seen.
        raw.model_name = entry.model
    _warn_of_decoder_norms(raw, entry)
    folded = get_norm_scaling_factor(entry.release, entry.id)
    return raw, folded if raw.normalize == "none" else None


def _merged_config(cfg: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    """Return sae_lens's own config with the metadata that its loader kept beside it."""
    metadata = {**(loaded.get("metadata") or {}), **(cfg.get("metadata") or {})}
    return {**cfg, "metadata": metadata}


def _warn_of_decoder_norms(raw: RawSAE, entry: RegistryEntry) -> None:
    """Say when sae_lens's thresholds are not those of the library that trained the SAE."""
    if not entry.loader.startswith("llama_scope") or raw.threshold is None:
        return
    norms = raw.W_dec.float().norm(dim=1)
    spread = float(norms.max() / norms.min().clamp_min(torch.finfo(torch.float32).tiny))
    if spread > 1.02:
        logger.warning(
            "%s: decoder norms differ by a factor %.2f; OpenMOSS compares thresholds with"
            " pre-activation times norm, sae_lens without; `repo: %s`, `id: %s` follows OpenMOSS",
            raw.source,
            spread,
            entry.repo,
            entry.path,
        )


def _hub_error(error: Exception, repo: str) -> SteeringError:
    """Return one line for whatever the hub's client or sae_lens's loader raised."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "GatedRepoError" in kinds:
        return SAENotFoundError(
            f"repo '{repo}' is gated; accept its licence at huggingface.co/{repo} and set HF_TOKEN"
        )
    if "RepositoryNotFoundError" in kinds:
        return SAENotFoundError(
            f"repo '{repo}' is not on the Hugging Face hub, or needs HF_TOKEN; check its name"
        )
    if "RevisionNotFoundError" in kinds:
        return SAENotFoundError(f"repo '{repo}' has no such `revision`; check it ({detail})")
    if "LocalEntryNotFoundError" in kinds or "OfflineModeIsEnabled" in kinds:
        return SAENotFoundError(
            f"repo '{repo}' is not in the local cache and the hub cannot be reached; connect, unset"
            f" HF_HUB_OFFLINE, or give `path` of a downloaded copy"
        )
    if "EntryNotFoundError" in kinds:
        return SAENotFoundError(f"repo '{repo}' lacks a file of this SAE ({detail}); check `id`")
    if kinds & {"OSError", "HTTPError", "TransportError"}:
        return SAENotFoundError(
            f"repo '{repo}' cannot be downloaded ({detail}); check the network, or give `path` of a"
            f" downloaded copy"
        )
    return SAEError(f"repo '{repo}' cannot be read as an SAE: {type(error).__name__}: {detail}")
