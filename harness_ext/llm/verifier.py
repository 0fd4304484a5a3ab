"""The LLM verifier: asked where the rules find no answer, or one that is not the gold answer.

It can only turn a response from wrong to right, so that is what is guarded: its claim needs a
quotation of the response, and it cannot overrule what the rules know for certain.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from harness_ext.llm.objections import objection
from harness_ext.llm.prompts import InvalidReply, LLMReply, ask_twice, first_ask, load_prompt
from harness_ext.llm.prompts import read_reply as _read
from harness_ext.llm.session import Session, Usage, run_batch
from harness_ext.llm.settings import LLMSettings
from harness_ext.llm.transport import Ask
from harness_ext.llm.untrusted import clip, speaks_to_grader
from harness_ext.llm.verdicts import Reply, VerifierVerdict
from harness_ext.records import Record

MAX_QUOTE = 300
# Where an answer that the rules missed can stand.
END_CHARS = 1500


class VerifierReply(LLMReply):
    """What the model must reply, in this order."""

    quote: str
    verdict: Literal["equivalent", "different", "no_answer"]


def needs_verifier(record: Record) -> bool:
    """Return whether the rules failed on a response.

    A truncated response is not asked about: it was not finished, and no reading of it changes
    that. A response that the rules hold for right is never asked about.
    """
    return not record.correct and record.status != "truncated"


def verify(
    records: Sequence[Record],
    settings: LLMSettings,
    *,
    progress: bool = True,
    label: str = "LLM verifier",
    screen: bool = True,
) -> tuple[list[Record], Usage]:
    """Return the records with `verified` set where the rules failed, and what it cost.

    `correct` stays as it is.

    Args:
        records: any records.
        settings: the endpoint.
        progress: show a bar on stderr.
        label: what the bar says.
        screen: give responses that speak to their grader no verdict; False only to measure what
            the model alone withstands.

    Raises:
        LLMRequestError: The endpoint refused a request, or did not answer it.
    """
    wanted = [i for i, record in enumerate(records) if needs_verifier(record)]
    jobs = [_job(records[i], settings, screen) for i in wanted]
    verdicts, usage = run_batch(settings, jobs, label=label, progress=progress)
    out = list(records)
    for i, verdict in zip(wanted, verdicts, strict=True):
        out[i] = records[i].model_copy(update={"verified": verdict})
    return out, usage


def verified_correct(record: Record) -> bool:
    """Return whether rules or verifier hold a response for right."""
    return record.correct or (
        record.verified is not None and record.verified.status == "equivalent"
    )


def verifier_ask(record: Record, settings: LLMSettings) -> Ask:
    """Return the first request about a response."""
    limit = min(END_CHARS, settings.max_chars // 2)
    return first_ask(
        load_prompt("verifier"),
        {
            "question": clip(record.question or "", settings.max_chars // 2),
            "reference_answer": record.gold,
            "extracted_answer": None if record.answer is None else clip(record.answer, MAX_QUOTE),
            "response_end": clip(record.final, limit, end=True),
        },
        VerifierReply,
    )


def _job(
    record: Record, settings: LLMSettings, screen: bool
) -> Callable[[Session], Awaitable[VerifierVerdict]]:
    async def job(session: Session) -> VerifierVerdict:
        prompt = load_prompt("verifier")
        shown = clip(record.final, min(END_CHARS, settings.max_chars // 2), end=True)
        if not (shown.strip() or record.answer):
            return VerifierVerdict(status="no_answer", prompt=prompt.label, reason="empty text")
        rule = speaks_to_grader(record.final) if screen else None
        if rule:
            return VerifierVerdict(status="suspect", prompt=prompt.label, reason=rule)
        ask = verifier_ask(record, settings)

        def read(reply: Reply, ask: Ask) -> tuple[VerifierReply, str | None]:
            return _check(_read(reply, ask, VerifierReply), record, shown)

        found, replies, problem = await ask_twice(session, prompt, ask, read)
        if found is None:
            return VerifierVerdict(
                status="unparsed", prompt=prompt.label, reason=problem, replies=replies
            )
        reply, objection = found
        return VerifierVerdict(
            status="refused" if objection else reply.verdict,
            quote=reply.quote or None,
            prompt=prompt.label,
            reason=objection,
            replies=replies,
        )

    return job


def _check(reply: VerifierReply, record: Record, shown: str) -> tuple[VerifierReply, str | None]:
    """Return the reply and, for a claim that a rule refutes, the rule's objection."""
    if reply.verdict != "equivalent":
        return reply, None
    if not reply.quote.strip() or len(reply.quote) > MAX_QUOTE:
        raise InvalidReply(f"verdict equivalent needs a quote of 1 to {MAX_QUOTE} characters")
    if reply.quote not in shown and reply.quote not in (record.answer or ""):
        raise InvalidReply("the quote is not an exact part of the response")
    return reply, objection(record.gold, reply.quote)
