"""Standard output that holds a command's result and nothing else."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def others_to_stderr() -> Iterator[None]:
    """Keep stdout for the result: vLLM, and the processes that it starts, log there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
