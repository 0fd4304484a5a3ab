"""Where batches of activations come from: from files, or from the model while training runs."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from interventions.errors import TrainingError
from interventions.hook_points import HookPoint
from interventions.residuals import read_residuals
from interventions.train.world import ALONE, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Position = tuple[int, int]
"""Where in the data a batch starts; what the two numbers mean is the source's business."""
START: Position = (0, 0)


class Source(Protocol):
    """Batches in an order that depends on the seed alone, from any position on."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` activations at most, `(n, d_model)`, to start a dictionary from."""
        ...

    def batches(self, position: Position) -> Iterator[tuple[Tensor, Position]]:
        """Yield this process's rows of each batch, and where the batch after it starts."""
        ...


class Stored:
    """Activations in memory; every epoch in another order.

    Position: number of the epoch, number of the batch in it.
    """

    def __init__(self, acts: Tensor, batch_size: int, seed: int, world: World = ALONE) -> None:
        """Hold activations.

        Args:
            acts: `(tokens, d_model)` without sinks, the same in every process.
            batch_size: of all processes together.
            seed: of the order.
            world: this process.

        Raises:
            TrainingError: fewer rows than one batch.
        """
        if len(acts) < batch_size:
            raise TrainingError(
                f"{len(acts)} activations are fewer than one batch of {batch_size}; lower"
                f" trainer.batch_size or harvest more text"
            )
        self.acts, self.batch_size, self.seed = acts, batch_size, seed
        self._share = world.share(batch_size)
        self._first = world.rank * self._share

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` random activations at most."""
        return self.acts[torch.randperm(len(self.acts), generator=generator)[:count]]

    def batches(self, position: Position) -> Iterator[tuple[Tensor, Position]]:
        """Yield batches without end."""
        epoch, first = position
        per_epoch = len(self.acts) // self.batch_size
        while True:
            generator = torch.Generator().manual_seed(self.seed * 7919 + epoch + 1)
            order = torch.randperm(len(self.acts), generator=generator)
            for i in range(first, per_epoch):
                begin = i * self.batch_size + self._first
                after = (epoch, i + 1) if i + 1 < per_epoch else (epoch + 1, 0)
                yield self.acts[order[begin : begin + self._share]], after
            epoch, first = epoch + 1, 0


class Streamed:
    """Activations made from text while training runs, shuffled a buffer at a time.

    Memory is that of one buffer. The tokens of a buffer that do not fill a batch are left out.
    Position: number of the first row of the buffer, number of the batch in it. After a stop the
    buffer is made again, which gives the same batches.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        hook_point: HookPoint,
        rows: Callable[[], Iterator[Tensor]],
        *,
        batch_size: int,
        buffer_tokens: int,
        batch_tokens: int,
        seed: int,
        limit: float | None,
        without: Sequence[int] = (),
        world: World = ALONE,
    ) -> None:
        """Hold what the batches are made from.

        Args:
            model: in evaluation mode.
            hook_point: where the residual is read.
            rows: called for token rows from the first one on, each `(tokens,)`.
            batch_size: of all processes together.
            buffer_tokens: shuffled together, of all processes.
            batch_tokens: of one forward pass.
            seed: of the order.
            limit: residual norm above which a token is a sink; None keeps all.
            without: token ids that are left out.
            world: this process; it reads every `size`-th row.
        """
        self.model, self.hook_point, self.rows = model, hook_point, rows
        self.buffer_tokens, self.batch_tokens = buffer_tokens, batch_tokens
        self.seed, self.limit, self.without, self.world = seed, limit, tuple(without), world
        self._share = world.share(batch_size)
        self._kept: tuple[int, Tensor] | None = None

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return activations of the first rows, `count` at most and of one buffer at most."""
        some, _ = self._take(self.rows())
        acts = self._read(0, some)
        return acts[torch.randperm(len(acts), generator=generator)[:count].to(acts.device)]

    def first(self, count: int) -> Tensor:
        """Return the activations of the first `count` usable tokens, bf16, on the CPU."""
        found, total = [], 0
        for batch in read_residuals(
            self.model, self.hook_point, self.rows(), batch_tokens=self.batch_tokens
        ):
            acts = batch.resid[batch.usable(self.limit, self.without)]
            found.append(acts.to("cpu", torch.bfloat16))
            total += len(acts)
            if total >= count:
                break
        return torch.cat(found)[:count]

    def batches(self, position: Position) -> Iterator[tuple[Tensor, Position]]:
        """Yield batches until the text ends.

        Raises:
            TrainingError: the text has ended; says after how many rows.
        """
        first, offset = position
        stream = islice(self.rows(), first, None)
        while True:
            some, taken = self._take(stream)
            if not taken:
                raise TrainingError(
                    f"the text ended after {first} rows and there is more to train; raise"
                    f" text.epochs or text.tokens, or lower trainer.tokens_seen"
                )
            acts = self._read(first, some)
            generator = torch.Generator().manual_seed(self.seed * 7919 + first + 1)
            order = torch.randperm(len(acts), generator=generator).to(acts.device)
            count = self.world.least(len(acts) // self._share, acts.device)
            for i in range(offset, count):
                after = (first, i + 1) if i + 1 < count else (first + taken, 0)
                yield acts[order[i * self._share : (i + 1) * self._share]], after
            first, offset = first + taken, 0

    def _take(self, stream: Iterator[Tensor]) -> tuple[list[Tensor], int]:
        """Return this process's rows of one buffer, and how many rows all processes took."""
        some: list[Tensor] = []
        tokens = 0
        while tokens < self.buffer_tokens and (row := next(stream, None)) is not None:
            some.append(row)
            tokens += len(row)
        return some[self.world.rank :: self.world.size], len(some)

    def _read(self, first: int, some: Sequence[Tensor]) -> Tensor:
        if self._kept is None or self._kept[0] != first:
            found = []
            for batch in read_residuals(
                self.model, self.hook_point, some, batch_tokens=self.batch_tokens
            ):
                acts = batch.resid[batch.usable(self.limit, self.without)]
                found.append(acts.to(torch.bfloat16))  # as stored activations are
            if not found:
                raise TrainingError(
                    f"{self.world.size} processes are more than the rows of a buffer; raise"
                    f" harvest.buffer_tokens={self.buffer_tokens}"
                )
            self._kept = (first, torch.cat(found))
        return self._kept[1]
