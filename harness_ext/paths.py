"""Where the files of this package lie, in a wheel and in a checkout."""

from pathlib import Path

from harness_ext import __path__ as _package_path


def _folder(name: str) -> Path:
    for root in _package_path:
        folder = Path(root) / name
        if folder.is_dir():
            return folder
    msg = (
        f"folder '{name}' of sae-steered is in none of {list(_package_path)}; "
        "the installation is incomplete, reinstall sae-steered"
    )
    raise FileNotFoundError(msg)


def tasks_dir() -> Path:
    """Return the folder with the lm-eval task YAML files.

    Raises:
        FileNotFoundError: The installation has no task folder.
    """
    return _folder("tasks")


def scripts_dir() -> Path:
    """Return the folder with the commands behind the `sae-steered` subcommands.

    Raises:
        FileNotFoundError: The installation has no scripts folder.
    """
    return _folder("scripts")


def data_dir() -> Path:
    """Return the folder with the package's own data files (hint templates, lexicons).

    Raises:
        FileNotFoundError: The installation has no data folder.
    """
    return _folder("data")
