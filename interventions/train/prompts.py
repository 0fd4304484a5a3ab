"""Prompts that the project makes itself, for a chat model to answer.

Every prompt is a template filled from word lists by a seeded generator: the same count and seed
give the same prompts, and the first n prompts do not depend on how many are asked for.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_TOPICS = """
photosynthesis|volcanoes|the water cycle|black holes|gravity|friction|electric motors|batteries
the human heart|vaccines|sleep|memory|the immune system|nutrition|exercise|stress|coffee|bread
cheese making|fermentation|gardening|composting|bees|whales|wolves|octopuses|birds of prey|ants
coral reefs|rainforests|deserts|glaciers|rivers|tides|earthquakes|clouds|lightning|the ozone layer
solar panels|wind turbines|nuclear power|recycling|public transport|bicycles|trains|airplanes
bridges|concrete|glass|steel|paper|printing|the telephone|radio|television|the internet|computers
programming|databases|encryption|search engines|machine learning|robots|satellites|telescopes
the Moon|Mars|the Sun|comets|time zones|calendars|maps|compasses|clocks|music theory|the violin
jazz|opera|painting|sculpture|photography|poetry|novels|theatre|cinema|fairy tales|mythology
ancient Egypt|the Roman Empire|the Silk Road|the Renaissance|the printing press|the steam engine
democracy|constitutions|courts|taxes|inflation|interest rates|trade|insurance|banks|budgets
negotiation|leadership|teamwork|public speaking|job interviews|emails|studying|note taking
learning a language|grammar|dictionaries|etymology|sign language|chess|football|swimming|running
yoga|camping|hiking|sailing|fishing|knitting|cooking rice|soup|pizza|chocolate|tea|ice cream
prime numbers|fractions|percentages|probability|statistics|geometry|the number pi|infinity
logic puzzles|averages|graphs|equations|measurement|units of length|temperature|density|sound
light and color|magnets|atoms|water|salt|metals|acids and bases|fire|plastics|soap|DNA|cells
evolution|dinosaurs|fossils|trees|mushrooms|seeds|weather forecasts|floods|cities|villages|schools
libraries|museums|hospitals|firefighters|doctors|teachers|farmers|friendship|honesty|courage
"""
_NAMES = """
Maya|Tom|Lena|Ahmed|Sofia|Ben|Chen|Priya|Lucas|Nora|Omar|Ivy|Jonas|Kemi|Rosa|Felix|Hana|Diego
Ella|Marco|Aisha|Peter|Yuki|Clara|Sam|Olga|Ravi|Grace|Hugo|Zoe|Victor|Amina|Leo|Irene|Paul|Tara
"""
_THINGS = """
apples|pencils|marbles|stamps|cookies|books|stickers|coins|oranges|tickets|bottles|cards|eggs
candles|shells|buttons|flowers|balloons|notebooks|cups|bricks|tiles|beads|toys|photos|tomatoes
"""
_PLACES = """
a lighthouse|a small village|an old library|a space station|a snowy mountain|a busy market
a quiet harbor|a castle|a hospital|a farm|a desert town|a train|an island|a school|a bakery
a forest|a museum|a submarine|a theatre|a garden
"""
_HEROES = """
a young inventor|a retired sailor|a curious cat|a shy baker|two sisters|a lost robot|an old teacher
a brave dog|a clumsy wizard|a detective|a painter|a doctor|a talking tree|a mail carrier|a fox
a night guard|a musician|a farmer|a student|a queen
"""
_LANGUAGES = "Python|Python|Python|JavaScript|SQL|C|Java|Bash|HTML"
_TASKS = """
reverses a string|finds the largest number in a list|counts the words in a text|sorts a list
checks whether a number is prime|computes the factorial of a number|removes duplicates from a list
reads a file and prints its lines|computes the average of a list|merges two dictionaries
checks whether a word is a palindrome|prints the Fibonacci numbers|converts Celsius to Fahrenheit
finds the most common letter|draws a triangle of stars|sums the digits of a number
validates an email address|computes the area of a circle|splits a sentence into words
counts the vowels in a word
"""
_ADJECTIVES = "calm|funny|sad|mysterious|exciting|hopeful|strange|gentle|scary|short"


def _words(text: str) -> list[str]:
    return [word.strip() for line in text.strip().splitlines() for word in line.split("|")]


TOPICS, NAMES, THINGS, PLACES, HEROES = map(_words, (_TOPICS, _NAMES, _THINGS, _PLACES, _HEROES))
LANGUAGES, TASKS, ADJECTIVES = map(_words, (_LANGUAGES, _TASKS, _ADJECTIVES))

_EXPLAIN = (
    "Explain {t} to a child.|What is {t}?|Why does {t} matter?|How would you describe {t}?"
    "|Tell me three surprising facts about {t}.|What do people often get wrong about {t}?"
    "|Write a short encyclopedia entry about {t}.|Can you explain {t} in simple terms?"
    "|What is the history of {t}?|Give a detailed explanation of {t} with an example."
    "|What is the difference between {t} and {u}?|Is {t} more important than {u}? Explain why."
    "|I have to give a talk about {t}. What should I say?|Who should learn about {t}, and why?"
    "|Summarize what is known about {t} in one paragraph.|How are {t} and {u} related?"
)
_LISTS = (
    "List {k} tips for learning about {t}.|Give me {k} questions about {t}.|Name {k} facts on {t}."
    "|Make a numbered list of {k} reasons to care about {t}.|Write {k} quiz questions about {t} "
    "with answers.|What are {k} common problems with {t}?|Make a table that compares {t} and {u}."
    "|Write a step by step guide to {t}.|Plan a {k}-day project about {t}."
    "|Give {k} book titles about {t}.|What are the pros and cons of {t}?"
)
_STORIES = (
    "Write a {a} story about {h} in {p}.|Tell me a story about {h} and {g}.|Write a {a} poem about "
    "{t}.|Write a dialogue between {h} and {g} in {p}.|Begin a novel that takes place in {p}."
    "|Write a letter from {n} to {m} about {t}.|Describe {p} at night.|Write a {a} scene in which "
    "{n} meets {h}.|Write a diary entry of {h}.|Invent a fable about {h} with a moral."
)
_WRITING = (
    "Write an email to {n} about {t}.|Write a product description for {x}.|Write a news report "
    "about {t} in {p}.|Write a persuasive paragraph for {t}.|Argue against {t}."
    "|Rewrite this politely: 'I do not want to talk about {t} any more, {n}!'"
    "|Correct the grammar: '{n} have went to {p} yesterday and see many {x}.'"
    "|Translate into French: '{n} has {k} {x}.'|Translate into Spanish: 'Where is {p}?'"
    "|What would you answer to someone who says that {t} is useless?"
    "|Give advice to {n}, who is worried about {t}.|Write a speech of {h} about {t}."
)
_CODE = (
    "Write a {l} function that {c}.|Write a {l} program that {c} and explain it.|How do I write "
    "{l} code that {c}?|Show me a {l} example that {c}, with comments.|Write a test for a {l} "
    "function that {c}.|What is wrong with {l} code that {c} very slowly?"
)
_CHOICE = (
    "Which of these is related to {t}?\n(A) {x}\n(B) {t}\n(C) {y}\n(D) none of them\n"
    "Think step by step and give the letter.|Question: is {t} studied by scientists?\n"
    "Answer yes or no and say why.|{n} says that {t} and {u} are the same. Is {n} right?"
)
_SUMS = (
    "{n} has {i} {x} and buys {j} more. How many {x} does {n} have now?"
    "|{n} had {big} {x} and gave {i} of them to {m}. How many {x} are left?"
    "|A box holds {k} {x}. How many {x} are in {i} boxes? Show your work."
    "|{n} earns {i} dollars an hour and works {k} hours a day for {q} days. How much is that?"
    "|{big} {x} are shared equally among {k} children. How many does each child get, and how many "
    "are left over?|What is {i} + {j}?|What is {i} times {k}?|Compute {big} - {i}.|What is {q} "
    "percent of {big}?|{n} is {i} years old and {m} is {k} years older. How old are they together?"
    "|A train goes {i} miles in {q} hours. What is its speed? Reason step by step."
    "|{n} buys {k} {x} at {q} dollars each and pays with {big} dollars. What is the change?"
    "|A garden is {i} meters long and {k} meters wide. Find its area and its perimeter."
    "|Solve for y: {q}y + {k} = {big}.|{n} reads {i} pages a day. How long does a book of {big} "
    "pages take? Let's think step by step.|Put these in order: {i}, {j}, {big}, {k}, {q}."
)
# Of a thousand prompts, how many come from each family, and its templates.
_FAMILIES: tuple[tuple[str, int, Sequence[str]], ...] = (
    ("explain", 230, _EXPLAIN.split("|")),
    ("list", 130, _LISTS.split("|")),
    ("story", 150, _STORIES.split("|")),
    ("writing", 120, _WRITING.split("|")),
    ("code", 110, _CODE.split("|")),
    ("choice", 40, _CHOICE.split("|")),
    ("arithmetic", 220, _SUMS.split("|")),
)
_SUFFIXES = ("", "", "", " Be brief.", " Answer in detail.", " Think step by step.", " Thank you!")


@dataclass(frozen=True)
class Prompt:
    """One user turn and the family of templates that it comes from."""

    family: str
    text: str


def iter_prompts(seed: int) -> Iterator[Prompt]:
    """Yield user turns without end; the sequence depends on `seed` alone."""
    rng = random.Random(seed)
    names = [name for name, _, _ in _FAMILIES]
    shares = [share for _, share, _ in _FAMILIES]
    templates = {name: lines for name, _, lines in _FAMILIES}
    while True:
        family = rng.choices(names, shares)[0]
        text = rng.choice(templates[family]).format(**_fill(rng))
        suffix = rng.choice(_SUFFIXES) if family not in {"writing", "choice"} else ""
        yield Prompt(family, text + suffix)


def _fill(rng: random.Random) -> dict[str, str]:
    pick: Callable[[list[str]], str] = rng.choice
    name, other = rng.sample(NAMES, 2)
    topic, second = rng.sample(TOPICS, 2)
    thing, thing2 = rng.sample(THINGS, 2)
    hero, hero2 = rng.sample(HEROES, 2)
    return {
        "t": topic,
        "u": second,
        "n": name,
        "m": other,
        "x": thing,
        "y": thing2,
        "h": hero,
        "g": hero2,
        "p": pick(PLACES),
        "a": pick(ADJECTIVES),
        "l": pick(LANGUAGES),
        "c": pick(TASKS),
        "i": str(rng.randint(3, 99)),
        "j": str(rng.randint(3, 99)),
        "k": str(rng.randint(2, 12)),
        "q": str(rng.randint(2, 20)),
        "big": str(rng.randint(100, 999)),
    }
