"""What the writer of new texts is asked, and how its reply is taken apart.

The rules are those of the published prompts, in our own words: say what marks mean and that an
activation depends on earlier words alone; keep what the examples share, vary as they vary.
"""

from collections.abc import Sequence

from interventions.features.examples import Example

SEPARATOR = "<SAMPLE_SEPARATOR/>"
NEWLINE = "↵"

SYSTEM = (
    "You study one feature inside a language model. The feature is silent on most words of a text"
    " and active on some. You are shown texts in which it is active; each word or part of a word"
    " that it is active on stands between double braces, {{like}}{{ this}}. Where a text has no"
    " braces, the feature is silent in it. Activity is measured word by word, and it can depend"
    " only on that word and on the words before it, never on those after. A line break is shown as"
    f" {NEWLINE}. Your task is to write new texts on which the feature is strongly active."
)

_RULES = (
    "Read the examples below: what do they all have in common, and in what do they differ?"
    " Then write new texts that make the same feature active.\n"
    "- Keep everything that all examples share: a word, a pattern, a topic, a form.\n"
    "- Be as varied as the examples are, and no more.\n"
    "- Vary in the ways in which the examples vary: in topic, say, where they share a form.\n"
    "- Add no kind of variation that the examples do not have.\n"
    "- Do not repeat yourself, and do not copy the examples.\n"
    "The feature may stand for a meaning, a grammatical form, an idea, a name, or for signs such as"
    f" punctuation, citations or line breaks ({NEWLINE}); then these must be there."
)


def marked(example: Example, pieces: Sequence[str], level: float) -> str:
    """Return an example's text with `{{ }}` around active tokens and `↵` for line breaks.

    Args:
        example: its activations.
        pieces: text of each of its tokens.
        level: activation that a token must exceed.
    """
    parts = [
        f"{{{{{piece}}}}}" if act > level else piece
        for piece, act in zip(pieces, example.acts, strict=True)
    ]
    return "".join(parts).replace("\ufffd", "").replace("\n", NEWLINE)


def user_prompt(examples: Sequence[str], number: int) -> str:
    """Return the request for `number` new texts after `examples`, which `marked` gave.

    One more is asked for than is kept, since writers often leave the last one out.
    """
    asked = number if number == 1 else number + 1
    joined = f"\n{SEPARATOR}\n".join(examples)
    return (
        f"{_RULES}\n\nWrite exactly {asked} texts, each without a number, a title or a remark, and"
        f" put {SEPARATOR} between them.\n\n{len(examples)} examples, separated by {SEPARATOR}:\n"
        f"{joined}"
    )


def parse(reply: str, number: int) -> list[str]:
    """Return the texts in a reply, `number` at most where it holds one more or as many.

    They stand between separators; in a reply without any, between empty lines, as the published
    pipeline takes them.
    """
    parts = reply.split(SEPARATOR) if SEPARATOR in reply else reply.split("\n\n")
    found = [part.strip() for part in parts if part.strip()]
    return found[:number] if abs(len(found) - number) <= 1 else found


def copied(text: str, examples: Sequence[str]) -> bool:
    """Return whether a new text is an example again, a piece of one, or holds a whole one.

    Marks, white space and capitals do not count.

    Args:
        text: as it came.
        examples: as `marked` gave them.
    """
    mine = _plain(text)
    return any(mine in one or one in mine for one in map(_plain, examples) if one)


def _plain(text: str) -> str:
    return " ".join(cleaned(text).split()).casefold()


def cleaned(text: str) -> str:
    """Return a generated text as the model reads it: without marks, `↵` a line break again.

    The published pipeline leaves `↵` where it stands.
    """
    return text.replace("{{", "").replace("}}", "").replace(NEWLINE, "\n")
