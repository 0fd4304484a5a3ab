"""Registers the model `sae_steered` and the `steer_*` tasks with lm-eval.

lm-eval after 0.4.13 reads the entry points `lm_eval.models` and `lm_eval.tasks`; 0.4.13 reads
none. `patch` does its work for it and leaves a newer lm-eval alone. The import hook in
`_sae_steered_autoload` calls it when lm-eval has imported a module that it watches.
"""

import functools
import inspect
import os
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from harness_ext.paths import tasks_dir

MODEL_NAME = "sae_steered"
MODEL_TARGET = "harness_ext.model:SAESteeredLM"
_MARK = "_sae_steered"


def install() -> None:
    """Return with the import hook in place, whatever SAE_STEERED_AUTOLOAD says.

    For commands of ours: they work in a checkout that is not installed, and with discovery off.
    Call it before or after lm-eval is imported.
    """
    try:
        from harness_ext import _sae_steered_autoload as hook
    except ImportError:  # a wheel has the file at the root of site-packages only
        import _sae_steered_autoload as hook  # type: ignore[import-not-found, no-redef]
    hook.install(force=True)


def patch(module: ModuleType) -> None:
    """Return after `module` of lm-eval knows our model or our tasks; idempotent.

    Args:
        module: `lm_eval.models` or `lm_eval.tasks.manager`, fully imported.

    Raises:
        ValueError: Any other module.
    """
    if module.__name__ == "lm_eval.models":
        _register_model()
    elif module.__name__ == "lm_eval.tasks.manager":
        _add_task_folder(module)
    else:
        raise ValueError(f"no patch for module '{module.__name__}'")


def _read_by_lm_eval(module: ModuleType, reader: str, group: str) -> bool:
    """Return whether lm-eval has `reader` and there is an entry point of ours for it to read."""
    return hasattr(module, reader) and len(entry_points(group=group, name=MODEL_NAME)) > 0


def _register_model() -> None:
    # Only after `lm_eval.models` ran: lm-eval imports that module if its registry is empty, so
    # a registration before it would hide every model of its own.
    from lm_eval.api import registry

    if _read_by_lm_eval(registry, "load_plugins", "lm_eval.models"):
        return
    if MODEL_NAME not in registry.model_registry:
        # A string, not an EntryPoint: 0.4.13 fails when it upgrades an EntryPoint to the class.
        registry.model_registry.register(MODEL_NAME, target=MODEL_TARGET)


def _add_task_folder(manager: Any) -> None:
    if _read_by_lm_eval(manager, "discover_plugin_task_paths", "lm_eval.tasks"):
        return
    original = manager.TaskManager.__init__
    if getattr(original, _MARK, False):
        return
    ours = str(tasks_dir())
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments.get("include_path")
        paths = list(given) if isinstance(given, list | tuple) else [given] if given else []
        # First, so that a user's own --include_path still wins.
        if not any(os.path.realpath(path) == os.path.realpath(ours) for path in paths):
            paths.insert(0, ours)
        bound.arguments["include_path"] = paths
        original(*bound.args, **bound.kwargs)
        # What the caller gave, for whoever reads it back.
        args[0].include_path = given

    setattr(init, _MARK, True)
    manager.TaskManager.__init__ = init
