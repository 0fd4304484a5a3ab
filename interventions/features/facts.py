"""Facts about every feature of an SAE, gathered in one pass over text and kept in a folder."""

import dataclasses
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from interventions.errors import FeatureError
from interventions.features.checkpoint import Checkpoint
from interventions.features.contexts import choose, columns
from interventions.features.facts_columns import feature_columns, histogram_scale, statistics
from interventions.features.facts_store import INFO, VERSION, FactStore
from interventions.features.facts_write import vocabulary, write_store
from interventions.features.lens import logit_lens
from interventions.features.row_file import RowFile
from interventions.features.running import FactSettings, Running, renumbered
from interventions.fingerprint import digest, weights_digest
from interventions.plan import same_model
from interventions.residuals import read_residuals
from interventions.subject import Subject
from interventions.text.config import TextConfig
from interventions.text.records import sizes
from interventions.text.rows import rows
from interventions.train.progress import Progress

PARTIAL, ROWS = "partial", "rows.bin"
# Rows between two places where a pass can go on; batches never span such a place.
_ROWS_TOGETHER = 64


def collect(
    subject: Subject,
    text: TextConfig,
    out: Path,
    settings: FactSettings | None = None,
    *,
    batch_tokens: int = 4096,
    save_every: float = 120.0,
) -> FactStore:
    """Return the facts in `out`, after gathering them if they are not there yet.

    A pass that was stopped goes on at the row where it was last saved, with the same result. Files
    of the text that have changed are known by their sizes.
    Tokens above the guard and special tokens do not count.

    Args:
        subject: model and SAE.
        text: what is read.
        out: folder of this subject, text and settings alone.
        settings: what is kept.
        batch_tokens: tokens of a forward pass.
        save_every: seconds between two saves of a pass that is under way.

    Raises:
        FeatureError: the folder holds other facts, or no feature fires in the text.
        TextError: the text cannot be read.
    """
    settings = settings or FactSettings()
    about = {
        "subject": {
            **subject.describe(),
            "check_model": same_model(subject.sae.model_name, subject.label),
        },
        "text": text.model_dump(mode="json"),
        "text files": [sizes(source) for source in text.sources],
        "settings": dataclasses.asdict(settings),
    }
    key = digest({**about, "weights": weights_digest(subject.model), "version": VERSION})
    if (out / INFO).is_file():
        store = FactStore.open(out)
        if store.info["key"] != key:
            changed = [name for name in about if store.info.get(name) != about[name]]
            raise FeatureError(
                f"{out} holds facts of other {' and '.join(changed) or 'weights of the model'};"
                f" name another --out, or remove it"
            )
        return store
    checkpoint = Checkpoint(out / PARTIAL, key, every=save_every)
    saved = checkpoint.load()
    if saved is None:
        running = Running.empty(subject.sae.d_sae, settings, subject.device)
    else:
        running = Running.load(settings, saved, subject.device)
    with RowFile(out / PARTIAL / ROWS, running.rows) as read:
        gather(subject, text, running, read, checkpoint, batch_tokens)
        _write(subject, out, settings, running, read, {"key": key, **about})
        read.remove()
    checkpoint.clear()
    return FactStore.open(out)


def _write(
    subject: Subject,
    out: Path,
    settings: FactSettings,
    running: Running,
    read: RowFile,
    about: dict[str, Any],
) -> None:
    if not int(running.sums["count"].sum()):
        counted, seen = int(running.sums["tokens"]), int(running.sums["read"])
        raise FeatureError(
            f"no feature of {subject.sae_ref.label} fires at any of {counted} tokens ({seen} read,"
            f" {int(running.sums['sinks'])} of them sinks); check the SAE with `sae-steered doctor`"
        )
    lens = None
    if settings.lens:
        through = logit_lens(subject.model, len(subject.tokenizer), subject.special_ids)
        lens = through.tokens(subject.sae.W_dec, settings.lens)
    stats = statistics(running)
    features = feature_columns(running, stats, lens)
    shown = columns(choose(running), read)
    counts = {name: int(running.sums[name]) for name in ("tokens", "read", "sinks", "rows")}
    write_store(
        out,
        info={
            **about,
            "d_sae": subject.sae.d_sae,
            **counts,
            "alive": int((stats["count"] > 0).sum()),
            "contexts": len(shown["feature"]),
            "histogram": histogram_scale(),
            "versions": _versions(),
        },
        features=features,
        contexts=shown,
        texts=vocabulary(subject.tokenizer),
        stats=stats | {"median_norm": torch.tensor(subject.median_norm)},
        sae_hash=subject.sae.content_hash,
    )


@torch.inference_mode()
def gather(
    subject: Subject,
    text: TextConfig,
    running: Running,
    read: RowFile,
    checkpoint: Checkpoint,
    batch_tokens: int,
) -> None:
    """Take in the rows of the text that `running` has not had yet, saving it now and then.

    Args:
        subject: model and SAE.
        text: what is read.
        running: facts so far; grows.
        read: rows so far; grows.
        checkpoint: where `running` is saved.
        batch_tokens: tokens of a forward pass.

    Raises:
        TextError: the text cannot be read.
    """
    todo = islice(rows(text, subject.tokenizer), running.rows, None)
    with Progress("facts", text.tokens or 0, "token") as bar:
        bar.to(int(running.sums["read"]))
        while taken := list(islice(todo, _ROWS_TOGETHER)):
            first = running.rows
            some = [row.ids for row in taken]
            for row in taken:
                read.add(row)
            for batch in read_residuals(
                subject.model, subject.hook_point, some, batch_tokens=batch_tokens
            ):
                running.update(
                    subject.sae, renumbered(batch, first), subject.limit, subject.special_ids
                )
            bar.to(int(running.sums["read"]))
            if checkpoint.due:
                read.sync()
                checkpoint.save(running.tensors())
    read.sync()
    checkpoint.save(running.tensors(), force=True)


def _versions() -> dict[str, str]:
    names = ("sae-steered", "torch", "transformers", "pyarrow")
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
