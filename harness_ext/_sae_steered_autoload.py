"""Import hook by which plain `lm_eval` learns of sae-steered; what it does is in harness_ext.

A `.pth` file (a `.start` file from Python 3.15 on) calls `install()` when an interpreter of the
environment starts. That only puts a finder on `sys.meta_path`. When lm-eval itself has imported
one of the modules in `WATCHED`, `harness_ext.autoload` registers our model and our tasks there.
`SAE_STEERED_AUTOLOAD=0` switches the hook off; `pip uninstall sae-steered` removes it.

It runs at every start, so it imports nothing that `site` has not imported already, leaves
`harness_ext` alone until it is needed, never raises, and does nothing the second time (a `.pth`
line runs twice in some virtual environments). An installation has this file at the root of
site-packages; a checkout has it here.
"""

import os
import sys

SWITCH = "SAE_STEERED_AUTOLOAD"
WATCHED = ("lm_eval.models", "lm_eval.tasks.manager")
_OFF = ("0", "false", "no", "off")
_MARK = "_sae_steered_autoload"


def _patch(module) -> None:
    try:
        from harness_ext.autoload import patch

        patch(module)
    except Exception as error:
        import logging

        logging.getLogger("sae_steered").warning(
            "sae-steered cannot add itself to %s: %s: %s (reinstall sae-steered, or set %s=0)",
            module.__name__,
            type(error).__name__,
            error,
            SWITCH,
        )


class _Finder:
    """Finds the watched modules through the other finders and patches them once they ran."""

    # Marks finders of ours whichever copy of this file made them.
    _sae_steered_autoload = True

    def find_spec(self, name, path=None, target=None):
        if name not in WATCHED:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            if find is None or getattr(finder, _MARK, False):
                continue
            spec = find(name, path, target)
            if spec is not None:
                _patch_after(spec)
                return spec
        return None


def _patch_after(spec) -> None:
    run = getattr(spec.loader, "exec_module", None)
    if run is None:
        return

    def exec_module(module):
        run(module)
        _patch(module)

    # On the instance: the loader keeps its type, and whoever reads sources through it works.
    spec.loader.exec_module = exec_module


def install(force: bool = False) -> None:
    """Return with the hook in place.

    Args:
        force: Ignore the switch, for commands that are ours anyway.
    """
    if not force and os.environ.get(SWITCH, "").strip().lower() in _OFF:
        return
    for name in WATCHED:
        if name in sys.modules:
            _patch(sys.modules[name])
    if not any(getattr(finder, _MARK, False) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
