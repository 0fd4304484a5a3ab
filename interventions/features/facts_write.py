"""Writing a folder of facts; the layout is told in `facts_store`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interventions.features.facts_store import (
    CONTEXTS,
    FEATURES,
    INFO,
    VERSION,
    VOCABULARY,
)
from interventions.sae.io import STATS
from interventions.train.files import write_tensors, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_A_GROUP = 2048


def vocabulary(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the text of every token id, with the space that a word begins with."""
    texts = []
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for number, piece in enumerate(pieces):
        text = str(tokenizer.decode([number]))
        # SentencePiece tokenizers drop the space of a token that stands alone.
        if isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" "):
            text = f" {text}"
        texts.append(text)
    return texts


def write_store(
    folder: Path,
    *,
    info: Mapping[str, Any],
    features: Mapping[str, Any],
    contexts: Mapping[str, Any],
    texts: Sequence[str],
    stats: Mapping[str, Tensor],
    sae_hash: str,
) -> None:
    """Write all files; `info.json` last, so that a folder that has one is whole.

    Args:
        folder: made if need be.
        info: of the store; the version is added.
        features: columns of `features.parquet`, `d_sae` long, see `facts`.
        contexts: columns of `contexts.parquet`, sorted by feature.
        texts: of `vocabulary`.
        stats: `max_act` and others, `(d_sae,)`, and `median_norm`.
        sae_hash: content hash of the SAE, so that `facts:` in a spec can refuse another one.
    """
    import pyarrow

    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / VOCABULARY, pyarrow.table({"text": list(texts)}), 65536)
    _write(folder / FEATURES, pyarrow.table(dict(features)), 16384)
    _write(folder / CONTEXTS, pyarrow.table(dict(contexts)), _ROWS_A_GROUP)
    plain = {name: tensor.detach().cpu() for name, tensor in stats.items()}
    # The median norm holds at this hook point alone.
    about = {"sae_hash": sae_hash, "hook_point": str(info["subject"]["hook_point"])}
    write_tensors(folder / STATS, plain, about)
    write_text(
        folder / INFO,
        json.dumps({"version": VERSION, **info}, indent=1, ensure_ascii=False) + "\n",
    )


def ragged(flat: Tensor, lengths: Tensor) -> Any:
    """Return an Arrow list column from values in a row and the length of each list.

    Args:
        flat: `(sum of lengths,)`.
        lengths: `(n,)`.
    """
    import pyarrow

    ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cpu().long().cumsum(0)])
    # 64-bit offsets: 65,536 features with twenty windows each pass 2**31 values on long windows.
    return pyarrow.LargeListArray.from_arrays(
        pyarrow.array(ends.numpy(), type=pyarrow.int64()), pyarrow.array(flat.cpu().numpy())
    )


def lists(values: Tensor, keep: Tensor) -> Any:
    """Return an Arrow list column: of each row of `values (n, k)` those where `keep` is true."""
    return ragged(values[keep], keep.sum(1))


def _write(path: Path, table: Any, rows_a_group: int) -> None:
    import pyarrow.parquet

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pyarrow.parquet.write_table(table, temporary, row_group_size=rows_a_group, compression="zstd")
    os.replace(temporary, path)
