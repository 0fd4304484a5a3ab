"""`python -m harness_ext ARGS` is `lm_eval ARGS` with our model and tasks, hook or not."""

import sys

from harness_ext.autoload import install
from harness_ext.cli import report_errors


def main() -> int:
    """Return the exit code of the lm-eval command line, 2 for an error of sae-steered."""
    install()

    def run(argv: list[str]) -> None:
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()

    return report_errors("lm_eval", run, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
