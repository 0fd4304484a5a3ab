"""lm-eval's program, with this package discovered whether it is installed or not."""

from harness_ext.autoload import install

install()

from lm_eval.__main__ import cli_evaluate  # noqa: E402

if __name__ == "__main__":  # an engine's processes import this file again
    cli_evaluate()
