"""The names of SAEs that users of the published pipeline know, resolved to where they lie."""

import re
from dataclasses import dataclass

from harness_ext.errors import SensitivityError
from interventions.spec import SAERef

MODELS = {"py": ("EleutherAI/pythia-160m-deduped", 8), "gem": ("google/gemma-2-2b", 12)}
SHORT_MODELS = {name.split("/")[1]: name for name, _ in MODELS.values()}
_WIDTHS = {"4k": "2pow12", "16k": "2pow14", "65k": "2pow16"}
# Folder names of the two repositories' owners.
_KARVONEN = {
    "btopk": "BatchTopK",
    "matbtopk": "MatryoshkaBatchTopK",
    "gated": "GatedSAE",
    "jumprelu": "JumpRelu",
    "topk": "TopK",
    "relu": "Standard",
    "pan": "PAnneal",
}
_RAGER = {
    "btopk": "batch_top_k",
    "matbtopk": "matryoshka_batch_top_k",
    "gated": "gated",
    "jumprelu": "jump_relu",
    "topk": "top_k",
    "relu": "standard_new",
    "pan": "p_anneal",
}
_BENCH = re.compile(r"(py|gem)_(4k|16k|65k)_([a-z]+)_s([0-5])")
_SCOPE = re.compile(r"gscope_(?:layer(\d+)_)?(\d+[km])_l0_(\d+)")


@dataclass(frozen=True)
class NamedSAE:
    """An SAE of the published naming scheme, and the model it belongs to."""

    name: str
    model: str
    ref: SAERef


def resolve(name: str) -> NamedSAE:
    """Return where the SAE of a published name lies.

    `py_4k_btopk_s0` and the like are SAEBench's, in their own repositories (SAELens's registry has
    only the Matryoshka ones for Gemma); `gscope_16k_l0_82`, `gscope_layer20_16k_l0_71` are Gemma
    Scope's, SAELens's release `gemma-scope-2b-pt-res`, layer 12 unless it is named.

    Raises:
        SensitivityError: another name.

    Source: `sae_utils.py`, `sae_inference.py` of nathanhu0/sae-sensitivity.
    """
    if match := _SCOPE.fullmatch(name):
        layer, width, l0 = match[1] or "12", match[2], match[3]
        path = f"layer_{layer}/width_{width}/average_l0_{l0}"
        return NamedSAE(name, MODELS["gem"][0], SAERef(release="gemma-scope-2b-pt-res", id=path))
    match = _BENCH.fullmatch(name)
    if not match or match[3] not in _KARVONEN:
        raise SensitivityError(
            f"unknown SAE name '{name}'; names are {{py,gem}}_{{4k,16k,65k}}_"
            f"{{{','.join(_KARVONEN)}}}_s0..s5, or gscope_{{16k,65k,1m,...}}_l0_N; for any other"
            f" SAE use --sae-release, --sae-repo or --sae-path"
        )
    short, width, kind, trainer = match[1], _WIDTHS[match[2]], match[3], match[4]
    model, layer = MODELS[short]
    base = model.split("/")[1]
    place = f"resid_post_layer_{layer}/trainer_{trainer}"
    if short == "py" or match[2] == "4k":
        repo = f"adamkarvonen/saebench_{base}_width-{width}_date-0108"
        path = f"{_KARVONEN[kind]}_{base}__0108/{place}"
    else:
        repo = f"canrager/saebench_{base}_width-{width}_date-0107"
        path = f"{base}_{_RAGER[kind]}_width-{width}_date-0107/{place}"
    return NamedSAE(
        name, model, SAERef(repo=repo, id=path, hook_point=f"blocks.{layer}.hook_resid_post")
    )
