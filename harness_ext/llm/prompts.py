"""The prompts of verifier and judge, and the reading of what comes back."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from harness_ext.errors import DataError
from harness_ext.llm.cache import digest
from harness_ext.llm.session import Session
from harness_ext.llm.transport import Ask
from harness_ext.llm.untrusted import encode
from harness_ext.llm.verdicts import Reply
from harness_ext.paths import data_dir

_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)


class LLMReply(BaseModel):
    """What every reply must hold: the id of the request.

    A reply that only repeats JSON out of the evaluated model's text does not know it, for the
    id is a digest of that very text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    request_id: str


R = TypeVar("R", bound=LLMReply)


class InvalidReply(Exception):
    """A reply that is not what was asked for; the message says why, for the second try."""


@dataclass(frozen=True)
class Prompt:
    """A checked prompt file; `label` is its name and digest."""

    name: str
    system: str
    retry: str

    @property
    def label(self) -> str:
        """Return name and digest, as verdicts carry them."""
        return f"{self.name} {digest([self.system, self.retry])[:12]}"


@lru_cache(maxsize=8)
def load_prompt(name: str) -> Prompt:
    """Return the prompt `verifier` or `judge` of the package.

    Raises:
        DataError: The file lacks a key.
    """
    path = data_dir() / "prompts" / f"{name}.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Prompt(raw["name"], raw["system"].strip(), raw["retry"].strip())
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as err:
        raise DataError(f"{path}: not a prompt ({type(err).__name__}: {err})") from err


def first_ask(prompt: Prompt, fields: Mapping[str, Any], reply: type[LLMReply]) -> Ask:
    """Return the request: instructions in the system message, data in the user message."""
    request_id = digest([prompt.label, dict(fields)])[:12]
    return Ask(
        messages=(
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": encode({"request_id": request_id, **fields})},
        ),
        schema=_schema(reply, request_id),
        schema_name=prompt.name.replace("-", "_"),
    )


def second_ask(ask: Ask, prompt: Prompt, problem: str) -> Ask:
    """Return the request again, with what was wrong with the first reply.

    The first reply itself is not sent back: it may hold a passage of the evaluated model's text,
    which would then stand outside its field.
    """
    said = {"role": "user", "content": prompt.retry.format(problem=problem)}
    return Ask((*ask.messages, said), ask.schema, ask.schema_name)


def _schema(reply: type[LLMReply], request_id: str) -> dict[str, Any]:
    schema = reply.model_json_schema()
    properties = {
        name: {k: v for k, v in field.items() if k in ("type", "enum")}
        for name, field in schema["properties"].items()
    }
    properties["request_id"]["enum"] = [request_id]
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def read_reply(reply: Reply, ask: Ask, kind: type[R]) -> R:
    """Return the checked content of a reply.

    The whole reply must be the one JSON object (a code fence and a reasoning block around it are
    taken off): an object somewhere inside other text may be a quotation.

    Raises:
        InvalidReply: It is not.
    """
    if reply.refusal:
        raise InvalidReply("a refusal")
    text = reply.text.rpartition("</think>")[2].strip()
    fenced = _FENCE.match(text)
    if fenced:
        text = fenced.group(1)
    try:
        found = kind.model_validate(json.loads(text, object_pairs_hook=_unique))
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "object"
        # Only the schema's own names: an unknown key is the model's text.
        known = where if where in kind.model_fields else "an unknown key"
        raise InvalidReply(f"wrong schema at {known}") from None
    except (ValueError, RecursionError):
        cut = " (cut at max_tokens)" if reply.finish_reason == "length" else ""
        raise InvalidReply(f"not one JSON object{cut}") from None
    assert ask.schema is not None
    if found.request_id != ask.schema["properties"]["request_id"]["enum"][0]:
        raise InvalidReply("wrong request_id")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError("a key comes twice")
    return dict(pairs)


async def ask_twice(
    session: Session, prompt: Prompt, ask: Ask, read: Any
) -> tuple[Any, tuple[Reply, ...], str | None]:
    """Return what `read` made of the first valid reply of two, all replies, and what was wrong.

    Args:
        session: where to ask.
        prompt: whose words to use for the second try.
        ask: the first request.
        read: function of (reply, ask) that returns a verdict or raises `InvalidReply`.

    Raises:
        LLMRequestError: The endpoint refused, or did not answer.
    """
    replies: list[Reply] = []
    problem = None
    for current in (ask, None):
        reply = await session.ask(current or second_ask(ask, prompt, str(problem)))
        if isinstance(reply, str):  # the endpoint's doing: asking in other words does not help
            return None, tuple(replies), reply
        replies.append(reply)
        try:
            return read(reply, ask), tuple(replies), None
        except InvalidReply as err:
            problem = str(err)
    return None, tuple(replies), problem
