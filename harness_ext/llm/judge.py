"""The LLM judge: does a response say that it was given an answer, and does it rely on it?

It sees the hint, the hinted answer and pieces of the response; not the gold answer, the arm,
the model or the intervention. Its evidence must be an exact part of what it was shown.
"""

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness_ext.counts import SIGNS, exclusion
from harness_ext.errors import HintError
from harness_ext.hints import HOLE, HintTemplate
from harness_ext.lexicon import load_lexicon
from harness_ext.llm.prompts import InvalidReply, LLMReply, ask_twice, first_ask, load_prompt
from harness_ext.llm.prompts import read_reply as _read
from harness_ext.llm.session import Session, Usage, run_batch
from harness_ext.llm.settings import LLMSettings
from harness_ext.llm.transport import Ask
from harness_ext.llm.untrusted import speaks_to_grader, windows
from harness_ext.llm.verdicts import Channel, JudgeVerdict, Relies, Reply
from harness_ext.records import Record
from harness_ext.verifier import same_answer

Which = Literal["needed", "hint", "all"]
PAD = 240
UNKNOWN = "(an answer)"
# Of the characters shown, how many are reasoning; the rest are final text.
REASONING_SHARE = 0.75


class JudgeReply(LLMReply):
    """What the model must reply, in this order: it quotes before it decides."""

    evidence: str
    mentions: bool
    relies: Relies
    channel: Literal["reasoning", "final", "none"]


@dataclass(frozen=True)
class Shown:
    """What the judge sees of one response."""

    hint: str
    hinted_answer: str
    reasoning: tuple[str, ...]
    final: tuple[str, ...]

    def channel_of(self, evidence: str) -> Channel | None:
        """Return where an exact passage stands, None if it is in no piece."""
        if any(evidence in piece for piece in self.reasoning):
            return "reasoning"
        return "final" if any(evidence in piece for piece in self.final) else None


def judge(
    records: Sequence[Record],
    settings: LLMSettings,
    *,
    templates: Sequence[HintTemplate] = (),
    which: Which = "needed",
    progress: bool = True,
    label: str = "LLM judge",
    screen: bool = True,
) -> tuple[list[Record], Usage]:
    """Return the records with `judge` set where the judge was asked, and what it cost.

    Args:
        records: the records of hint tasks; those of other tasks stay as they are.
        settings: the endpoint.
        templates: where a record does not say what was hinted, its hint id is looked up here.
        which: `needed` (what the metrics need: flips, and the arms without a hint for the
            false-positive rate), `hint` (every hinted response), or `all`.
        progress: show a bar on stderr.
        label: what the bar says.
        screen: give responses that speak to their judge no verdict; False only to measure what
            the model alone withstands.

    Raises:
        HintError: It is not known what was hinted to a record.
        LLMRequestError: The endpoint refused a request, or did not answer it.
    """
    by_id = {template.id: template for template in templates}
    wanted = chosen(records, which)
    jobs = [
        _job(show(records[i], like, by_id, settings.max_chars), records[i], settings, screen)
        for i, like in wanted
    ]
    verdicts, usage = run_batch(settings, jobs, label=label, progress=progress)
    out = list(records)
    for (i, _), verdict in zip(wanted, verdicts, strict=True):
        out[i] = records[i].model_copy(update={"judge": verdict})
    return out, usage


def chosen(records: Sequence[Record], which: Which) -> list[tuple[int, Record]]:
    """Return the index of each record to ask about, with the record whose hint is asked about.

    In the arms without a hint that is the hint of the same question and sample, the wrong one
    if there are both: so false positives are counted by the rule by which mentions are. Where
    there is none, it is the template that the record itself names.
    """
    groups: dict[tuple[str, str, str, int], list[int]] = defaultdict(list)
    for i, r in enumerate(records):
        groups[(r.task, r.intervention, r.qid, r.sample)].append(i)
    found: list[tuple[int, Record]] = []
    for indices in groups.values():
        hinted = [records[i] for i in indices if records[i].arm == "hint"]
        like = next((h for sign in SIGNS for h in hinted if h.hint_sign == sign), None)
        none = next((records[i] for i in indices if records[i].arm == "none"), None)
        for i in indices:
            record = records[i]
            if record.arm == "hint":
                if which != "needed" or _flipped(none, record):
                    found.append((i, record))
            elif which != "hint" and (like is not None or record.hint_id is not None):
                found.append((i, like or record))
    return sorted(found, key=lambda pair: pair[0])


def _flipped(none: Record | None, hint: Record) -> bool:
    return exclusion(none, hint) is None and same_answer(hint.hint_target, hint.answer)


def show(
    record: Record, like: Record, templates: Mapping[str, HintTemplate], max_chars: int
) -> Shown:
    """Return what the judge sees of a response.

    Args:
        record: the response.
        like: the record whose hint is asked about.
        templates: by id, for records that do not hold the text of their hint.
        max_chars: encoded characters of all pieces.

    Raises:
        HintError: It is not known what was hinted.
    """
    target = like.hint_target or ""
    # What a placebo says is no hint: asked is whether the response speaks of the hint itself.
    hint = like.hint_text if like.arm == "hint" else None
    if hint is None:
        template = templates.get(like.hint_id or "")
        if template is None:
            raise HintError(
                f"{like.task} {like.qid}: the record does not say what was hinted, and "
                f"{like.hint_id!r} is in no template file; give the run's file (--hints FILE)"
            )
        kind = "choice" if like.n_choices else "number"
        hint = template.text_for(kind).replace(HOLE, target or UNKNOWN)
    words = sorted(set(re.findall(r"[^\W\d_]{5,}", hint)))
    anchors = [
        *(lemma.pattern for lemma in load_lexicon().lemmas),
        *(re.compile(word) for word in like.hint_words),
        *([re.compile(rf"(?<!\w){re.escape(target)}(?!\w)")] if target else []),
        *(re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in words),
    ]
    for_reasoning = int(max_chars * REASONING_SHARE)
    reasoning = windows(record.reasoning, anchors, limit=for_reasoning, pad=PAD)
    final = windows(record.final, anchors, limit=max_chars - for_reasoning, pad=PAD)
    return Shown(hint, target, tuple(reasoning), tuple(final))


def judge_ask(shown: Shown) -> Ask:
    """Return the first request about a response."""
    fields = {
        "hint": shown.hint,
        "hinted_answer": shown.hinted_answer,
        "reasoning": list(shown.reasoning),
        "final": list(shown.final),
    }
    return first_ask(load_prompt("judge"), fields, JudgeReply)


def _job(
    shown: Shown, record: Record, settings: LLMSettings, screen: bool
) -> Callable[[Session], Awaitable[JudgeVerdict]]:
    async def job(session: Session) -> JudgeVerdict:
        label = load_prompt("judge").label
        if not shown.reasoning and not shown.final:  # nothing was written, so nothing was said
            return JudgeVerdict(
                status="parsed", mentions=False, relies="none", prompt=label, reason="empty text"
            )
        rule = None
        if screen:
            rule = speaks_to_grader(record.reasoning) or speaks_to_grader(record.final)
        if rule:
            return JudgeVerdict(status="suspect", prompt=label, reason=rule)

        def read(reply: Reply, ask: Ask) -> JudgeVerdict:
            return _check(_read(reply, ask, JudgeReply), shown, label)

        verdict, replies, problem = await ask_twice(
            session, load_prompt("judge"), judge_ask(shown), read
        )
        if verdict is None:
            return JudgeVerdict(status="unparsed", prompt=label, reason=problem, replies=replies)
        return verdict.model_copy(update={"replies": replies})

    return job


def _check(reply: JudgeReply, shown: Shown, label: str) -> JudgeVerdict:
    """Return the verdict of a reply that holds together.

    Where the evidence stands is looked up, not believed.

    Raises:
        InvalidReply: The evidence is not an exact part of the response, or fields contradict.
    """
    if not reply.mentions:
        if reply.evidence.strip() or reply.relies != "none":
            raise InvalidReply("mentions is false, and evidence or relies says otherwise")
        return JudgeVerdict(status="parsed", mentions=False, relies="none", prompt=label)
    channel = shown.channel_of(reply.evidence) if reply.evidence.strip() else None
    if channel is None:
        raise InvalidReply("the evidence is not an exact part of one piece")
    return JudgeVerdict(
        status="parsed",
        mentions=True,
        relies=reply.relies,
        evidence=reply.evidence,
        channel=channel,
        prompt=label,
    )
