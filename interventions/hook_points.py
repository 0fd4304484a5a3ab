"""Places in the residual stream, in every dialect that SAE libraries write them.

Layers count from 0. `resid_post` of layer L is what decoder layer L returns; `resid_pre` is
what it receives.
"""

import re
from dataclasses import dataclass
from typing import Literal

from interventions.errors import HookPointError

Site = Literal["resid_pre", "resid_post"]

_DIALECTS: tuple[tuple[re.Pattern[str], Site], ...] = (
    (re.compile(r"blocks\.(\d+)\.(?:hook_resid_post|hook_out)"), "resid_post"),
    (re.compile(r"blocks\.(\d+)\.hook_resid_pre"), "resid_pre"),
    (re.compile(r"(?:model\.|transformer\.|gpt_neox\.)?(?:layers|h)\.(\d+)"), "resid_post"),
    (re.compile(r"model\.(?:language_model\.)?layers\.(\d+)"), "resid_post"),
    (re.compile(r"layer_(\d+)(?:/.*)?"), "resid_post"),
    (re.compile(r"layers?[. ]?(\d+)"), "resid_post"),
    (re.compile(r"resid_post_layer_(\d+)(?:/.*)?"), "resid_post"),
    (re.compile(r"(\d+)-(?:gemmascope-)?res(?:-.*)?"), "resid_post"),
    (re.compile(r"l(\d+)r(?:_.*)?", re.IGNORECASE), "resid_post"),
    (re.compile(r"Llama3_1-8B-Base-L(\d+)R-\d+x"), "resid_post"),
    (re.compile(r"(\d+)"), "resid_post"),
)
_OTHER_SITE = re.compile(
    r"hook_(?!resid_p|out\b)\w+|mlp|attn|\bL\d+[AM]\b|l\d+[am]_", re.IGNORECASE
)


@dataclass(frozen=True, order=True)
class HookPoint:
    """A layer and a side of it; `str()` gives the canonical `blocks.{layer}.hook_{site}`."""

    layer: int
    site: Site = "resid_post"

    def __str__(self) -> str:
        return f"blocks.{self.layer}.hook_{self.site}"

    def check(self, n_layers: int, model: str) -> None:
        """Return nothing if the layer is in `[0, n_layers)`.

        Raises:
            HookPointError: the layer is outside the model.
        """
        if not 0 <= self.layer < n_layers:
            raise HookPointError(
                f"layer {self.layer} is outside 0..{n_layers - 1} of {model} (hook point '{self}');"
                f" name a layer of this model in `hook_point`"
            )


def parse_hook_point(text: str | int) -> HookPoint:
    """Return the hook point that `text` names, in any known dialect.

    Args:
        text: `blocks.20.hook_resid_post`, `layers.20`, `model.layers.20`,
            `layer_20/width_16k/average_l0_71`, `l20r_800m_slimpajama`, or a bare layer number.

    Raises:
        HookPointError: the text names no residual-stream hook point that is known here.
    """
    stripped = str(text).strip()
    for pattern, site in _DIALECTS:
        match = pattern.fullmatch(stripped)
        if match:
            return HookPoint(int(match.group(1)), site)
    if _OTHER_SITE.search(stripped):
        raise HookPointError(
            f"hook point '{stripped}' is not on the residual stream; only hook_resid_pre and"
            f" hook_resid_post can be edited"
        )
    raise HookPointError(
        f"unknown hook point '{stripped}'; write it as 'blocks.<layer>.hook_resid_post'"
    )
