"""One run in one folder: its settings, its model, its text, the folders of its steps."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interventions.default_model import ResolvedModel, resolve_pretrained
from interventions.errors import ModelNotFoundError, SpecError, TextError, TrainingError
from interventions.text.rows import rows
from interventions.train.config import TrainConfig, TrainerConfig, fingerprint
from interventions.train.files import StepFolder
from interventions.train.harvest import read_activations, read_rows
from interventions.train.source import Source, Stored, Streamed
from interventions.train.world import ALONE, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interventions.sae.core import SAE


class Run:
    """One training run in one folder: its settings, its model (loaded when needed), its steps."""

    def __init__(self, config: TrainConfig, out: Path, world: World = ALONE) -> None:
        """Open or begin a run.

        Args:
            config: the settings.
            out: folder of the run; a run of the same settings there is continued.
            world: this process.
        """
        self.config, self.out, self.world = config, out, world
        self.resolved: ResolvedModel = resolve_pretrained(config.model)
        self._model: PreTrainedModel | None = None

    def folder(self, step: str) -> StepFolder:
        """Return the folder of `step`; its key covers everything that the step depends on."""
        c, label = self.config, self.resolved.label
        # How much text is asked for is no part of the key: more text continues the files there.
        text = c.generate.model_dump(mode="json", exclude={"tokens"})
        parts: dict[str, list[Any]] = {"generate": [label, c.seed, text], "docs": [label, c.docs]}
        everything = [label, c.seed, c.generate, c.docs, c.hook_point, c.harvest]
        everything += [part for part in (c.text, c.revision) if part is not None]
        if c.dtype != "auto":
            everything.append(c.dtype)
        parts["harvest"] = everything
        parts["train"] = parts["calibrate"] = parts["stats"] = [*everything, c.trainer]
        parts["evaluate"] = parts["save"] = [*everything, c.trainer, c.evaluate, c.name]
        return StepFolder(self.out / step, fingerprint(*parts[step]))

    @property
    def device(self) -> torch.device:
        """Where the model and the dictionary are.

        Raises:
            SpecError: it is not there.
        """
        name = self.config.device
        if name == "auto":
            name = f"cuda:{self.world.local_rank}" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise SpecError(f"device '{name}' is unknown; give auto, cpu or cuda") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise SpecError(f"device '{name}' is not there; give cpu")
        return device

    def model(self) -> "PreTrainedModel":
        """Return the model, in the dtype that it is stored in unless the settings name one."""
        model = self._model
        if model is None:
            from transformers import AutoModelForCausalLM

            loaded = self._loaded(AutoModelForCausalLM, dtype=self.config.dtype)
            model = loaded.to(self.device).eval()
            self._model = model
        return model

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return the model's tokenizer."""
        from transformers import AutoTokenizer

        return self._loaded(AutoTokenizer)

    def _loaded(self, kind: Any, **arguments: Any) -> Any:
        path = self.resolved.path
        if self.config.revision is not None:
            arguments["revision"] = self.config.revision
        try:
            return kind.from_pretrained(path, **arguments)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise ModelNotFoundError(
                f"cannot load the model '{path}': {first}; name a folder, a hub repository or"
                f" 'default'"
            ) from error

    def report(self, step: str) -> dict[str, Any]:
        """Return what a finished step reported."""
        report = self.folder(step).done
        return report if report is not None else {}

    @property
    def limit(self) -> float | None:
        """The residual norm above which a token is a sink; None where sinks are kept."""
        found = self.report("harvest")
        return None if found["guard"] is None else found["guard"] * found["median_norm"]

    @property
    def without(self) -> tuple[int, ...]:
        """Ids of tokens that are not trained on."""
        exclude = self.config.harvest.exclude
        if exclude == "special":
            return tuple(sorted(self.tokenizer().all_special_ids))
        return tuple(exclude)

    @property
    def result(self) -> Path:
        """The folder of the finished SAE."""
        return self.out / "save" / self.config.name / str(self.config.hook)

    def text_rows(self) -> Iterator[Tensor]:
        """Yield the token rows of `text`, from the first one on."""
        if (text := self.config.text) is not None:
            # What is held out in the first epoch is not trained on in the next ones.
            held_out = 2 * (self.config.harvest.holdout_tokens + text.context)
            for row in rows(text, self.tokenizer(), once=held_out):
                yield row.ids

    def split_text(self) -> tuple[dict[str, list[Tensor]], Iterator[Tensor]]:
        """Return the first rows of `text`, held out, and the rows after them.

        The first `holdout_tokens` are measured on, as many set the threshold. One row after them
        is left out, so that no row that is trained on continues a held-out one.

        Raises:
            TextError: there is no more text than what is held out.
        """
        parts: dict[str, list[Tensor]] = {"held": [], "calibrate": []}
        wanted = self.config.harvest.holdout_tokens
        stream = self.text_rows()
        for part in parts.values():
            tokens = 0
            while tokens < wanted:
                row = next(stream, None)
                if row is None:
                    raise TextError(
                        f"`text` holds {sum(len(r) for p in parts.values() for r in p)} tokens;"
                        f" more than twice harvest.holdout_tokens={wanted} are needed: lower that"
                        f" or give more text"
                    )
                part.append(row)
                tokens += len(row)
        next(stream, None)
        return parts, stream

    def training_rows(self) -> Iterator[Tensor]:
        """Yield the token rows of `text` after those that were held out.

        Raises:
            TrainingError: the text is not the one that was held out from.
        """
        parts, stream = self.split_text()
        for part, some in parts.items():
            stored = read_rows(self.out / "harvest", part)
            if not torch.equal(torch.cat(stored), torch.cat(some)):
                raise TrainingError(
                    f"`text` begins otherwise than when {self.out / 'harvest'} was made; put it"
                    f" back, or name another --out"
                )
        yield from stream

    def source(self, trainer: TrainerConfig) -> Source:
        """Return where the batches come from: the files of the harvest, or the model."""
        c = self.config
        if c.harvest.store:
            acts = read_activations(self.out / "harvest", "train", self.limit, self.without)
            return Stored(acts, trainer.batch_size, c.seed, self.world)
        return self.streamed(trainer)

    def streamed(self, trainer: TrainerConfig) -> Streamed:
        """Return batches made from the model while training runs."""
        c = self.config
        return Streamed(
            self.model(),
            c.hook,
            self.training_rows,
            batch_size=trainer.batch_size,
            buffer_tokens=c.harvest.buffer_tokens,
            batch_tokens=c.harvest.batch_tokens,
            seed=c.seed,
            limit=self.limit,
            without=self.without,
            world=self.world,
        )

    def trainer(self) -> TrainerConfig:
        """Return the trainer's settings with `d_sae` known."""
        if self.config.trainer.expansion is None:
            return self.config.trainer
        d_model: int = self.model().config.get_text_config().hidden_size
        return self.config.trainer.resolved(d_model)


def load_trained(folder: Path) -> "SAE":
    """Return an SAE of this project's own layout, read by the loader that steering uses."""
    from interventions.sae.io import load_sae
    from interventions.spec import SAERef

    return load_sae(SAERef(path=str(folder)))
