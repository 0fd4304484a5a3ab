"""Write the items of steer_arith: arithmetic word problems with exact whole-number answers.

    python scripts/make_arith.py --seed 20 --per-level 120 --out tasks/steer_arith/items.jsonl

The same arguments give the same bytes. Prints the number of items and the file's sha256.
Levels: 1 = one step with small numbers; 2 = one step with two-digit numbers, or a small
product; 3 = two steps with
small numbers. Levels alternate in the order of the ids, so that any first N items hold
all three.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

NAMES = [
    "Ana",
    "Ben",
    "Carla",
    "Dev",
    "Elif",
    "Farid",
    "Gita",
    "Hugo",
    "Ines",
    "Jonas",
    "Kofi",
    "Lena",
    "Mira",
    "Nils",
    "Olga",
    "Pavel",
    "Rosa",
    "Sami",
    "Tara",
    "Umar",
    "Vera",
    "Wim",
    "Yara",
    "Zoe",
]
THINGS = [
    "apples",
    "stickers",
    "pencils",
    "shells",
    "marbles",
    "stamps",
    "cookies",
    "buttons",
    "postcards",
    "beads",
    "cards",
    "coins",
    "balloons",
    "badges",
    "oranges",
    "books",
]
BOXES = ["boxes", "bags", "jars", "baskets", "trays", "crates"]
PLACES = ["library", "museum", "bakery", "garden", "market", "station", "school", "harbour"]

Template = Callable[[random.Random], tuple[str, int]]


def _names(rng: random.Random, n: int) -> list[str]:
    return rng.sample(NAMES, n)


# Level 1: one step, small numbers.


def _gets_more(rng: random.Random) -> tuple[str, int]:
    (who,), thing = _names(rng, 1), rng.choice(THINGS)
    a, b = rng.randint(2, 7), rng.randint(2, 7)
    return f"{who} has {a} {thing} and gets {b} more. How many {thing} does {who} have now?", a + b


def _gives_away(rng: random.Random) -> tuple[str, int]:
    (who, other), thing = _names(rng, 2), rng.choice(THINGS)
    a = rng.randint(5, 12)
    b = rng.randint(2, a - 2)
    return f"{who} has {a} {thing} and gives {b} to {other}. How many {thing} are left?", a - b


def _together(rng: random.Random) -> tuple[str, int]:
    (who, other), thing = _names(rng, 2), rng.choice(THINGS)
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return (
        f"{who} found {a} {thing}. {other} found {b} {thing}. "
        f"How many {thing} did they find together?",
        a + b,
    )


def _on_the_table(rng: random.Random) -> tuple[str, int]:
    thing = rng.choice(THINGS)
    a = rng.randint(6, 12)
    b = rng.randint(2, a - 2)
    return (
        f"There were {a} {thing} on the table. Someone took {b} of them. "
        f"How many {thing} are still on the table?",
        a - b,
    )


def _difference(rng: random.Random) -> tuple[str, int]:
    (who, other), thing = _names(rng, 2), rng.choice(THINGS)
    b = rng.randint(2, 8)
    a = b + rng.randint(2, 9)
    return (
        f"{who} has {a} {thing} and {other} has {b}. "
        f"How many more {thing} does {who} have than {other}?",
        a - b,
    )


def _visitors(rng: random.Random) -> tuple[str, int]:
    place = rng.choice(PLACES)
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return (
        f"In the morning {a} people came to the {place}, and in the evening {b} people came. "
        f"How many people came in total?",
        a + b,
    )


# Level 2: one step with two-digit numbers, or a small product or quotient.


def _add_tens(rng: random.Random) -> tuple[str, int]:
    (who,), thing = _names(rng, 1), rng.choice(THINGS)
    a, b = rng.randint(12, 49), rng.randint(11, 29)
    return (
        f"{who} had {a} {thing} and bought {b} more at the market. "
        f"How many {thing} does {who} have now?",
        a + b,
    )


def _sub_tens(rng: random.Random) -> tuple[str, int]:
    (who,), thing = _names(rng, 1), rng.choice(THINGS)
    a = rng.randint(40, 95)
    b = rng.randint(13, a - 15)
    return f"{who} had {a} {thing} and sold {b} of them. How many {thing} are left?", a - b


def _groups(rng: random.Random) -> tuple[str, int]:
    (who,), thing, box = _names(rng, 1), rng.choice(THINGS), rng.choice(BOXES)
    a, b = rng.randint(3, 9), rng.randint(3, 9)
    return (
        f"{who} has {a} {box} with {b} {thing} in each. How many {thing} does {who} have in all?",
        a * b,
    )


def _share(rng: random.Random) -> tuple[str, int]:
    (who,), thing = _names(rng, 1), rng.choice(THINGS)
    friends, each = rng.randint(2, 9), rng.randint(3, 9)
    return (
        f"{who} shares {friends * each} {thing} equally among {friends} friends. "
        f"How many {thing} does each friend get?",
        each,
    )


def _pages(rng: random.Random) -> tuple[str, int]:
    (who,) = _names(rng, 1)
    a = rng.randint(50, 95)
    b = rng.randint(13, 35)
    return (
        f"A book has {a} pages and {who} has read {b} of them. How many pages are still to read?",
        a - b,
    )


def _tickets(rng: random.Random) -> tuple[str, int]:
    place = rng.choice(PLACES)
    a, b = rng.randint(3, 9), rng.randint(4, 12)
    return (
        f"A ticket for the {place} tour costs {a} dollars. How many dollars do {b} tickets cost?",
        a * b,
    )


# Level 3: two steps.


def _buy_and_give(rng: random.Random) -> tuple[str, int]:
    (who, other), thing = _names(rng, 2), rng.choice(THINGS)
    a, b = rng.randint(4, 12), rng.randint(2, 8)
    c = rng.randint(2, 6)
    return (
        f"{who} had {a} {thing}, bought {b} more and then gave {c} to {other}. "
        f"How many {thing} does {who} have now?",
        a + b - c,
    )


def _groups_and_extra(rng: random.Random) -> tuple[str, int]:
    (who,), thing, box = _names(rng, 1), rng.choice(THINGS), rng.choice(BOXES)
    a, b, c = rng.randint(2, 5), rng.randint(2, 6), rng.randint(2, 9)
    return (
        f"{who} has {a} {box} with {b} {thing} in each and {c} loose {thing}. "
        f"How many {thing} are there altogether?",
        a * b + c,
    )


def _groups_less(rng: random.Random) -> tuple[str, int]:
    (who,), thing, box = _names(rng, 1), rng.choice(THINGS), rng.choice(BOXES)
    a, b = rng.randint(2, 5), rng.randint(3, 6)
    c = rng.randint(2, a * b - 2)
    return (
        f"{who} fills {a} {box} with {b} {thing} each. Later {c} {thing} are lost. "
        f"How many {thing} remain?",
        a * b - c,
    )


def _change(rng: random.Random) -> tuple[str, int]:
    (who,), thing = _names(rng, 1), rng.choice(THINGS)
    price, n = rng.randint(2, 5), rng.randint(2, 5)
    paid = (price * n // 10 + 1) * 10
    return (
        f"{who} buys {n} {thing} for {price} dollars each and pays with {paid} dollars. "
        f"How many dollars does {who} get back?",
        paid - price * n,
    )


def _twice(rng: random.Random) -> tuple[str, int]:
    (who, other), thing = _names(rng, 2), rng.choice(THINGS)
    a, more = rng.randint(2, 12), rng.randint(2, 8)
    return (
        f"{who} has {a} {thing}. {other} has {more} more than {who}. "
        f"How many {thing} do they have together?",
        a + a + more,
    )


def _wages(rng: random.Random) -> tuple[str, int]:
    (who,), place = _names(rng, 1), rng.choice(PLACES)
    rate, hours, bonus = rng.randint(5, 12), rng.randint(2, 5), rng.randint(2, 10)
    return (
        f"{who} earns {rate} dollars an hour at the {place}, works {hours} hours and gets a bonus "
        f"of {bonus} dollars. How many dollars does {who} earn in total?",
        rate * hours + bonus,
    )


LEVELS: tuple[tuple[Template, ...], ...] = (
    (_gets_more, _gives_away, _together, _on_the_table, _difference, _visitors),
    (_add_tens, _sub_tens, _groups, _share, _pages, _tickets),
    (_buy_and_give, _groups_and_extra, _groups_less, _change, _twice, _wages),
)


def make_items(seed: int, per_level: int) -> list[dict]:
    """Return `3 * per_level` items `{qid, question, answer, level, meta}` in the order of qid.

    Templates of a level take turns; a question text that came up before is drawn again.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    items = []
    for i in range(per_level):
        for level, templates in enumerate(LEVELS, start=1):
            template = templates[i % len(templates)]
            question, answer = template(rng)
            while question in seen:
                question, answer = template(rng)
            seen.add(question)
            items.append(
                {
                    "qid": f"arith-{len(items):04d}",
                    "question": question,
                    "answer": str(answer),
                    "level": level,
                    "meta": {"template": template.__name__.lstrip("_")},
                }
            )
    return items


def main(argv: list[str] | None = None) -> int:
    """Write the file and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--per-level", type=int, default=120, help="items of each level")
    parser.add_argument("--out", type=Path, default=Path("tasks/steer_arith/items.jsonl"))
    args = parser.parse_args(argv)
    items = make_items(args.seed, args.per_level)
    data = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode()
    args.out.write_bytes(data)
    print(f"{len(items)} items, sha256 {hashlib.sha256(data).hexdigest()}, {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
