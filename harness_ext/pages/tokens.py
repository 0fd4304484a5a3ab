"""Tokens of a text, coloured by a number each: activations of a feature, mostly."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from markupsafe import Markup, escape

STYLE = "tokens.css"
SCRIPT = "tokens.js"

_SPECIAL = re.compile(r"<[|\uff5c].+[|\uff5c]>|</?(?:s|pad|unk|[be]os|mask|(?:start|end)_of_turn)>")
_SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "·", "\u00a0": "⍽"}
_LEAST = 10  # percent of the colour that a token which fires at all has


@lru_cache(maxsize=1 << 16)  # a corpus repeats its tokens
def visible(token: str, *, spaces: bool = True) -> str:
    """Return a token with signs for what cannot be seen: `↵`, `⇥`, `·`, `[U+200B]`.

    Args:
        token: its text.
        spaces: show spaces as `·` too; otherwise only where a token is nothing but space, so
            that running text stays readable.
    """
    spaces = spaces or not token.strip()
    return "".join(_sign(character, spaces) for character in token)


def _sign(character: str, spaces: bool) -> str:
    if character == " " and not spaces:
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    # Controls, formats such as a change of direction, private use, lone surrogates.
    if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp"):
        return f"[U+{ord(character):04X}]"
    return character


def is_special(token: str) -> bool:
    """Return whether a token looks like one that no text is made of, such as `<|im_end|>`."""
    return _SPECIAL.fullmatch(token) is not None


def coloured(
    tokens: Sequence[str],
    acts: Sequence[float],
    *,
    top: float,
    name: str,
    peak: int | None = None,
    digits: int = 2,
) -> Markup:
    """Return tokens in a row; the background says how large each one's number is.

    A pointer, or the arrow keys once the row has the focus, show token and number (`tokens.js`);
    without scripts the number is the token's title. Style: `tokens.css`.

    Args:
        tokens: their texts.
        acts: a number for each; those of 0 and below get no colour.
        top: the number of full colour; rows that share it can be compared.
        name: what the row is, for screen readers.
        peak: index of the token that is outlined; default: the one with the largest number.
        digits: after the point.

    Raises:
        ValueError: there are not as many numbers as tokens.
    """
    if len(tokens) != len(acts):
        raise ValueError(f"{len(tokens)} tokens and {len(acts)} numbers; give one for each")
    if peak is None and any(act > 0 for act in acts):
        peak = max(range(len(acts)), key=lambda i: acts[i])
    parts = [f'<div class="tokens" tabindex="0" role="group" aria-label="{escape(name)}">']
    for number, (token, act) in enumerate(zip(tokens, acts, strict=True)):
        special = is_special(token)
        kinds = " ".join(kind for kind, on in (("p", number == peak), ("special", special)) if on)
        label = f' class="{kinds}"' if kinds else ""
        text = escape(visible(token, spaces=False))
        if act > 0:
            share = round(min(100.0, max(_LEAST, 100 * act / top))) if top > 0 else 100
            parts.append(f'<b{label} style="--a:{share}" title="{act:.{digits}f}">{text}</b>')
        else:
            parts.append(f"<i{label}>{text}</i>")
    return Markup("".join(parts) + "</div>")
