"""The processes of one training run: one alone, or several started by torchrun."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.errors import TrainingError

_PATIENCE = datetime.timedelta(hours=24)  # while one process writes text, the others wait


@dataclass(frozen=True)
class World:
    """Which process this is.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number on this machine; picks the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Return this process's rows of a batch.

        Raises:
            TrainingError: the batch cannot be divided.
        """
        if batch_size % self.size:
            raise TrainingError(
                f"trainer.batch_size={batch_size} is no multiple of the {self.size} processes;"
                f" change one of them"
            )
        return batch_size // self.size

    def barrier(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    def total(self, tensor: Tensor) -> Tensor:
        """Return `tensor` after adding those of all processes to it, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def any(self, flags: Tensor) -> Tensor:
        """Return which flags are set in any process."""
        if self.size == 1:
            return flags
        counts = flags.int()
        torch.distributed.all_reduce(counts)
        return counts > 0

    def least(self, number: int, device: torch.device) -> int:
        """Return the least of the processes' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor(number, device=device)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MIN)
        return int(found)

    def from_first(self, tensor: Tensor) -> Tensor:
        """Return the first process's tensor, written into `tensor`."""
        if self.size > 1:
            torch.distributed.broadcast(tensor, src=0)
        return tensor


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Yield the world that torchrun describes in the environment, or `ALONE`.

    Raises:
        TrainingError: the environment names several processes but not how to reach them.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
        raise TrainingError(
            f"WORLD_SIZE={size} without RANK and MASTER_ADDR; start with"
            f" `torchrun --nproc-per-node {size} --no-python sae-steered train …`"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield World(torch.distributed.get_rank(), torch.distributed.get_world_size(), local)
    finally:
        torch.distributed.destroy_process_group()
