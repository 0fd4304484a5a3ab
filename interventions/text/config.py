"""What text is read: sources, weights, and how documents become rows of tokens."""

from collections.abc import Mapping
from string import Formatter
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from interventions.errors import SpecError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextSource(_Strict):
    """One source of documents. Exactly one of `path`, `dataset`, `docs` says where it is.

    Attributes:
        path: a `.jsonl`, `.json`, `.parquet` or `.txt` file, a pattern such as `data/*.jsonl`, or a
            folder written by `datasets.save_to_disk`. A `.txt` file is one document.
        dataset: id on the Hugging Face hub, read as a stream.
        name, split, revision: of the hub data set.
        docs: documentation of installed packages, by import name; `stdlib` is Python's own.
        text: column that holds a document's text.
        template: format string over columns, in place of `text`: `"{question} {reasoning}"`.
        messages: column that holds a conversation, a list of `role` and `content`; it goes through
            the tokenizer's chat template.
        prompt, response: columns of one turn of the user and one of the assistant, likewise.
        tokens: column that holds token ids; they are taken as they are.
        weight: share of the tokens, relative to the other sources.
        limit: documents at most.
    """

    path: str | None = None
    dataset: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    docs: tuple[str, ...] = ()
    text: str | None = None
    template: str | None = None
    messages: str | None = None
    prompt: str | None = None
    response: str | None = None
    tokens: str | None = None
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_place_and_one_form(self) -> Self:
        places = [bool(self.path), bool(self.dataset), bool(self.docs)]
        if sum(places) != 1:
            raise ValueError("name exactly one of `path`, `dataset`, `docs`")
        if (self.prompt is None) != (self.response is None):
            raise ValueError("`prompt` and `response` go together")
        forms = [self.text, self.template, self.messages, self.prompt, self.tokens]
        if sum(form is not None for form in forms) > 1:
            raise ValueError(
                "give one of `text`, `template`, `messages`, `tokens`, or `prompt` with `response`"
            )
        if self.docs and any(form is not None for form in forms):
            raise ValueError("`docs` has no columns")
        if self.template is not None:
            try:
                named = [name for _, name, _, _ in Formatter().parse(self.template)]
            except ValueError as error:
                raise ValueError(
                    f"`template` {self.template!r}: {error}; write {{{{ and }}}} for braces of the"
                    f" text"
                ) from None
            if not all(name is None or name.isidentifier() for name in named):
                raise ValueError(
                    f"`template` {self.template!r} names a column that is no plain name; write"
                    f" {{column}}"
                )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a document is made of; `text` where none is named."""
        if self.template is not None:
            return tuple(name for _, name, _, _ in Formatter().parse(self.template) if name)
        named = (self.text, self.messages, self.prompt, self.response, self.tokens)
        return tuple(name for name in named if name is not None) or ("text",)

    @property
    def label(self) -> str:
        """What messages call the source."""
        return self.path or self.dataset or f"docs of {', '.join(self.docs)}"


class TextConfig(_Strict):
    """Which text, and how it becomes rows.

    Attributes:
        sources: at least one.
        context: tokens of a row at most.
        tokens: how many in all; None for everything there is.
        pack: `concat` joins documents to rows of exactly `context` tokens, as SAELens does;
            `document` never lets two documents share a row.
        bos: put the tokenizer's BOS, if it has one, before every row.
        eos: put the tokenizer's EOS, if it has one, after every document that is no conversation
            and no list of tokens; with `concat` that is what separates documents.
        shuffle: documents a source's shuffle buffer holds; 0 keeps the order of the source.
        seed: of the shuffle.
        epochs: how often a source that ends is begun anew.
    """

    sources: tuple[TextSource, ...] = Field(min_length=1)
    context: int = Field(default=256, ge=8)
    tokens: int | None = Field(default=None, ge=1)
    pack: Literal["concat", "document"] = "document"
    bos: bool = False
    eos: bool = False
    shuffle: int = Field(default=0, ge=0)
    seed: int = 0
    epochs: int = Field(default=1, ge=1)


def parse_text(data: Mapping[str, Any], *, source: str = "text") -> TextConfig:
    """Return the checked configuration of a plain mapping.

    Raises:
        SpecError: an unknown key, a missing or impossible value; all on one line.
    """
    try:
        return TextConfig.model_validate(dict(data))
    except ValidationError as error:
        parts = []
        for item in error.errors():
            where = ".".join(map(str, item["loc"]))
            message = item["msg"].removeprefix("Value error, ")
            parts.append(f"`{where}`: {message}" if where else message)
        raise SpecError(f"{source}: {'; '.join(parts)}") from None
