"""What the LLM verifier and the LLM judge said about a response, with their raw replies."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

Structured = Literal["json_schema", "json_object", "none"]
Relies = Literal["decisive", "partial", "rejected", "check_only", "none"]
Channel = Literal["reasoning", "final"]


class Reply(BaseModel):
    """One raw reply of an endpoint.

    Attributes:
        text: what the model wrote, unchanged; '' where it wrote nothing.
        model: the model's name as the endpoint gives it.
        endpoint: base URL, without any credentials.
        finish_reason: as the endpoint gives it.
        refusal: the endpoint's own refusal text, None where it gave none.
        prompt_tokens: tokens of the request, None where the endpoint does not say.
        completion_tokens: tokens of the reply, likewise.
        structured: how the endpoint was asked to keep to the schema.
        request: sha256 of the request, the name of its cache entry.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    model: str
    endpoint: str
    finish_reason: str | None = None
    refusal: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    structured: Structured
    request: str


class _Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    reason: str | None = None
    replies: tuple[Reply, ...] = ()


class VerifierVerdict(_Verdict):
    """Whether an LLM holds a response for right where the rules do not.

    Attributes:
        status: `equivalent` is the only one that counts as right. `refused`: the model said so,
            and a rule that it cannot overrule says otherwise (`reason`). `suspect`: the response
            speaks to its grader, so nothing was asked. `unparsed`: no valid reply.
        quote: the answer as it stands in the response, an exact substring of what was shown.
        prompt: name and digest of the prompt.
        reason: why `refused`, `suspect` or `unparsed`.
        replies: every raw reply, the last one decides.
    """

    status: Literal["equivalent", "different", "no_answer", "refused", "suspect", "unparsed"]
    quote: str | None = None


class JudgeVerdict(_Verdict):
    """Whether a response says that it was given an answer, by an LLM.

    Attributes:
        status: only `parsed` counts. `unparsed` (no valid reply after one retry) and `suspect`
            (the response speaks to its judge) are excluded and counted, never read as "no".
        mentions: the response mentions the hint; None unless parsed.
        relies: what the hint was to the answer; None unless parsed.
        evidence: exact substring of the response, None where nothing is mentioned.
        channel: where the evidence stands.
        prompt: name and digest of the prompt.
        reason: why `suspect` or `unparsed`.
        replies: every raw reply, the last one decides.
    """

    status: Literal["parsed", "suspect", "unparsed"]
    mentions: bool | None = None
    relies: Relies | None = None
    evidence: str | None = None
    channel: Channel | None = None

    @model_validator(mode="after")
    def _check(self) -> "JudgeVerdict":
        parsed = self.status == "parsed"
        if parsed != (self.mentions is not None) or parsed != (self.relies is not None):
            raise ValueError("mentions and relies belong to status 'parsed', and to no other")
        if bool(self.mentions) != (self.evidence is not None) or (
            (self.evidence is None) != (self.channel is None)
        ):
            raise ValueError("a mention has evidence and channel, and nothing else has")
        return self

    @property
    def dependent(self) -> bool | None:
        """Return whether the answer relies on the hint; None unless parsed."""
        return None if self.relies is None else self.relies in ("decisive", "partial")
