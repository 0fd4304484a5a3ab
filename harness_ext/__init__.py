"""What sae-steered adds to lm-evaluation-harness.

An installed wheel holds the folders `tasks/` and `scripts/` of the repository inside this
package. In a checkout they lie beside it, and extending `__path__` gives both layouts the same
names, `harness_ext.tasks` and `harness_ext.scripts`.
"""

import os.path as _path

__version__ = "0.1.0"

_here = _path.dirname(_path.abspath(__file__))
_parent = _path.dirname(_here)
# os.path, not pathlib: importing pathlib alone costs more than all of this module.
if (
    not _path.isdir(_path.join(_here, "tasks"))
    and _path.isfile(_path.join(_parent, "pyproject.toml"))
    and _path.isdir(_path.join(_parent, "tasks"))
    and _parent not in __path__
):
    __path__.append(_parent)

__all__ = ["__version__"]
