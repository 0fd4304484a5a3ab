"""Errors of the lm-eval side: one base class, and each also a stdlib error.

All take a single message, so they pickle and travel between processes. The message names
what is wrong, both values, and the remedy, on one line. An unparsable *model* answer is not
an error: it is a counted status.
"""

import sys
from pathlib import Path


class HarnessError(Exception):
    """Base class of every error that `harness_ext` raises on purpose."""


class DataError(HarnessError, ValueError):
    """Benchmark data are there but cannot be understood."""


class DataNotFoundError(HarnessError, FileNotFoundError):
    """Benchmark data are not there or cannot be reached."""


class HintError(HarnessError, ValueError):
    """A hint family, template or target is unknown or malformed."""


class TaskConfigError(HarnessError, ValueError):
    """A task's YAML or `--metadata` holds a value that the task cannot use."""


class RecordError(HarnessError, ValueError):
    """A record or a samples file does not follow the schema."""


class MetricError(HarnessError, ValueError):
    """A metric is unknown, or its inputs do not fit together."""


class PageError(HarnessError, ValueError):
    """A table or chart of a page was asked for with parts that do not fit together."""


class SensitivityError(HarnessError, ValueError):
    """An evaluation of feature sensitivity cannot be set up from what was given."""


class VerifierError(HarnessError, RuntimeError):
    """The process that compares mathematical answers cannot be started."""


class LLMConfigError(HarnessError, ValueError):
    """The endpoint, model or key of the LLM verifier or judge is missing or unusable."""


class LLMRequestError(HarnessError, RuntimeError):
    """An endpoint refused a request, or did not answer it within its tries."""


class ServerError(HarnessError, RuntimeError):
    """The server behind `backend=server` refused a request, or does not answer.

    Attributes:
        status: of HTTP; None if there was no answer.
    """

    status: int | None = None


def for_command_line(error: Exception) -> BaseException:
    """Return what to raise for an error: a one-line exit if lm-eval's own program runs.

    That program shows a traceback for a mistyped path; everybody else gets the error itself.
    """
    program = Path(sys.argv[0])
    if program.stem in ("lm_eval", "lm-eval") or program.match("lm_eval/__main__.py"):
        return SystemExit(f"sae_steered: error: {error}")
    return error
