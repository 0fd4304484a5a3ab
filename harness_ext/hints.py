"""Hint templates, which one a question gets, and what its arms say.

Everything is a function of (question id, template id, task seed) through sha256. lm-eval calls
a task's document functions more than once in a run; a global random state would give the
prompt and the score different hints.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from harness_ext.errors import HintError
from harness_ext.extract import Kind
from harness_ext.paths import data_dir
from harness_ext.wrong_answers import rank, wrong_answer

Sign = Literal["correct", "wrong"]
Position = Literal["after_instruction", "before_question", "after_question", "earlier_turn"]
Message = dict[str, str]
HOLE = "{h}"


class HintTemplate(BaseModel):
    """A checked row of a template file; `data/hints.yaml` explains the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    type: str
    sign: Literal["both", "correct", "wrong"] = "both"
    format: Literal["any", "numeric", "choice"] = "any"
    position: Position
    speaker: str
    text: str
    choice_text: str | None = None
    placebo: str
    follow_up: str | None = None
    words: tuple[str, ...] = ()

    @field_validator("id", "type")
    @classmethod
    def _check_name(cls, name: str) -> str:
        # `+` joins names and `,` ends a value on lm-eval's command line.
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name == "all":
            raise ValueError(
                f"{name!r} must be made of letters, digits, '_', '-', '.', and not be 'all'"
            )
        return name

    @field_validator("words")
    @classmethod
    def _check_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            try:
                re.compile(word)
            except re.error as err:
                raise ValueError(f"{word!r} is no regular expression ({err})") from None
        return words

    @model_validator(mode="after")
    def _check_texts(self) -> "HintTemplate":
        for key in ("text", "choice_text"):
            text = getattr(self, key)
            if text is not None and text.count(HOLE) != 1:
                raise ValueError(f"{key} of {self.id!r} holds {text.count(HOLE)} {HOLE}, needs 1")
        if HOLE in self.placebo or not self.placebo.strip():
            raise ValueError(f"placebo of {self.id!r} must be a text without {HOLE}")
        if (self.position == "earlier_turn") != (self.follow_up is not None):
            raise ValueError(
                f"{self.id!r}: follow_up is what the user says after an earlier turn; position "
                f"is {self.position!r}, follow_up is {'missing' if not self.follow_up else 'given'}"
            )
        return self

    def text_for(self, kind: Kind) -> str:
        """Return the text with its hole for an answer kind."""
        return self.choice_text if kind == "choice" and self.choice_text else self.text


@dataclass(frozen=True)
class Hint:
    """The hint of one question: its template and the answers its arms give."""

    template: HintTemplate
    correct: str
    wrong: str
    kind: Kind = "number"

    def text(self, arm: str) -> str:
        """Return what the prompt of `arm` says (`correct`, `wrong` or `placebo`)."""
        if arm == "placebo":
            return self.template.placebo
        return self.template.text_for(self.kind).replace(HOLE, self.target(arm))

    def target(self, arm: str) -> str:
        """Return the answer that the hint of `arm` gives (`correct` or `wrong`)."""
        return {"correct": self.correct, "wrong": self.wrong}[arm]

    def conversation(self, arm: str, message: str) -> list[Message]:
        """Return the turns of an arm whose hint is an earlier answer in the conversation.

        The model is shown as having answered the question before; the user asks again.

        Args:
            arm: `correct`, `wrong` or `placebo`.
            message: the user message of the question without any hint.

        Raises:
            HintError: The template stands elsewhere than in an earlier turn.
        """
        follow_up = self.template.follow_up
        if follow_up is None:
            raise HintError(
                f"template {self.template.id!r} stands {self.template.position}, not in an "
                "earlier turn"
            )
        return [
            {"role": "user", "content": message},
            {"role": "assistant", "content": self.text(arm)},
            {"role": "user", "content": follow_up},
        ]


def with_earlier_turns(
    chat_template: Callable[..., str], earlier: Sequence[Message]
) -> Callable[..., str]:
    """Return a chat template that puts earlier turns before the last message of the user."""

    def apply(messages: Sequence[Message], **kwargs: Any) -> str:
        last = max(i for i, message in enumerate(messages) if message["role"] == "user")
        return chat_template([*messages[:last], *earlier, *messages[last:]], **kwargs)

    return apply


def as_transcript(messages: Sequence[Message]) -> str:
    """Return a conversation as one text, for models without a chat template.

    Each turn starts a paragraph with `User:` or `Assistant:`; the last paragraph is an empty
    turn of the assistant.
    """
    turns = [f"{m['role'].capitalize()}: {m['content']}" for m in messages]
    return "\n\n".join([*turns, "Assistant:"])


def load_templates(path: Path | None = None) -> tuple[HintTemplate, ...]:
    """Return the checked rows of a template file, by default the package's own.

    Raises:
        HintError: The file is not a list of valid rows, or an id comes twice.
    """
    if path is None:
        return _own_templates()
    return _read_templates(path)


@lru_cache(maxsize=1)
def _own_templates() -> tuple[HintTemplate, ...]:
    return _read_templates(data_dir() / "hints.yaml")


def _read_templates(path: Path) -> tuple[HintTemplate, ...]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        reason = " ".join(str(err).split())
        raise HintError(f"{path}: cannot be read as YAML ({type(err).__name__}: {reason})") from err
    if not isinstance(raw, list) or not raw:
        raise HintError(f"{path}: expected a list of hint templates, got {type(raw).__name__}")
    rows = []
    for i, item in enumerate(raw):
        try:
            rows.append(HintTemplate.model_validate(item))
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "row"
            raise HintError(f"{path}: row {i}, {where}: {first['msg']}") from None
    _check_ids(rows, str(path))
    return tuple(rows)


def _check_ids(rows: Sequence[HintTemplate], where: str) -> None:
    ids = [row.id for row in rows]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise HintError(f"{where}: template id {twice[0]!r} comes twice; ids must be unique")


def family(name: str, *, kind: Kind, path: str | Path | None = None) -> tuple[HintTemplate, ...]:
    """Return the templates of a family that fit an answer kind, sorted by id.

    Args:
        name: a `type`, a single template id, several of either joined by `+`, or `all`.
        kind: what an answer of the benchmark is.
        path: a user's template file, whose rows are added to the package's own.

    Raises:
        HintError: A name is unknown, an id of the file is already one of the package's, or no
            template of the family fits.
    """
    templates = load_templates()
    if path is not None:
        templates = (*templates, *load_templates(Path(path).expanduser()))
        _check_ids(templates, f"{path} with the package's own templates")
    wanted = name.split("+")
    known = {t.type for t in templates} | {t.id for t in templates} | {"all"}
    for part in wanted:
        if part not in known:
            types = ", ".join(sorted({t.type for t in templates}))
            remedy = "" if path else "; name a file of your own with hint_path=FILE"
            raise HintError(f"unknown hint family {part!r}; families are {types}, or all{remedy}")
    formats = {"any", "choice" if kind == "choice" else "numeric"}
    chosen = [
        t
        for t in templates
        if t.format in formats and t.sign == "both" and {"all", t.type, t.id} & set(wanted)
    ]
    if not chosen:
        raise HintError(
            f"no template of hint family {name!r} fits answers of kind {kind!r}; it needs "
            f"sign 'both' and format 'any' or {max(formats - {'any'})!r}"
        )
    return tuple(sorted(chosen, key=lambda t: t.id))


def make_hint(
    *,
    qid: str,
    question: str,
    gold: str,
    kind: Kind,
    templates: Sequence[HintTemplate],
    seed: int,
    choices: Sequence[str] | None = None,
    number_range: tuple[int, int] | None = None,
    avoid: str | None = None,
) -> Hint:
    """Return the hint of a question; the same arguments always give the same one.

    Args:
        qid: question id.
        question: its text, in which a wrong target must not occur.
        gold: reference answer.
        kind: `number`, `math` or `choice`.
        templates: the family; one of them is chosen by hash.
        seed: task seed.
        choices: option letters, for `choice`.
        number_range: lowest and highest answer the benchmark allows, such as AIME's 0 to 999.
        avoid: the answer without a hint where it is known; a wrong hint never gives it.

    Raises:
        HintError: No wrong target can be made of this gold answer.
    """
    template = min(templates, key=lambda t: rank(seed, qid, t.id))
    wrong = wrong_answer(
        qid=qid,
        question=question,
        gold=gold,
        kind=kind,
        template_id=template.id,
        seed=seed,
        choices=choices,
        number_range=number_range,
        avoid=avoid,
    )
    return Hint(template, gold, wrong, kind)
